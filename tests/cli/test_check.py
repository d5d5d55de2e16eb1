"""`llm-forgetting check`: the exit status that a pipeline reads."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_records import small_results

from llm_forgetting import results as artifacts
from llm_forgetting.cli.main import main
from llm_forgetting.files import encode
from llm_forgetting.files.disk import write_text
from llm_forgetting.forgetting.intervals import Interval, paired_proportion_change
from llm_forgetting.forgetting.limits import LimitedForgetting
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.forgetting.paired_evaluation import TaskChange
from llm_forgetting.forgetting.probes import probes
from llm_forgetting.forgetting.records import SampleRecord


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of task `first` 0.3 is lost, interval 0.175 to 0.3625, on 10 items; its loss is not a number on held-out items."""
    write_text(tmp_path / "results.json", encode(small_results()))
    return tmp_path


def limited(low: float, value: float, high: float, limit: float, n: int = 100) -> LimitedForgetting:
    return LimitedForgetting("t", n, value, Interval(low, high, method="by hand"), limit)


def test_an_outcome_needs_the_whole_interval_on_one_side() -> None:
    assert limited(0.1, 0.2, 0.3, 0.3).outcome == "kept"
    assert limited(0.1, 0.2, 0.3, 0.29).outcome == "cannot be said"
    assert limited(0.1, 0.2, 0.3, 0.1).outcome == "cannot be said"
    assert limited(0.1, 0.2, 0.3, 0.09).outcome == "forgotten"
    assert limited(-0.3, -0.2, -0.1, 0.0).outcome == "kept"
    assert dataclasses.replace(limited(0, 0, 0, 1), interval=None).outcome == "cannot be said"
    assert limited(math.nan, math.nan, math.nan, 0.5).outcome == "cannot be said"


def test_items_needed_are_those_at_which_the_interval_would_end_at_the_limit() -> None:
    """Half as far from the limit as the interval reaches: four times the items."""
    assert limited(0.1, 0.2, 0.3, 0.25).items_needed == 400
    assert limited(0.0, 0.2, 0.3, 0.1).items_needed == 400
    assert limited(0.1, 0.2, 0.3, 0.2).items_needed is None
    assert dataclasses.replace(limited(0, 0, 0, 1), interval=None).items_needed is None


@pytest.mark.parametrize(
    ("limit", "status", "said"), [("0.4", 0, "kept"), ("0.1", 1, "forgotten"), ("0.25", 3, "63 items")]
)
def test_the_status_of_a_run(run: Path, limit: str, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run), "--max-forgetting", limit]) == status
    out = capsys.readouterr().out
    assert said in out
    assert "+0.300" in out
    assert max(map(len, out.splitlines())) <= 100


def test_measure_split_and_task_are_chosen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained items: 0.5 nats lost, 0.375 to 0.5625; held-out loss is not a number."""
    loss = ["check", str(run), "--measure", "loss"]
    assert main([*loss, "--split", "train", "--max-forgetting", "0.6"]) == 0
    assert main([*loss, "--split", "train", "--max_forgetting", "0.3", "--task", "first"]) == 1
    capsys.readouterr()
    assert main([*loss, "--max-forgetting", "99"]) == 3
    assert "Items of tasks are held-out ones; --split train asks of trained ones." in " ".join(
        capsys.readouterr().out.split()
    )


def test_probes_are_held_against_the_limit_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one probe 50 of 100 right answers are lost, of two metrics of a second none; a score that is no share is left out."""
    made = small_results()
    lines = [
        SampleRecord(checkpoint, task, "harness", str(n), "task", str(n), metrics, 2)
        for checkpoint in made.forgetting.train.checkpoints
        for task, before, after in (
            ("half", {"acc": 1.0}, {"acc": 0.0}),
            ("kept", {"acc": 1.0, "em": 1.0, "f1": 0.5}, {}),
        )
        for n in range(100)
        for metrics in [{**before, **(after if checkpoint != "initial" and n < 50 else {})}]
    ]
    found = probes(lines, made.forgetting.train.checkpoints, seed=0)
    made = dataclasses.replace(made, probes=found)
    write_text(tmp_path / "results.json", encode(made))
    assert main(["check", str(tmp_path), "--max-forgetting", "0.3", "--task", "half"]) == 1
    assert main(["check", str(tmp_path), "--max-forgetting", "0.4", "--task", "kept (acc)"]) == 0
    assert "forgotten" in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--max-forgetting", "0.4", "--task", "kept (f1)"]) == 2
    assert "--task must be one of first, half, kept (acc), kept (em)" in capsys.readouterr().err


def test_the_worst_task_of_a_pair_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy 1 to 0.5 is lost on one task, and nothing on the other."""
    right, half = [True] * 200, [True, False] * 100

    def change(name: str, after: list[bool]) -> TaskChange:
        losses = paired_mean_change([0.0] * 200, [float(not x) for x in after], seed=0)
        return TaskChange(name, paired_proportion_change(right, after), losses, ())

    changes = (change("kept", right), change("lost", half))
    write_text(tmp_path / "evaluation.json", "{}")
    monkeypatch.setattr(artifacts, "read_evaluation", lambda folder: SimpleNamespace(changes=changes))
    asked = ["check", str(tmp_path), "--max-forgetting", "0.1"]
    assert main(asked) == 1
    assert main([*asked, "--task", "kept"]) == 0
    assert main([*asked, "--task", "lost", "--measure", "loss"]) == 1
    changes = (change("kept", right), change("lost", right[:180] + [False] * 20))
    assert main(asked) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-forgetting", "0.1"], "holds neither"),
        (["--max-forgetting", "much"], "much"),
        (["--max-forgetting", "nan"], "nan"),
        ([], "--max-forgetting"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_an_unknown_task_and_a_single_checkpoint_end_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(run), "--max-forgetting", "0", "--task", "third"]) == 2
    assert "--task must be one of first, was third" in capsys.readouterr().err
    (run / "results.json").rename(run / "evaluation.json")
    monkeypatch.setattr(artifacts, "read_evaluation", lambda folder: SimpleNamespace(changes=None))
    assert main(["check", str(run), "--max-forgetting", "0"]) == 2
    assert "of a single one" in capsys.readouterr().err
