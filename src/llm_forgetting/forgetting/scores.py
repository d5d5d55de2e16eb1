"""Scores of items by checkpoint and task: the matrix R[i, j] with its items."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["accuracy", "loss"]

_Matrix = NDArray[np.float64]

SPLITS = ("train", "test")

Record = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ItemScores:
    """One checkpoint's scores on one task's items of one split.

    ids and subjects: n strings; correct: bool (n,); loss: float64 (n,), full-vocabulary loss in nats, NaN and infinity
    kept. The arrays are copied and read-only. Raises ValueError for unequal lengths, no items or repeated ids.
    """

    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]

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
        return len(self.ids)


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
        return len(self.task_names)

    def accuracy_matrix(self) -> _Matrix:
        """R, shape (T + 1, T), base row first: the share of right answers."""
        return self._matrix("accuracy")

    def loss_matrix(self) -> _Matrix:
        """L, shape (T + 1, T), base row first: the mean full-vocabulary loss in nats; NaN and infinity kept."""
        return self._matrix("loss")

    def _matrix(self, measure: Measure) -> _Matrix:
        matrix = np.empty((self.n_tasks + 1, self.n_tasks))
        for (i, j), cell in self.scores.items():
            matrix[i, j - 1] = _mean(_values(cell, measure))
        return matrix


def _mean(values: _Matrix) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))


def _values(cell: ItemScores, measure: Measure) -> _Matrix:
    return cell.correct.astype(np.float64) if measure == "accuracy" else cell.loss


def score_table(
    records: Iterable[Record], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> ScoreTable:
    """The per-item records of one split as the input of `forgetting`."""
    cells: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        if record["split"] == split and record["checkpoint"] in checkpoints:
            cell = checkpoints.index(record["checkpoint"]), task_names.index(record["task"]) + 1
            cells.setdefault(cell, []).append(record)
    scores = {
        cell: ItemScores(
            ids=tuple(record["id"] for record in found),
            subjects=tuple(record["subject"] for record in found),
            correct=np.array([record["correct"] for record in found], dtype=np.bool_),
            loss=np.array([float(record["loss"]) for record in found]),
        )
        for cell, found in cells.items()
    }
    return ScoreTable(scores, tuple(task_names), split)


def letter_mass_matrix(
    records: Iterable[Record], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> list[list[float]]:
    """Mean probability of the option letters together, [checkpoint][task], from the items' letter logits and rest."""
    cells: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["split"] == split:
            z, rest = (np.asarray(record[key], dtype=np.float64) for key in ("letter_logits", "rest"))
            letters = np.logaddexp.reduce(z)
            mass = float(np.exp(letters - np.logaddexp(letters, rest)))
            cells.setdefault((record["checkpoint"], record["task"]), []).append(mass)
    return [[float(np.mean(cells[checkpoint, task])) for task in task_names] for checkpoint in checkpoints]
