"""Runs with tasks that are never trained on: every number is plain PEFT's, in no average, resumed or not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import load

import llm_forgetting as lf
from llm_forgetting.cli.run import parse_run
from llm_forgetting.config.files import parse_config
from llm_forgetting.config.sections import DataConfig, ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.lengths import item_lengths
from llm_forgetting.experiment.cost.work import probe_work
from llm_forgetting.experiment.experiment import train
from llm_forgetting.experiment.jobs import steps_of
from llm_forgetting.experiment.session import Session
from llm_forgetting.experiment.tasks import probes_of, source_of, tasks_of
from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.forgetting.transitions import transitions
from llm_forgetting.progress import Silent
from llm_forgetting.report.html.files import write_run_report
from llm_forgetting.report.rows import during_rows
from llm_forgetting.report.views.frontier import frontier_views
from llm_forgetting.results import read_items

pytestmark = [pytest.mark.usefixtures("one_thread")]


def own_tasks(folder: Path) -> Path:
    """Three tasks of 24 questions with two options, of which `same` has those of `first`."""
    for name, start in (("first", 0), ("second", 100), ("third", 200), ("same", 0)):
        questions = [
            {"question": f"Number {n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(start, start + 24)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    file = folder / "own.yaml"
    file.write_text("".join(f"{name}: {{path: {name}.jsonl}}\n" for name in ("first", "second", "third", "same")))
    return file


def config_of(model: Path, folder: Path, **data: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "model": {"name": str(model)},
        "lora": {"rank": 2},
        "data": {
            "source": "skills", "definitions": str(own_tasks(folder)), "tasks": ["first", "second"],
            "train_items": 8, "test_items": 6, **data,
        },
        "training": {"batch_size": 4, "num_epochs": 2, "learning_rate": 1e-2},
        "evaluation": {"rotations": False, "recovery_items": 0},
        "landscape": {
            "max_evaluations": 23, "resolution": 5, "directions": 2, "num_items": 2, "self_test_items": 1, "paths": False,
            "checkpoint_plane": False,
        },
        "curvature": {"forecast": False},
        "output": {"figures": False},
    }  # fmt: skip
    return lf.Experiment("quickstart", **settings).config


@pytest.fixture(scope="module")
def finished(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained on questions; probes are questions, completions, and the unrelated text."""
    folder = tmp_path_factory.mktemp("probes")
    config = config_of(llama_folder, folder, probes=["third", "skills:reverse", "text"], probe_limit=9)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, during=2, during_items=5))
    return lf.Experiment(config).run(folder / "outputs", quiet=True)


@pytest.mark.process
def test_scores_are_those_of_plain_transformers(finished: Any, llama_folder: Path) -> None:
    model = load(llama_folder, rank=2, alpha=16.0)
    model.load_adapter_weights(finished.folder / "checkpoint_after_task2")
    lines = [json.loads(line) for line in (finished.folder / "items.jsonl").read_text().splitlines()]
    last = [line for line in lines if (line["checkpoint"], line["split"]) == ("after_task2", "probe")]
    told = {(line["task"], line["id"]): line for line in last}
    encoded = Session(finished.record.config, finished.folder, Silent()).encoded_probes
    assert [(probe.name, len(probe.train), len(probe.test)) for probe in encoded] == [
        ("third", 0, 9),
        ("skills:reverse", 0, 9),
    ]
    assert len(told) == 18
    for probe, found in zip(encoded, finished.record.probes, strict=True):
        total, tokens, right = 0.0, 0, []
        for item in probe.test:
            targets = item.targets or (item.letter_ids[item.item.answer],)
            with torch.no_grad():
                logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0].double()
            rows = logits[list(item.places) or [-1]]
            loss = float(F.cross_entropy(rows, torch.tensor(targets), reduction="sum"))
            choices = rows if item.targets else rows[:, list(item.letter_ids)]
            wanted = list(targets) if item.targets else [item.item.answer]
            right.append(choices.argmax(dim=1).tolist() == wanted)
            line = told[probe.name, item.item.id]
            assert line["loss"] == pytest.approx(loss / len(targets), abs=1e-5)
            assert line["correct"] == right[-1]
            total, tokens = total + loss, tokens + len(targets)
        assert found.loss["after_task2"].value == pytest.approx(total / tokens, abs=1e-5)
        assert found.score["after_task2"].value == sum(right) / 9
        before = [
            line["correct"] for line in lines if (line.get("task"), line["checkpoint"]) == (probe.name, "initial")
        ]
        assert found.changes[0].score == paired_proportion_change(before, right, clusters=None)
    assert [probe.measure for probe in finished.record.probes] == ["accuracy", "exact match"]
    assert [probe.chance for probe in finished.record.probes] == [0.5, 0]


@pytest.mark.process
def test_probes_are_in_no_average_and_in_every_report(finished: Any) -> None:
    record = finished.record
    assert record.forgetting.test.task_names == ("first", "second")
    assert record.forgetting.test.accuracy.cells[0][0].n == 6
    lines = [line for line in read_items(finished.folder) if isinstance(line, ItemRecord)]
    for scores in record.forgetting.splits:
        before, after = (
            [
                line.correct
                for line in lines
                if (line.checkpoint, line.task, line.split) == (name, "first", scores.split)
            ]
            for name in ("after_task1", "after_task2")
        )
        assert scores.accuracy.tasks[0].transitions == transitions(before, after, [2] * len(before))
        assert scores.loss.tasks[0].transitions is None
    frame = finished.probes
    assert list(frame["probe"].unique()) == ["third", "skills:reverse"]
    assert len(frame) == 6
    text = (finished.folder / "results.md").read_text()
    assert "## Never trained on" in text
    assert "skills:reverse, since base model" in text
    assert f"unrelated text, since base model | {record.text.passages}" in text
    page = write_run_report(record, read_items(finished.folder), finished.folder).read_text(encoding="utf-8")
    assert "Never trained on" in page
    again = lf.Experiment.resume(finished.folder, quiet=True)
    assert again.content == {**finished.content, "timings": again.content["timings"]}
    names = [step.phase.name for step in steps_of(record.config)]
    assert [name for name in names if name.endswith("_probes")] == [
        "evaluate_initial_probes", "evaluate_after_task1_probes", "evaluate_after_task2_probes",
    ]  # fmt: skip


@pytest.mark.process
def test_probes_are_scored_during_a_training_as_at_its_ends(finished: Any) -> None:
    """The first and the last of the points are the checkpoints before and after."""
    lines = [line for line in read_items(finished.folder) if isinstance(line, ItemRecord) and line.split == "probe"]
    scored = {(line.checkpoint, line.task, line.id): line for line in lines}
    for record, before, after in zip(
        finished.record.training, ("initial", "after_task1"), ("after_task1", "after_task2"), strict=True
    ):
        during = record.during
        assert [probe.task for probe in during.probes] == ["third", "skills:reverse"]
        for probe in during.probes:
            assert len(probe.items) == 5
            for point, checkpoint in ((0, before), (-1, after)):
                own = [scored[checkpoint, probe.task, item] for item in probe.items]
                mean = sum(line.loss * (line.tokens or 1) for line in own) / sum(line.tokens or 1 for line in own)
                assert probe.loss[point].mean() == pytest.approx(mean, abs=1e-5)
                assert probe.correct[point].tolist() == [line.correct for line in own]
        assert {view.forgotten for view in frontier_views(finished.record) if view.learnt == record.task} == {
            *(["first"] if record.task == "second" else []), "third", "skills:reverse",
        }  # fmt: skip
    assert "skills:reverse" in {row["task"] for row in during_rows(finished.record)}


@pytest.mark.process
def test_probes_and_their_scores_change_no_training(finished: Any, tmp_path: Path) -> None:
    config = finished.record.config
    data = dataclasses.replace(config.data, probes=())
    evaluation = dataclasses.replace(config.evaluation, during=0)
    session = Session(dataclasses.replace(config, data=data, evaluation=evaluation), tmp_path, Silent())
    for k, scored in enumerate(finished.record.training, start=1):
        assert scored.during.probes
        assert train(session, k).adapter_sha256 == scored.adapter_sha256


def test_a_run_goes_on_with_the_probes_it_was_begun_with(finished: Any) -> None:
    file = Path(finished.record.config.data.definitions).with_name("third.jsonl")
    content = file.read_text()
    file.write_text(content.replace("Number 2", "Number two "))
    try:
        with pytest.raises(UserError, match="the items of probe third must be the same as when"):
            _ = Session(finished.record.config, finished.folder, Silent()).probes
    finally:
        file.write_text(content)


def test_worked_examples_of_a_probe_are_not_scored(llama_folder: Path, tmp_path: Path) -> None:
    data = config_of(llama_folder, tmp_path, probes=["third"], few_shot=2).data
    source = source_of(data, print)
    (third,) = probes_of(data, source, tasks_of(data, source), print)
    shots = [item for items in third.shots.values() for item in items]
    assert len(shots) == 2
    assert not {item.id for item in shots} & {item.id for item in third.test}


def test_a_probe_holds_nothing_that_is_trained_on(llama_folder: Path, tmp_path: Path) -> None:
    data = config_of(llama_folder, tmp_path, probes=["same", "third"], probe_limit=None).data
    source = source_of(data, print)
    tasks = tasks_of(data, source)
    same, third = probes_of(data, source, tasks, print)
    of_first = {item.content_key for item in (*tasks[0].train, *tasks[0].test)}
    assert not of_first & {item.content_key for item in same.test}
    assert len(same.test) == len(third.test) == 6
    assert same.duplicates_removed == 14
    lengths = item_lengths(config_of(llama_folder, tmp_path, probes=["same", "third", "harness:own"]), print)
    (work,) = probe_work(lengths)
    assert work.passes == 3 * 12
    assert "not counted: own of lm-evaluation-harness" in lengths.notes


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        (["first"], "first is one of data.tasks"),
        (["nothing"], "'nothing' is not defined in|is not in this data source"),
        (["skills:nothing"], "'nothing' is not in this data source"),
        (["local:/nowhere/at/all"], "/nowhere/at/all"),
        (["third", "third"], "named 'third' twice|named third twice"),
        (["harness:"], "must be names of tasks"),
        (["", ""], "must be names of tasks"),
    ],
)
def test_impossible_probes_are_one_line(probes: list[str], said: str, llama_folder: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        data = config_of(llama_folder, tmp_path, probes=probes).data
        source = source_of(data, print)
        probes_of(data, source, tasks_of(data, source), print)

    with pytest.raises(UserError, match=said) as raised:
        prepare()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("probe", ["skills:largest", "largest"])
def test_other_items_of_a_trained_task_are_no_probe(probe: str, llama_folder: Path, tmp_path: Path) -> None:
    data = config_of(llama_folder, tmp_path, tasks=["largest", "first"], probes=[probe]).data
    source = source_of(data, print)
    with pytest.raises(UserError, match="must be a task that is never trained on, "):
        probes_of(data, source, tasks_of(data, source), print)


def test_probes_leave_older_fingerprints_and_must_fit_each_other() -> None:
    assert parse_config("smoke", []).fingerprint == parse_config("smoke", ["--data.probes=[]"]).fingerprint
    assert parse_config("smoke", ["--data.probes=[synthetic_3]"]).fingerprint != parse_config("smoke", []).fingerprint
    for wrong, said in (
        (["--data.harness_tasks=x"], "needs a probe harness:TASK"),
        (["--data.probes=[skills:reverse]"], "has a model of its own words"),
    ):
        with pytest.raises(UserError, match=said):
            parse_config("smoke", wrong)
    assert DataConfig().probes == ()
    _, config = parse_run(["--config", "smoke", "--probes", "synthetic_3, text"])
    assert config.data.probes == ("synthetic_3", "text")
