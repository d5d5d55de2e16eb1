"""TensorBoard reads back what a run told it; names that cannot be told anything are refused before a model is loaded."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import Shell, SmokeRun, read_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm_forgetting.config.sections import ExperimentConfig, OutputConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts import trackers
from llm_forgetting.experiment.publish import _extra
from llm_forgetting.files import from_plain
from llm_forgetting.progress import Silent
from llm_forgetting.results import Results


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_holds_every_training_step_and_the_scores_of_every_checkpoint(shell: Shell) -> None:
    done = shell.run_tiny("--output.trackers", "[tensorboard]")
    assert done.status == 0, done.stdout + done.stderr
    results = read_results(done.folder)
    for k, phase in enumerate(results["training"], start=1):
        told = events(done.folder / "tracking" / f"task{k}").Scalars("train/loss")
        assert [event.step for event in told] == [entry["step"] for entry in phase["log"]]
        np.testing.assert_allclose(
            [event.value for event in told], [entry["loss"] for entry in phase["log"]], rtol=1e-6
        )
    run = events(done.folder / "tracking" / "run")
    accuracies = [row[0]["value"] for row in results["forgetting"]["train"]["accuracy"]["cells"]]
    told = run.Scalars("scores/train/synthetic_1/accuracy")
    assert [event.step for event in told] == [0, 1, 2]
    np.testing.assert_allclose([event.value for event in told], accuracies, rtol=1e-6)
    (lost,) = run.Scalars("forgetting/train/synthetic_1/loss/forgetting")
    assert lost.value == pytest.approx(
        results["forgetting"]["train"]["loss"]["tasks"][0]["absolute"]["value"], rel=1e-6
    )
    again = shell.run("--resume", done.folder)
    assert again.status == 0
    assert len(list((done.folder / "tracking" / "run").iterdir())) == 1  # told once


def test_figures_go_to_a_tracker_that_takes_pictures(smoke_run: SmokeRun, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "landscape_overview.png")
    assert trackers.track(from_plain(Results, smoke_run.results), ["tensorboard"], tmp_path) == ["tensorboard"]
    run = events(tmp_path / "tracking" / "run")
    (image,) = run.Images("landscape_overview")
    assert (image.height, image.width) == (24, 32)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nonsense", "must be names that transformers' Trainer reports to"),
        ("neptune", "needs its package, which is not installed"),
    ],
)
def test_a_tracker_that_cannot_be_told_is_refused_in_one_line(shell: Shell, name: str, complaint: str) -> None:
    done = shell.run_tiny("--output.trackers", f"[{name}]")
    assert complaint in done.complaint
    assert repr(name) in done.complaint


def test_what_fails_after_the_results_are_saved_is_told_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "warn", warned.append)
    _extra("what wandb keeps", lambda: 1 / 0, watcher)
    assert warned == [
        "what wandb keeps could not be written (ZeroDivisionError('division by zero')); all numbers are in results.json"
    ]


def test_trackers_are_no_part_of_what_a_run_computes() -> None:
    assert (
        ExperimentConfig().fingerprint == ExperimentConfig(output=OutputConfig(trackers=("tensorboard",))).fingerprint
    )
    with pytest.raises(UserError, match="nonsense"):
        trackers.require_trackers(["nonsense"])


def test_the_training_folder_of_tensorboard_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    with trackers.training_tracked(tmp_path, "task1"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tracking" / "task1")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    with trackers.training_tracked(tmp_path, "task1"):
        pass
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
