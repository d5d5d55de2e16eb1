"""The learning-forgetting frontier of one fine-tuning: what was forgotten by the time that so much was learnt.

At fractions f = 0, ..., 1 of the training on a new task, the new task and an old one are scored on fixed items. In accuracy
(a share) and in loss (nats, with its sign turned)

    learning(f) = S_new(f) - S_new(0),        forgetting(f) = S_old(0) - S_old(f),

and the frontier is the polygon through the points (learning(f), forgetting(f)) in the order of f. Two methods that learnt
the new task to different ends can be compared on it where both learnt alike.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from llm_forgetting.arrays import Bools2, Floats, Floats2
from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.intervals import LEVEL, MINIMUM_ITEMS, Interval
from llm_forgetting.forgetting.scores import Measure, Split
from llm_forgetting.seeding import generator

RESAMPLES = 1_999


@dataclass(frozen=True, eq=False)
class TaskScoresDuring:
    """One task's scores at points of a training, of the `items` named: correct and loss (nats), (points, items).

    Losses of completions are weighted as R's: their mean is the task's mean loss.
    """

    task: str
    items: tuple[str, ...]
    correct: Bools2
    loss: Floats2

    def gains(self, measure: Measure) -> Floats:
        """(points, items), larger is better: 0 and 1, or minus the losses."""
        return self.correct.astype(np.float64) if measure == "accuracy" else -self.loss


@dataclass(frozen=True, eq=False)
class ScoresDuring:
    """Scores at points of the training on the last of `tasks`, earlier ones first; `steps` were done of `total` by then.

    The items are those of `split`, the same at every point. `moved`: the last point is from after a method had moved the
    model when the training was over (a merge, an interpolation), so that the training itself ends with the point before.
    `probes`: the same of what is never trained on, None without.
    """

    split: Split
    total: int
    steps: tuple[int, ...]
    tasks: tuple[TaskScoresDuring, ...]
    moved: Annotated[bool | None, OMITTED] = None
    probes: Annotated[tuple[TaskScoresDuring, ...] | None, OMITTED] = None

    @property
    def old(self) -> tuple[TaskScoresDuring, ...]:
        """What can be forgotten: earlier tasks, and probes."""
        return (*self.tasks[:-1], *(self.probes or ()))

    def gains(self, task: TaskScoresDuring, measure: Measure) -> tuple[Floats, Floats]:
        """Of the task that is learnt and of `task` at the points of the training itself, (points, items)."""
        end = -1 if self.moved else None
        return self.tasks[-1].gains(measure)[:end], task.gains(measure)[:end]

    def frontier(self, task: TaskScoresDuring, measure: Measure) -> "Frontier":
        """The frontier of the task that is learnt and an earlier one, of the training itself."""
        return frontier(*self.gains(task, measure))

    def end(self, task: TaskScoresDuring, measure: Measure) -> tuple[float, float]:
        """What was learnt and forgotten in the end."""
        ends = frontier(self.tasks[-1].gains(measure), task.gains(measure))
        return float(ends.learning[-1]), float(ends.forgetting[-1])


@dataclass(frozen=True, eq=False)
class Frontier:
    """Learning and forgetting, arrays (..., points), of points in the order of training; the first point is (0, 0).

    Leading axes are those of resamples.
    """

    learning: Floats
    forgetting: Floats

    def __post_init__(self) -> None:
        if self.learning.shape != self.forgetting.shape or self.learning.ndim < 1 or self.learning.shape[-1] < 2:
            raise ValueError(
                f"a frontier needs as many values of learning as of forgetting, two or more, got "
                f"{self.learning.shape} and {self.forgetting.shape}"
            )

    @property
    def reached(self) -> Floats:
        """The most that was learnt at any point, shape (...)."""
        return np.asarray(self.learning.max(axis=-1))

    def forgetting_at(self, learning: float) -> Floats:
        """Forgetting where the polygon first reaches `learning`, shape (...); NaN where it never does.

        0 for a learning of 0 or less: nothing was trained yet.
        """
        found = np.where(learning <= 0, 0.0, np.full(self.learning.shape[:-1], np.nan))
        for n in range(1, self.learning.shape[-1]):
            before, after = self.learning[..., n - 1], self.learning[..., n]
            crosses = np.isnan(found) & (before < learning) & (after >= learning)
            share = (learning - before) / np.where(crosses, after - before, 1.0)
            lost, more = self.forgetting[..., n - 1], self.forgetting[..., n]
            found = np.where(crosses, lost + share * (more - lost), found)
        return found

    def area(self, learning: float) -> Floats:
        """Mean of `forgetting_at` over 0 to `learning` > 0, exact for the polygon, shape (...); NaN where it ends before.

        It has forgetting's unit; less is better. Where learning goes back, the polygon counts again from where it passes the
        most that was learnt before.
        """
        if learning <= 0:
            raise ValueError(f"an area needs a learning above 0, got {learning}")
        total, most = np.zeros(self.learning.shape[:-1]), np.zeros(self.learning.shape[:-1])
        for n in range(1, self.learning.shape[-1]):
            before, after = self.learning[..., n - 1], self.learning[..., n]
            end = np.minimum(after, learning)
            new = end > most
            slope = np.where(new, self.forgetting[..., n] - self.forgetting[..., n - 1], 0.0)
            slope = slope / np.where(new, after - before, 1.0)
            middle = self.forgetting[..., n - 1] + slope * ((most + end) / 2 - before)
            total = np.where(new, total + (end - most) * middle, total)
            most = np.where(new, end, most)
        return np.where(most >= learning, total / learning, np.nan)


@dataclass(frozen=True)
class MatchedForgetting:
    """Forgetting of an old task where `learning` of the new one was reached, and the mean of it up to there (`area`).

    The interval is that of resampled items of both tasks (percentiles); None below 40 items of either task, and where more than
    one in forty of the resamples never learns so much.
    """

    learning: float
    forgetting: float
    area: float
    interval: Interval | None


def frontier(new: Floats, old: Floats) -> Frontier:
    """The frontier of scores (points, items) of the new and the old task, larger is better, in the order of training."""
    return _frontier(np.mean(new, axis=1), np.mean(old, axis=1))


def _frontier(new: Floats, old: Floats) -> Frontier:
    return Frontier(new - new[..., :1], old[..., :1] - old)


def matched_forgetting(new: Floats, old: Floats, learning: float, *, seed: int) -> MatchedForgetting | None:
    """Forgetting at matched learning, within one training.

    Args:
        new: Scores (points, items) of the new task, larger is better: 0 and 1, or minus the losses.
        old: Of the old task, at the same points.
        learning: How much of the new task is to be learnt, above 0, in the unit of `new`.
        seed: Seeds the resampling of items.

    Returns:
        What was forgotten by then; None where the training never learnt so much.
    """
    measured = frontier(new, old)
    value = float(measured.forgetting_at(learning))
    if np.isnan(value):
        return None
    interval = None
    if min(new.shape[1], old.shape[1]) >= MINIMUM_ITEMS:
        rng = generator(seed, "frontier")
        resampled = _frontier(*(_resampled_means(scores, rng) for scores in (new, old))).forgetting_at(learning)
        known = resampled[~np.isnan(resampled)]
        if known.size >= RESAMPLES * (1 - (1 - LEVEL) / 2):
            low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            interval = Interval(float(low), float(high), method=f"bootstrap over items, {RESAMPLES} resamples")
    return MatchedForgetting(learning, value, float(measured.area(learning)), interval)


def _resampled_means(scores: Floats, rng: np.random.Generator) -> Floats:
    """(resamples, points): means of scores (points, items) over items drawn with replacement, the same at all points."""
    items = scores.shape[1]
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=RESAMPLES)
    return np.asarray(drawn @ scores.T / items)
