"""Views of what was learnt and forgotten at fractions of a training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats, standard_error
from llm_forgetting.forgetting.frontier import MatchedForgetting, ScoresDuring, TaskScoresDuring, matched_forgetting
from llm_forgetting.forgetting.scores import MEASURES, Measure
from llm_forgetting.report.tables.words import measure_name
from llm_forgetting.results import Results

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the most that was learnt at which forgetting is read off."""


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Mean loss (nats) of a task at `fractions` of a training, with stderr over its items (None for a single one)."""

    task: str
    fractions: Floats
    loss: Floats
    stderr: Floats | None


@dataclass(frozen=True, eq=False)
class FrontierView:
    """What was learnt of one task and forgotten of an earlier one, with standard errors of the paired changes over items."""

    learnt: str
    forgotten: str
    measure: Measure
    learning: Floats
    forgetting: Floats
    learning_stderr: Floats | None
    forgetting_stderr: Floats | None
    matched: tuple[MatchedForgetting, ...]
    items: tuple[int, int]
    named: str
    """What the measure is called."""
    end: tuple[float, float]
    """Learnt and forgotten in the end."""
    moved: bool
    """Whether a method moved the model to the end when the training was over."""


def learning_curves(during: ScoresDuring) -> list[LearningCurve]:
    """A curve per task and probe that was scored, that of the task that is learnt last."""
    fractions = np.array(during.steps) / during.total
    return [
        LearningCurve(task.task, fractions, task.loss.mean(axis=1), _stderrs(task.loss))
        for task in (*during.old, during.tasks[-1])
    ]


def frontier_views(results: Results) -> Iterator[FrontierView]:
    """Accuracy and loss of every earlier task and probe in every training that was scored."""
    for training in results.training:
        if training.during is not None:
            for task in training.during.old:
                for measure in MEASURES:
                    name = measure_name(results) if measure == "accuracy" else measure
                    yield _view(training.during, task, measure, name, results.config.data.seed)


def _view(during: ScoresDuring, task: TaskScoresDuring, measure: Measure, name: str, seed: int) -> FrontierView:
    (new, old), polygon = during.gains(task, measure), during.frontier(task, measure)
    most = float(polygon.reached)
    matched = [matched_forgetting(new, old, level * most, seed=seed) for level in LEVELS] if most > 0 else []
    return FrontierView(
        learnt=during.tasks[-1].task,
        forgotten=task.task,
        measure=measure,
        learning=polygon.learning,
        forgetting=polygon.forgetting,
        learning_stderr=_stderrs(new - new[:1]),
        forgetting_stderr=_stderrs(old[:1] - old),
        matched=tuple(found for found in matched if found is not None),
        items=(new.shape[1], old.shape[1]),
        named=name,
        end=during.end(task, measure),
        moved=bool(during.moved),
    )


def _stderrs(values: Sequence[Floats] | Floats) -> Floats | None:
    """Of the mean of every row."""
    found = [standard_error(row) for row in values]
    return None if None in found else np.array(found)
