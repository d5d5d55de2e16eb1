"""Scores of items by checkpoint and task: the matrix R[i, j] with its items."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats

Measure = Literal["accuracy", "loss"]
MEASURES: tuple[Measure, ...] = ("accuracy", "loss")

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, eq=False)
class ItemScores:
    """One checkpoint's scores on one task's items of one split.

    ids and subjects: n strings; correct: bool (n,); loss: float64 (n,), full-vocabulary loss in nats, NaN and infinity
    kept; options: n numbers of options, 0 for completions, or none where they are not known. The arrays are copied and
    read-only. Raises ValueError for unequal lengths, no items or repeated ids.
    """

    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]
    options: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "subjects", tuple(self.subjects))
        object.__setattr__(self, "correct", np.array(self.correct, dtype=np.bool_))
        object.__setattr__(self, "loss", np.array(self.loss, dtype=np.float64))
        self.correct.flags.writeable = self.loss.flags.writeable = False
        lengths = (len(self.ids), len(self.subjects), *self.correct.shape, *self.loss.shape)
        if len(lengths) != 4 or len(set(lengths)) != 1 or not self.ids:
            raise ValueError(f"ids, subjects, correct and loss must hold one entry per item, got {lengths}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("item ids must be unique within a task")

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.ids)

    def values(self, measure: Measure) -> Floats:
        """(n,) 0 or 1 per item for the accuracy, else the losses in nats."""
        return self.correct.astype(np.float64) if measure == "accuracy" else self.loss


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """All scores of one split: (checkpoint i in 0..T, task j in 1..T) -> `ItemScores`, T = len(task_names).

    Raises ValueError if a cell is missing or foreign, or if the checkpoints of a task do not hold the same items in the
    same order.
    """

    scores: Mapping[tuple[int, int], ItemScores]
    task_names: tuple[str, ...]
    split: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", MappingProxyType(dict(self.scores)))
        object.__setattr__(self, "task_names", tuple(self.task_names))
        expected = {(i, j) for i in range(self.n_tasks + 1) for j in range(1, self.n_tasks + 1)}
        if not expected or set(self.scores) != expected:
            wrong = sorted(expected ^ set(self.scores))
            raise ValueError(f"scores must hold every (checkpoint 0..T, task 1..T) for T = {self.n_tasks}: {wrong}")
        for (i, j), cell in self.scores.items():
            base = self.scores[0, j]
            if cell.ids != base.ids or cell.subjects != base.subjects:
                raise ValueError(f"checkpoints 0 and {i} must hold the same items of task {j} in the same order")

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.task_names)

    def matrix(self, measure: Measure) -> Floats:
        """R or L, shape (T + 1, T), base row first: the share of right answers, or the mean full-vocabulary loss in nats.

        Losses that are NaN or infinite are kept.
        """
        matrix = np.empty((self.n_tasks + 1, self.n_tasks))
        for (i, j), cell in self.scores.items():
            matrix[i, j - 1] = item_mean(cell.values(measure))
        return matrix


def item_mean(values: Floats) -> float:
    """Mean of values (n,), NaN where infinities of both signs meet."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))
