"""A mean, or any fit, over runs that come in task pairs: the first task is the unit of replication.

Pairs that share a first task share its checkpoints, so that their numbers are alike; where no two pairs share one, the units
are the pairs. Below `MINIMUM_PAIRS` units there is no interval and no p-value: the least p-value of a sign-flip test of k units
is 2 / 2^k, which reaches 0.05 at k = 6.

Coverage at nominal 0.95 with 6 / 8 / 12 pairs of 8 runs, intra-class correlation 0.5 (benchmarks/study_statistics.py): a
mean of normal values 0.953 / 0.939 / 0.956, of log-normal ones 0.884 / 0.885 / 0.912 (take logarithms of what spans orders
of magnitude); the slope of a calibration 0.956 (6 pairs) and 0.956 (12); an effect at matched learning 0.927 and 0.948.
Sign-flip tests of means reject in 3.1% / 5.7% / 4.5% of studies without an effect.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from llm_forgetting.arrays import ROUNDING, standard_error
from llm_forgetting.forgetting.intervals import LEVEL, Interval
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.study.statistics.permutation import PermutationTest, sign_flip
from llm_forgetting.study.statistics.power import POWER
from llm_forgetting.study.statistics.runs import TASK_PAIR, Floats, Indices, Run, columns, unit_of

MINIMUM_PAIRS = 6


def too_few(unit: str) -> str:
    """Why there is neither interval nor p-value over so few units."""
    return f"fewer than {MINIMUM_PAIRS} {unit}s: no interval, no p-value"


@dataclass(frozen=True)
class MeanOverPairs:
    """The mean over units (task pairs, or first tasks) of the mean over each unit's runs, so that every unit counts once.

    stderr: sd of the unit means / sqrt(n_units), None for one unit; interval: Student's t with n_units - 1 degrees of
    freedom; test: signs flipped per unit; share_positive: of the runs, beyond rounding; detectable: about the mean that
    is seen with 80% power, (t_(97.5%) + t_(80%)) stderr; excluded: runs left out; reason: why interval,
    test and detectable are None.
    """

    value: float
    stderr: float | None
    interval: Interval | None
    test: PermutationTest | None
    n_runs: int
    n_pairs: int
    share_positive: float
    detectable: float | None
    excluded: int = 0
    reason: str | None = None
    unit: str = TASK_PAIR
    n_units: int = 0


def mean_over_pairs(
    values: Floats, pairs: Indices, *, seed: int, excluded: int = 0, first_tasks: Indices | None = None
) -> MeanOverPairs:
    """The mean of values (n,) of runs in pairs (n,), each unit counting once. Raises ValueError without values.

    first_tasks: (n,), the units; without them every pair has its own.
    """
    if values.size == 0:
        raise ValueError("no run has the numbers asked for")
    units = pairs if first_tasks is None else first_tasks
    unit = unit_of(pairs, units)
    means = np.array([values[units == label].mean() for label in np.unique(units)])
    k, value, positive = means.size, float(means.mean()), float((values > ROUNDING).mean())
    stderr = standard_error(means)
    mean = MeanOverPairs(
        value, stderr, None, None, values.size, np.unique(pairs).size, positive, None, excluded, None, unit, k
    )
    if stderr is None or k < MINIMUM_PAIRS:
        p = sign_flip(means, seed=seed).p_value
        return replace(mean, reason=f"{too_few(unit)} (signs flipped over {k} would give {p:#.2g})")
    detectable = (_t_quantile(k) + float(stats.t.ppf(POWER, k - 1))) * stderr
    interval = _t_interval(value, stderr, k, f"Student t of the means of {unit}s")
    return replace(mean, interval=interval, test=sign_flip(means, seed=seed), detectable=detectable)


def change_over_runs(runs: Sequence[Run], before: str, after: str, *, seed: int) -> MeanOverPairs:
    """`after` less `before` in every run that has both: how a number changes with a new task.

    For a number that spans orders of magnitude give its logarithm: the change is then that of its ratio.
    """
    data = columns(runs, [before, after])
    change = data.values[:, 1] - data.values[:, 0]
    return mean_over_pairs(change, data.pairs, seed=seed, excluded=data.excluded, first_tasks=data.first_tasks)


def fit_over_pairs(
    fit: Callable[[Indices], Sequence[float]], units: Indices, *, unit: str = TASK_PAIR
) -> tuple[Estimate, ...]:
    """The numbers that `fit` computes from the runs with the given indices, each with an interval.

    Jackknife over k units: stderr^2 = (k - 1) / k sum_j (theta_(-j) - mean)^2, theta_(-j) without unit j, and
    theta +- t_(k - 1) stderr. Errors of runs of one unit may depend on one another in any way. A number that is not
    finite, with all units or without one of them, has no interval.
    """
    whole = [float(number) for number in fit(np.arange(units.size))]
    labels = np.unique(units)
    if labels.size < MINIMUM_PAIRS:
        return tuple(Estimate(value, reason=too_few(unit)) for value in whole)
    without = np.array([fit(np.flatnonzero(units != label)) for label in labels], dtype=np.float64)
    return tuple(_jackknifed(value, column, unit) for value, column in zip(whole, without.T, strict=True))


def _jackknifed(value: float, without: Floats, unit: str) -> Estimate:
    k = without.size
    if not (math.isfinite(value) and np.isfinite(without).all()):
        return Estimate(value if math.isfinite(value) else None, reason=f"not defined without every {unit}")
    stderr = math.sqrt((k - 1) / k * float(((without - without.mean()) ** 2).sum()))
    return Estimate(value, stderr, _t_interval(value, stderr, k, f"jackknife over {unit}s, Student t"))


def _t_interval(value: float, stderr: float, k: int, method: str) -> Interval:
    half_width = _t_quantile(k) * stderr
    return Interval(value - half_width, value + half_width, method=method)


def _t_quantile(k: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, k - 1))
