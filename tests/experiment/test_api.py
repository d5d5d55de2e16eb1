"""Experiments and studies as Python objects: what they compute is what the command line computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import TINY, SmokeRun, same_results
from small_study import SMALL

import llm_forgetting as lf
from llm_forgetting.config.paths import to_dict
from llm_forgetting.files import encode


def test_an_experiment_takes_presets_files_sections_dotted_paths_and_seeds(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(TINY))
    by_file = lf.Experiment(file, tasks=["synthetic_2", "synthetic_1"], lora={"rank": 2}, seed=7).config
    assert (by_file.lora.rank, by_file.training.num_epochs, by_file.training.seed) == (2, 3, 7)
    assert by_file.data.tasks == ("synthetic_2", "synthetic_1")
    assert {by_file.data.seed, by_file.landscape.seed, by_file.curvature.seed} == {7}
    dotted = lf.Experiment(
        "smoke", **{"lora.rank": 2, "lora.target_modules": ["q_proj"], "evaluation.text": None}
    ).config
    assert (dotted.lora.rank, dotted.lora.target_modules) == (2, ("q_proj",))
    again = lf.Experiment(by_file, training={"num_epochs": 1}).config
    expected = to_dict(by_file)
    expected["training"]["num_epochs"] = 1
    assert to_dict(again) == expected


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"config": "smokey"}, "did you mean smoke"),
        ({"lora": {"ranks": 3}}, "lora.ranks is not an option; did you mean lora.rank"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"tasks": "anatomy"}, "tasks must be a list of names"),
        ({"tasks": ["synthetic_1"]}, "at least two tasks"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(lf.UserError, match=complaint) as caught:
        lf.Experiment(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("one_thread")
def test_an_experiment_runs_to_what_the_command_line_gives_and_is_read_back(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    run = lf.Experiment(file).run(tmp_path / "outputs", quiet=True)
    assert capsys.readouterr().out == ""
    from_shell = lf.open_run(tiny_run)
    ours, theirs = ({**found.content, "config": None} for found in (run, from_shell))
    assert same_results(ours, theirs)
    resumed = lf.Experiment.resume(run.folder)
    assert same_results(resumed.content, run.content)
    assert "phase" not in capsys.readouterr().err


def test_a_mistyped_task_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(lf.UserError, match="synthetic_77"):
        lf.Experiment("smoke", tasks=["synthetic_1", "synthetic_77"]).run(tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_results_are_typed_values_and_frames(smoke_run: SmokeRun) -> None:
    run = lf.open_run(smoke_run.path)
    assert run.answer == smoke_run.results["answer"]
    assert run.content == smoke_run.results
    assert encode(run.record) == (run.folder / "results.json").read_text(encoding="utf-8")
    assert list(run.tasks) == ["synthetic_1", "synthetic_2"]
    assert list(run.warnings) == smoke_run.results["warnings"]
    lost = run.forgotten()
    told = smoke_run.results["forgetting"]["train"]["loss"]["tasks"][0]["absolute"]
    assert (lost.value, lost.stderr, lost.low, lost.items) == (
        told["value"],
        told["stderr"],
        told["interval"]["low"],
        48,
    )
    assert str(lost) == f"{lost.value:.2f} [{lost.low:.2f}, {lost.high:.2f}]"
    assert str(lf.Estimate(1.0, None, None, None, 3)) == "1.00"
    assert str(lf.Estimate(1.0, 0.25, None, None, 3)) == "1.00 ± 0.25"
    assert run.forgotten("synthetic_1", measure="accuracy", split="test").value == pytest.approx(
        smoke_run.results["forgetting"]["test"]["accuracy"]["tasks"][0]["absolute"]["value"]
    )
    scores = run.scores.set_index(["split", "checkpoint", "task"])
    assert scores.loc[("train", "after_task1", "synthetic_1"), "accuracy"] == 1.0
    assert len(run.forgetting) == 4
    assert run.landscape["mean_rise"].dtype == np.float64
    assert run.curvature.empty
    assert set(run.forecasts["task"]) == {"synthetic_1"}
    assert run.training.groupby("task")["step"].max().tolist() == [
        phase["optimizer_steps"] for phase in smoke_run.results["training"]
    ]
    trained = run.items[(run.items["split"] == "train") & (run.items["checkpoint"] == "after_task1")]
    means = trained.groupby("task")["correct"].mean()
    assert means["synthetic_1"] == 1.0
    assert run.report.is_file()
    assert (run.checkpoint(2) / "adapter_model.safetensors").is_file()


def test_the_surface_of_a_run_is_the_type_that_scans_of_own_models_return(smoke_run: SmokeRun) -> None:
    run = lf.open_run(smoke_run.path)
    surface = run.surface(2, "synthetic_2")
    told = smoke_run.results["landscapes"]["after_task2"]
    assert isinstance(surface, lf.Surface)
    np.testing.assert_array_equal(surface.losses, told["surfaces"]["synthetic_2"]["loss"])
    assert surface.centre == pytest.approx(told["surfaces"]["synthetic_2"]["metrics"]["centre"])
    assert surface.error == told["surfaces"]["synthetic_2"]["error"]["largest"]
    assert surface.converged is told["fit"]["converged"]
    assert surface.evaluations == told["fit"]["evaluations"]
    with pytest.raises(lf.UserError, match=r"after_task1: synthetic_1, synthetic_2; .*was 'after_task3'"):
        run.surface(3)


def test_results_and_experiments_are_shown_in_a_line(smoke_run: SmokeRun) -> None:
    run = lf.open_run(smoke_run.path)
    shown = repr(run)
    assert shown.startswith(f"<RunResults in {smoke_run.path}: {run.answer[:60]}")
    surface, experiment = repr(run.surface()), repr(lf.Experiment("smoke"))
    assert surface.startswith("<Surface 41 x 41, losses ")
    assert experiment == "<Experiment on synthetic_1, synthetic_2: synthetic, LoRA rank 8, into outputs>"
    for text in (shown, surface, experiment):
        assert len(text) <= 300 + len(str(smoke_run.path))
        assert "\n" not in text
    content = {"name": "toy", "answers": {"flatness": "No difference was shown. " * 30}}
    study = repr(lf.StudyResults(content, smoke_run.path))
    assert study.startswith(f"<StudyResults of toy in {smoke_run.path}: No difference was shown.")
    assert len(study) <= 300 + len(str(smoke_run.path))


def test_what_a_run_has_not_is_said(smoke_run: SmokeRun, tmp_path: Path) -> None:
    run = lf.open_run(smoke_run.path)
    with pytest.raises(lf.UserError, match=r"an earlier task of this run \(synthetic_1\)"):
        run.forgotten("synthetic_2")
    with pytest.raises(lf.UserError, match="open_run needs the folder of a finished run"):
        lf.open_run(tmp_path)
    broken = {**run.content, "forgetting": {**run.content["forgetting"], "train": {}}}
    with pytest.raises(lf.UserError, match=r"results\.json: forgetting\.train\.checkpoints: Field required"):
        _ = lf.RunResults(broken, run.folder).answer
    with pytest.raises(lf.UserError, match="llm-forgetting report"):
        lf.RunResults(run.content, tmp_path).show()
    with pytest.raises(lf.UserError, match="open_study needs the folder of a study"):
        lf.open_study(tmp_path)


def test_a_notebook_shows_answer_table_and_report(smoke_run: SmokeRun) -> None:
    run = lf.open_run(smoke_run.path)
    shown = run._repr_html_()
    assert run.answer.replace("<", "&lt;") in shown
    assert shown.count("<tr") == 3  # a header, and task 1 in accuracy and loss
    framed = run.show(height=500)._repr_html_()
    assert framed.startswith("<iframe")
    assert "height:500px" in framed
    hostile = lf.RunResults({**run.content, "answer": "<script>alert(1)</script>"}, run.folder)
    assert "<script>" not in hostile._repr_html_()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[lf.StudyResults, list[str]]:
    folder = tmp_path_factory.mktemp("study")
    small = {**SMALL, "vary": {"data.tasks": [["synthetic_1", "synthetic_2"]], "seed": [0]}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    told: list[str] = []
    plan = lf.Study(folder / "small.yaml", folder / "out")
    assert plan.missing == 2
    found = plan.run(workers=1, threads=1, tell=told.append)
    assert plan.missing == 0
    return found, told


@pytest.mark.study
def test_a_study_runs_and_gives_frames(study: tuple[lf.StudyResults, list[str]]) -> None:
    found, told = study
    assert any("forgot" in line for line in told)
    cells = found.cells.set_index("arm")
    assert list(cells.index) == ["adamw", "rescaled"]
    records = {
        record["arm"]: record
        for record in (json.loads(path.read_text()) for path in found.folder.glob("cells/*/record.json"))
    }
    for arm, record in records.items():
        assert cells.loc[arm, "forgetting_loss"] == record["outcomes"]["forgetting_loss"]
        assert cells.loc[arm, "mean_rise_stderr"] == record["stderrs"]["mean_rise"]
        assert cells.loc[arm, "seed"] == 0
    assert "Does a flatter landscape go with less forgetting?" in found.answers
    assert list(found.associations["measure"]) == list(found.content["associations"]["measures"])
    assert "iframe" in found.show()._repr_html_()
    assert "<table" in found._repr_html_()
    again = lf.open_study(found.folder)
    assert again.content == found.content
    assert lf.open_study(found.folder).effects.equals(found.effects)


def test_a_study_takes_no_engine_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    with pytest.raises(lf.UserError, match="engine must be one of local, ray, slurm, was 'web'"):
        lf.Study(tmp_path / "small.yaml", tmp_path / "out").run(engine="web")  # type: ignore[arg-type]
