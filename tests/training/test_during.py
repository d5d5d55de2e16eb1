"""Scores during a training: what they must equal, what they must not change, and what a kill must not lose."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from killing import Killed, KillingProgress

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.measurements import EvaluationConfig
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.experiment import train
from llm_forgetting.experiment.session import Session
from llm_forgetting.models.language.scoring import score_tasks
from llm_forgetting.progress import Silent
from llm_forgetting.results import TrainingRecord
from llm_forgetting.training.during import SHARE, items_during, steps_during

pytestmark = pytest.mark.usefixtures("one_thread")

DURING = ["--evaluation.during=4", "--evaluation.during_items=6"]


def config(*arguments: str) -> ExperimentConfig:
    """Two epochs of the toy, at a constant rate, so that one epoch alone is the first half of both."""
    settings = [
        "--training.num_epochs=2",
        "--training.lr_scheduler=constant",
        "--lora.dropout=0.2",
        "--data.train_items=40",
    ]
    return parse_config("smoke", [*settings, *arguments])


def trained(folder: Path, *arguments: str, until: int = 2) -> tuple[Session, list[TrainingRecord]]:
    folder.mkdir(exist_ok=True)
    session = Session(config(*arguments), folder, Silent())
    return session, [train(session, k) for k in range(1, until + 1)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, list[TrainingRecord]]:
    """Both trainings, scored at five points."""
    return trained(tmp_path_factory.mktemp("scored"), *DURING)


def test_fractions_and_items_follow_from_the_settings() -> None:
    assert steps_during(8, 36) == [0, 4, 9, 14, 18, 22, 27, 32, 36]
    assert steps_during(8, 3) == [0, 1, 2, 3]
    assert items_during(EvaluationConfig(during=4, during_items=6), 2, 36, 1000) == 6
    # 5 points of 2 tasks: 10 n forward passes of 3,000 that the training is worth
    assert items_during(EvaluationConfig(during=4), 2, 36, 1000) == int(SHARE * 3000 / 10)
    assert items_during(EvaluationConfig(during=4), 2, 36, 1) == 1


def test_scores_are_those_of_the_checkpoints(scored: tuple[Session, list[TrainingRecord]], tmp_path: Path) -> None:
    """The first point is the checkpoint before, the last the one after; half of two epochs is one epoch."""
    session, records = scored
    once, _ = trained(tmp_path / "once", "--training.num_epochs=1", until=1)
    steps = records[0].optimizer_steps
    assert records[0].during is not None
    assert records[0].during.steps == tuple(round(n * steps / 4) for n in range(5))
    for record, before, after in zip(records, (0, 1), (1, 2), strict=True):
        during = record.during
        assert during is not None
        assert (during.split, during.total) == ("test", steps)
        assert [task.task for task in during.tasks] == list(session.config.data.tasks[:after])
        for task in during.tasks:
            (encoded,) = [each for each in session.encoded if each.name == task.task]
            items = [item for item in encoded.test if item.item.id in task.items]
            assert [item.item.id for item in items] == list(task.items)
            assert len(items) == 6
            points = [(session, before, 0), (session, after, -1)]
            for where, checkpoint, point in [*points, *([(once, 1, 2)] if after == 1 else [])]:
                (expected,) = score_tasks(where.at(checkpoint), [items], session.config.evaluation.batch_size)
                np.testing.assert_array_equal(task.correct[point], expected.correct)
                np.testing.assert_allclose(task.loss[point], expected.weighted_losses, rtol=0, atol=1e-6)


def test_a_training_is_the_same_with_and_without(scored: tuple[Session, list[TrainingRecord]], tmp_path: Path) -> None:
    _, plain = trained(tmp_path / "plain")
    for record, other in zip(scored[1], plain, strict=True):
        assert other.during is None
        assert (record.adapter_sha256, record.log) == (other.adapter_sha256, other.log)


def test_a_method_that_moves_the_model_adds_a_point(
    scored: tuple[Session, list[TrainingRecord]], tmp_path: Path
) -> None:
    """The training is plain training's, one more point is the interpolated checkpoint, and the frontier ends before it."""
    session, records = trained(tmp_path / "moved", *DURING, "--training.methods.interpolate.share=0.5")
    plain, during = scored[1][1].during, records[1].during
    assert plain is not None
    assert during is not None
    assert (during.moved, plain.moved) == (True, None)
    assert during.steps == (*plain.steps, plain.total)
    for task, other in zip(during.tasks, plain.tasks, strict=True):
        np.testing.assert_array_equal(task.loss[:-1], other.loss)
        (encoded,) = [each for each in session.encoded if each.name == task.task]
        items = [item for item in encoded.test if item.item.id in task.items]
        (expected,) = score_tasks(session.at(2), [items], session.config.evaluation.batch_size)
        np.testing.assert_allclose(task.loss[-1], expected.weighted_losses, rtol=0, atol=1e-6)
    path, other = (each.frontier(each.tasks[0], "loss") for each in (during, plain))
    np.testing.assert_array_equal(path.forgetting, other.forgetting)
    learning, forgetting = during.end(during.tasks[0], "loss")
    assert learning == pytest.approx(-during.tasks[1].loss[-1].mean() + during.tasks[1].loss[0].mean())
    assert forgetting == pytest.approx(during.tasks[0].loss[-1].mean() - during.tasks[0].loss[0].mean())


def test_forgetting_counts_from_the_checkpoint_before_whatever_a_method_begins_with(
    scored: tuple[Session, list[TrainingRecord]], tmp_path: Path
) -> None:
    """A fresh adapter per task begins at the base model; the first point is the checkpoint after task 1 all the same."""
    _, records = trained(tmp_path / "fresh", *DURING, "--training.methods.new_adapter={}")
    plain, during = scored[1][1].during, records[1].during
    assert plain is not None
    assert during is not None
    for task, other in zip(during.tasks, plain.tasks, strict=True):
        assert task.items == other.items
        np.testing.assert_array_equal(task.loss[0], other.loss[0])
        assert not np.array_equal(task.loss[-2], other.loss[-1])


def test_items_are_the_same_in_every_training(scored: tuple[Session, list[TrainingRecord]]) -> None:
    first, second = (record.during for record in scored[1])
    assert first is not None
    assert second is not None
    assert first.tasks[0].items == second.tasks[0].items


def test_a_kill_loses_no_point(scored: tuple[Session, list[TrainingRecord]], tmp_path: Path) -> None:
    session, (_, expected) = scored
    shutil.copytree(session.folder, tmp_path / "killed")
    with pytest.raises(Killed):
        train(Session(session.config, tmp_path / "killed", KillingProgress(expected.optimizer_steps - 1)), 2)
    found = train(Session(session.config, tmp_path / "killed", Silent()), 2)
    assert found.adapter_sha256 == expected.adapter_sha256
    assert found.during is not None
    assert expected.during is not None
    for task, other in zip(found.during.tasks, expected.during.tasks, strict=True):
        np.testing.assert_array_equal(task.loss, other.loss)
