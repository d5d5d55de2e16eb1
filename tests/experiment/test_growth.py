"""Runs of many tasks: what is measured of which task, so that a run grows with the number of its tasks and not its square."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from runs import ROOT, TINY, Shell
from test_html import Elements
from tiny_models import load, make_encoded

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.analysis.paths import path_objective
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.cost.work import TaskSize, work_of
from llm_forgetting.experiment.experiment import run_in
from llm_forgetting.files import elsewhere, encode, encode_json, from_plain
from llm_forgetting.progress import Silent
from llm_forgetting.report.figures.layout import table_of
from llm_forgetting.report.figures.paths import paths_figure
from llm_forgetting.report.figures.run import figures, spread
from llm_forgetting.report.html.page import render
from llm_forgetting.report.html.run import run_page
from llm_forgetting.report.tables.closing import closing_tables
from llm_forgetting.report.tables.run import forgetting_table
from llm_forgetting.report.views.lines import line_ensembles
from llm_forgetting.report.views.paths import path_views
from llm_forgetting.report.views.surfaces import drawn_surfaces, left_out_sentence, surface_views
from llm_forgetting.results import Results, read_results

NAMES = tuple(f"synthetic_{n}" for n in (1, 2, 3, 4))


def config_of(names: tuple[str, ...], **landscape: object) -> ExperimentConfig:
    smallest = {
        "data": {**TINY["data"], "tasks": list(names), "train_items": 8, "test_items": 4},
        "training": {"batch_size": 8, "num_epochs": 1, "learning_rate": 0.01},
        "landscape": {
            "max_evaluations": 23,
            "resolution": 5,
            "directions": 2,
            "num_items": 2,
            "self_test_items": 1,
            **landscape,
        },
        "evaluation": {"rotations": False, "recovery_items": 0},
        "output": {"figures": False},
    }
    return from_plain(ExperimentConfig, {**TINY, **smallest})


# --- which tasks ------------------------------------------------------------------------------------------------------------


def test_the_first_the_own_and_the_last_task_are_scanned() -> None:
    default, everything = LandscapeConfig(), LandscapeConfig(tasks="all")
    assert [default.tasks_around(k, 5) for k in range(1, 6)] == [[1, 5], [1, 2, 5], [1, 3, 5], [1, 4, 5], [1, 5]]
    assert [default.tasks_between(k, k + 1, 5) for k in range(1, 5)] == [
        [1, 2, 5],
        [1, 2, 3, 5],
        [1, 3, 4, 5],
        [1, 4, 5],
    ]
    assert [default.tasks_forecast(k) for k in range(1, 5)] == [[1], [1, 2], [1, 3], [1, 4]]
    assert everything.tasks_around(2, 5) == everything.tasks_between(1, 2, 5) == [1, 2, 3, 4, 5]
    assert everything.tasks_forecast(3) == [1, 2, 3]
    assert LandscapeConfig(tasks="learnt").tasks_around(2, 5) == [1, 2]
    assert LandscapeConfig(tasks="first").tasks_around(2, 5) == [1]
    assert LandscapeConfig(tasks="learnt").tasks_between(1, 2, 5) == [1, 2, 3, 4, 5]


def test_of_two_tasks_the_default_is_all_and_keeps_the_fingerprint_of_older_runs() -> None:
    for k in (1, 2):
        assert LandscapeConfig().tasks_around(k, 2) == LandscapeConfig(tasks="all").tasks_around(k, 2)
    assert config_of(NAMES[:2]).fingerprint == config_of(NAMES[:2], tasks="all").fingerprint
    assert config_of(NAMES[:3]).fingerprint != config_of(NAMES[:3], tasks="all").fingerprint
    assert config_of(NAMES[:2]).fingerprint != config_of(NAMES[:2], tasks="first").fingerprint


def test_what_is_counted_before_a_run_grows_linearly() -> None:
    passes = {}
    for tasks in (8, 16):
        config = from_plain(ExperimentConfig, {"data": {"tasks": [f"t{n}" for n in range(tasks)]}})
        work = work_of(config, [TaskSize(f"t{n}", 40, 10, 100.0) for n in range(tasks)])
        passes[tasks] = {each.label.partition(" (")[0].split(" of ")[0]: each.passes for each in work}
    for label in ("landscape", "paths between them", "forecasts"):
        assert 1.9 < passes[16][label] / passes[8][label] < 2.3, label


def test_some_tasks_of_an_objective_have_the_losses_that_they_have_among_all(llama_folder: Path) -> None:
    model = load(llama_folder)
    items = [(f"t{n}", make_encoded(model, 3, seed=n)) for n in range(3)]
    whole = path_objective(model, items, LandscapeConfig())
    part = whole.only([0, 2])
    assert part.names == ("t0", "t2")
    assert whole.only([0, 1, 2]) is whole
    point = model.adapter_factors()
    losses = []
    for objective in (whole, part):
        with torch.no_grad(), objective.evaluating() as values_at:
            losses.append(objective.losses(next(iter(values_at([point])))))
    np.testing.assert_allclose(losses[1], losses[0][[0, 2]], rtol=1e-6)


# --- a run of four ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of four tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_FORGETTING_CACHE", str(shell.cache))
        folder = RunFolder.create(tmp_path_factory.mktemp("four"))
        run_in(folder, config_of(NAMES), Silent())
        yield folder.path


@pytest.fixture(scope="module")
def results(four: Path) -> Results:
    return read_results(four)


def test_a_run_of_four_measures_what_concerns_each_step(results: Results) -> None:
    first, second, third, last = NAMES
    assert {name: tuple(landscape.surfaces) for name, landscape in results.landscapes.items()} == {
        "after_task1": (first, last),
        "after_task2": (first, second, last),
        "after_task3": (first, third, last),
        "after_task4": (first, last),
    }
    assert [tuple(path.tasks) for path in results.paths] == [(first, second, last), NAMES, (first, third, last)]
    assert [len(path.repair.selection_items) for path in results.paths] == [3, 4, 3]
    assert results.checkpoint_plane is not None
    assert tuple(results.checkpoint_plane.surfaces) == (first, last)
    assert [tuple(step.tasks) for step in results.forecasts] == [(first,), (first, second), (first, third)]
    assert [(c.task, c.before) for c in results.landscape_comparison] == [
        (task, f"after_task{k}") for k in (1, 2, 3) for task in (first, last)
    ]
    assert np.array(results.forgetting.train.accuracy.cells).shape[:2] == (5, 4)  # scores stay of every task


def test_of_more_than_three_tasks_the_first_and_the_own_are_drawn(results: Results) -> None:
    first, second, third, last = NAMES
    drawn = [("after_task1", first), ("after_task2", first), ("after_task2", second), ("after_task3", first)]
    drawn += [("after_task3", third), ("after_task4", first), ("after_task4", last)]
    assert drawn_surfaces(results) == drawn
    assert [(view.checkpoint, view.task) for view in surface_views(results)] == drawn
    assert [(view.checkpoint, view.task) for view in line_ensembles(results)] == drawn
    assert left_out_sentence(results) == (
        "Drawn are the surfaces of the first task and of each checkpoint's own. 3 more were measured: "
        "lf.open_run(RUN).surface(CHECKPOINT, TASK) gives them. --landscape.tasks all measures every task everywhere."
    )
    assert left_out_sentence(results) in Elements(render(run_page(results, []))).text
    stems = [stem for stem, figure in figures(results) if stem.endswith(("_contour", "_3d"))]
    assert len(stems) == 2 * len(drawn)
    two = replace(results, task_names=NAMES[:2], landscapes=dict(list(results.landscapes.items())[:2]))
    assert len(drawn_surfaces(two)) == 5


def test_panels_that_are_no_table_stand_line_after_line() -> None:
    sparse = [("first", f"c{n}") for n in range(8)] + [(f"t{n}", f"c{n}") for n in range(1, 8)]
    places = table_of(sparse)
    assert len(set(places.values())) == len(sparse)
    assert max(column for _, column in places.values()) == 3
    assert table_of([("a", "x"), ("a", "y"), ("b", "y")]) == {
        ("a", "x"): (0, 0),
        ("a", "y"): (0, 1),
        ("b", "y"): (1, 1),
    }


def test_paths_of_many_tasks_name_the_parts_that_tasks_play(results: Results) -> None:
    """One legend for all paths: the same number is the same part."""
    first, before, after, last = "the first task", "the task learnt before", "the task learnt next", "the last task"
    parts = [[(view.role, view.number) for view in path.profiles] for path in path_views(results)]
    assert parts == [
        [(first, 0), (after, 2), (last, 3)],
        [(first, 0), (before, 1), (after, 2), (last, 3)],
        [(first, 0), (before, 1), (after, 2)],
    ]
    assert len(paths_figure(path_views(results)).axes) == 6


def test_results_whose_arrays_are_in_another_file_are_the_same_results(
    results: Results, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "MOST_NUMBERS", 1000)
    monkeypatch.setattr(elsewhere, "SMALL", 20)
    (tmp_path / "phases").mkdir()
    RunFolder(tmp_path).write_record("results.json", results)
    shutil.copy(four / "items.jsonl", tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    schema = json.loads((ROOT / "src/llm_forgetting/data/results.schema.json").read_text())
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(content)) == []
    surface = content["landscapes"]["after_task2"]["surfaces"]["synthetic_2"]
    assert surface["loss"] == {"file": "results.npz", "key": "landscapes/after_task2/surfaces/synthetic_2/loss"}
    assert isinstance(surface["metrics"]["centre"], float)
    assert encode(read_results(tmp_path)) == encode(results)
    assert encode_json(lf.open_run(tmp_path).content) == (four / "results.json").read_text()
    np.testing.assert_array_equal(
        lf.open_run(tmp_path).surface(2, "synthetic_2").losses,
        results.landscapes["after_task2"].surfaces["synthetic_2"].loss,
    )
    assert main(["report", str(tmp_path)]) == main(["report", str(four)]) == 0
    assert (tmp_path / "report.html").read_bytes() == (four / "report.html").read_bytes()
    assert main(["compare", str(tmp_path), str(four), "--output", str(tmp_path / "compare.html")]) == 0


def test_intervals_of_tasks_of_several_subjects_are_said_to_be_over_subjects(results: Results) -> None:
    def with_subjects(*counts: int) -> Results:
        tasks = zip(results.tasks, counts, strict=True)
        return replace(results, tasks=tuple(replace(task, subjects=("s",) * count) for task, count in tasks))

    for counts, said in (
        ((1, 1, 1, 1), "over items;"),
        ((2, 3, 2, 2), "over subjects;"),
        ((1, 3, 1, 1), "over items (over subjects, where a task has several);"),
    ):
        assert f"brackets: 95% interval {said}" in forgetting_table(with_subjects(*counts)).note
        assert f"95% intervals {said[:-1]}, below" in closing_tables(with_subjects(*counts))[0].note


def test_figures_of_many_panels_show_some_from_the_first_to_the_last() -> None:
    few, many = list(range(16)), list(range(113))
    assert spread(few) == few
    shown = spread(many)
    assert (shown[0], shown[-1], len(set(shown))) == (0, 112, 16)
    assert set(np.diff(shown)) <= {7, 8}
