"""Forgetting, transfer and learning from per-item scores, with paired uncertainty.

R[i, j] is the accuracy (or mean loss) of checkpoint i on task j, i = 0 (base) to T, j = 1 to T. Both measures share one
sign convention: positive forgetting is lost, positive learning and positive transfer is gained. For the loss the
formulae are therefore applied to -L, so that forgetting is L[T, j] - L[j, j]. Negative values are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.accuracy_matrix import (
    average_accuracy,
    backward_transfer,
    forgetting_measure,
    forward_transfer,
)
from llm_forgetting.forgetting.clusters import error_of_mean
from llm_forgetting.forgetting.intervals import (
    MINIMUM_ITEMS,
    Interval,
    PairedProportionChange,
    Proportion,
    paired_proportion_change,
    proportion,
)
from llm_forgetting.forgetting.mean_intervals import Mean, PairedMeanChange, estimate_mean, paired_mean_change
from llm_forgetting.forgetting.scores import ItemScores, Measure, ScoreTable, item_mean
from llm_forgetting.forgetting.transitions import Transitions, transitions
from llm_forgetting.seeding import derive_seed

Change = PairedProportionChange | PairedMeanChange

_NOT_FINITE = "some losses are NaN or infinite"


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty. `reason` says why a value, or else its uncertainty, is missing."""

    value: float | None
    stderr: float | None = None
    interval: Interval | None = None
    reason: str | None = None


@dataclass(frozen=True)
class TaskForgetting:
    """What became of task j < T between checkpoint j and the last one; positive = forgotten.

    absolute: R[j, j] - R[T, j], in loss L[T, j] - L[j, j] (nats);
    relative: absolute / R[j, j], in loss absolute / L[j, j]; no value if the denominator is 0;
    normalised: absolute / learning, the share of what was learnt that was lost; no value where nothing was learnt
    (learning <= 0, p > 0.05, or in loss learning below 2 stderr, of several subjects an interval that holds 0);
    change: the paired change from checkpoint j to T as it is measured (after minus before), None for losses that are
    not finite. Stderrs of the ratios are by linearisation: that of d_i - ratio b_i, over |mean b|;
    transitions: in accuracy the items that turned from right to wrong and back, None where their options are not known.
    """

    task: int
    name: str
    n: int
    absolute: Estimate
    relative: Estimate
    normalised: Estimate
    change: Change | None
    transitions: Annotated[Transitions | None, OMITTED] = None


@dataclass(frozen=True)
class TaskLearning:
    """What fine-tuning on task j did to task j: R[j, j] - R[0, j], in loss L[0, j] - L[j, j] (nats); positive = learnt.

    before and after: R[0, j] and R[j, j]; change: the paired change as it is measured (after minus before); shown:
    False where learning is not positive or not distinguishable from 0, by the rule of `TaskForgetting.normalised`.
    """

    task: int
    name: str
    n: int
    before: float
    after: float
    learning: Estimate
    shown: bool
    change: Change | None


@dataclass(frozen=True)
class MeasureForgetting:
    """Every variant of forgetting in one measure.

    cells[i][j - 1]: R[i, j] with its uncertainty; average: mean_j R[T, j];
    backward_transfer: mean_{j<T} (R[T, j] - R[j, j]), Lopez-Paz & Ranzato 2017;
    forgetting_measure: mean_{j<T} (max_{1<=l<T} R[l, j] - R[T, j]), Chaudhry et al. 2018;
    forward_transfer: mean_{j>1} (R[j-1, j] - R[0, j]).
    In loss the average is the mean loss in nats and the others are those of -L. Stderrs combine the tasks as
    independent groups of items, sqrt(sum stderr_j^2) / count; that of the forgetting measure takes the best checkpoint
    l as given.
    """

    measure: Measure
    cells: tuple[tuple[Proportion | Mean, ...], ...]
    tasks: tuple[TaskForgetting, ...]
    learning: tuple[TaskLearning, ...]
    average: Estimate
    backward_transfer: Estimate
    forgetting_measure: Estimate
    forward_transfer: Estimate


@dataclass(frozen=True)
class Forgetting:
    """Forgetting of a run on one split, in accuracy and in loss. `dataclasses.asdict` gives plain JSON types."""

    split: str
    task_names: tuple[str, ...]
    accuracy: MeasureForgetting
    loss: MeasureForgetting


def forgetting(table: ScoreTable, *, seed: int) -> Forgetting:
    """Every variant of forgetting in accuracy and in loss; `seed` only moves the bootstrap intervals of the losses.

    Losses that are NaN or infinite are kept in the values; their uncertainty is None, with the reason.
    """
    # inf - inf is a legitimate NaN here: a diverged checkpoint is reported, not hidden.
    with np.errstate(invalid="ignore"):
        accuracy, loss = _measure(table, "accuracy", seed), _measure(table, "loss", seed)
    return Forgetting(table.split, table.task_names, accuracy, loss)


def _sign(measure: Measure) -> float:
    return 1.0 if measure == "accuracy" else -1.0


def _measure(table: ScoreTable, measure: Measure, seed: int) -> MeasureForgetting:
    T = table.n_tasks
    average, backward, measure_of_maximum, forward = _summaries(table, measure)
    learnt = tuple(_task_learning(table, measure, j, seed) for j in range(1, T + 1))
    return MeasureForgetting(
        measure=measure,
        cells=tuple(tuple(_cell(table, measure, i, j, seed) for j in range(1, T + 1)) for i in range(T + 1)),
        tasks=tuple(_task_forgetting(table, measure, learnt[j - 1], seed) for j in range(1, T)),
        learning=learnt,
        average=average,
        backward_transfer=backward,
        forgetting_measure=measure_of_maximum,
        forward_transfer=forward,
    )


def _cell(table: ScoreTable, measure: Measure, i: int, j: int, seed: int) -> Proportion | Mean:
    cell = table.scores[i, j]
    if measure == "accuracy":
        return proportion(cell.correct)
    if not np.isfinite(cell.loss).all():
        return Mean(item_mean(cell.loss), None, cell.n, None)
    stream = derive_seed(seed, "mean loss", table.split, i, j)
    return estimate_mean(cell.loss, seed=stream, clusters=cell.subjects)


def _change(table: ScoreTable, measure: Measure, j: int, steps: tuple[int, int], seed: int) -> Change | None:
    x, y = (table.scores[i, j] for i in steps)
    if measure == "accuracy":
        return paired_proportion_change(x.correct, y.correct, clusters=x.subjects)
    if not (np.isfinite(x.loss).all() and np.isfinite(y.loss).all()):
        return None
    stream = derive_seed(seed, "loss change", table.split, j, *steps)
    return paired_mean_change(x.loss, y.loss, seed=stream, clusters=x.subjects)


def _signed(change: Change | None, sign: float, value: float) -> Estimate:
    if change is None:
        return Estimate(value, reason=_NOT_FINITE)
    interval = None if change.interval is None else change.interval if sign > 0 else -change.interval
    reason = f"fewer than {MINIMUM_ITEMS} items: no interval" if interval is None else None
    return Estimate(0.0 + sign * change.value, change.stderr, interval, reason)


def _task_learning(table: ScoreTable, measure: Measure, j: int, seed: int) -> TaskLearning:
    base, tuned = table.scores[0, j], table.scores[j, j]
    before, after = item_mean(base.values(measure)), item_mean(tuned.values(measure))
    change = _change(table, measure, j, (0, j), seed)
    estimate = _signed(change, _sign(measure), _sign(measure) * (after - before))
    return TaskLearning(
        j, table.task_names[j - 1], base.n, before, after, estimate, _is_learning_shown(estimate, change), change
    )


def _is_learning_shown(estimate: Estimate, change: Change | None) -> bool:
    if change is None or estimate.value is None or estimate.value <= 0:
        return False
    if isinstance(change, PairedProportionChange):
        return change.p_value <= 0.05
    if change.clustered_stderr is not None and estimate.interval is not None:
        return estimate.interval.low > 0
    return change.stderr is not None and estimate.value >= 2 * change.stderr


def _task_forgetting(table: ScoreTable, measure: Measure, learnt: TaskLearning, seed: int) -> TaskForgetting:
    j, sign = learnt.task, _sign(measure)
    base, tuned, last = (table.scores[i, j].values(measure) for i in (0, j, table.n_tasks))
    change = _change(table, measure, j, (j, table.n_tasks), seed)
    lost = sign * (tuned - last)
    if change is None:
        relative = normalised = Estimate(None, reason=_NOT_FINITE)
    else:
        subjects = table.scores[0, j].subjects
        relative = _ratio(lost, tuned, subjects, f"{measure} after fine-tuning on the task is 0")
        normalised = _ratio(lost, sign * (tuned - base), subjects, "") if learnt.shown else _refused(learnt)
    absolute = _signed(change, -sign, item_mean(lost))
    turned = _transitions(table.scores[j, j], table.scores[table.n_tasks, j]) if measure == "accuracy" else None
    return TaskForgetting(j, learnt.name, learnt.n, absolute, relative, normalised, change, turned)


def _transitions(tuned: ItemScores, last: ItemScores) -> Transitions | None:
    if not tuned.options:
        return None
    return transitions(tuned.correct, last.correct, tuned.options, clusters=tuned.subjects)


def _refused(learnt: TaskLearning) -> Estimate:
    if learnt.change is None:
        return Estimate(None, reason=_NOT_FINITE)
    amount = learnt.learning.value
    why = "learning is not positive" if amount is None or amount <= 0 else "learning is not distinguishable from 0"
    return Estimate(None, reason=f"nothing was learnt that could be forgotten: {why}")


def _ratio(numerators: Floats, denominators: Floats, subjects: Sequence[str], reason_if_zero: str) -> Estimate:
    denominator = item_mean(denominators)
    if denominator == 0:
        return Estimate(None, reason=reason_if_zero)
    ratio = item_mean(numerators) / denominator
    residual = error_of_mean(numerators - ratio * denominators, subjects)
    return Estimate(0.0 + ratio, None if residual is None else residual / abs(denominator))


def _summaries(table: ScoreTable, measure: Measure) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Average, backward transfer, forgetting measure, forward transfer."""
    T, matrix = table.n_tasks, table.matrix(measure)
    subjects = [table.scores[0, j].subjects for j in range(1, T + 1)]
    average = _combined(
        average_accuracy(matrix), [table.scores[T, j].values(measure) for j in range(1, T + 1)], subjects
    )
    if T == 1:
        missing = Estimate(None, reason="needs at least two tasks")
        return average, missing, missing, missing
    gains = _sign(measure) * matrix
    best = 1 + gains[1:-1].argmax(axis=0)

    def difference(j: int, i: int, k: int) -> Floats:
        return table.scores[k, j].values(measure) - table.scores[i, j].values(measure)

    return (
        average,
        _combined(backward_transfer(gains), [difference(j, j, T) for j in range(1, T)], subjects),
        _combined(forgetting_measure(gains), [difference(j, int(best[j - 1]), T) for j in range(1, T)], subjects),
        _combined(forward_transfer(gains), [difference(j, 0, j - 1) for j in range(2, T + 1)], subjects[1:]),
    )


def _combined(value: float, groups: Sequence[Floats], subjects: Sequence[Sequence[str]]) -> Estimate:
    if not all(np.isfinite(group).all() for group in groups):
        return Estimate(value, reason=_NOT_FINITE)
    known = [error_of_mean(group, own) for group, own in zip(groups, subjects, strict=False)]
    stderrs = [stderr for stderr in known if stderr is not None]
    if len(stderrs) < len(groups):
        return Estimate(value, reason="a task has only one item")
    return Estimate(value, math.hypot(*stderrs) / len(groups))
