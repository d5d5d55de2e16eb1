"""Proportions, means and their paired changes, each with the uncertainty that holds up at the sizes met here.

Which interval, and why (coverage of nominal 95% intervals, measured for this project and pinned by tests):

- one accuracy: Wilson's score interval;
- paired change in accuracy: Bonett & Price's adjusted interval. Its exact coverage for n = 40 to 200 and 0.5% to 90%
  discordant pairs is at least 0.937 (0.929 at one point of a grid 20 times as fine). Newcombe's method 10 falls to
  0.884 (n = 100, 2% discordant pairs, all of them losses, accuracy near one half), Tango's score interval to 0.911;
- mean loss and its paired change: at each end the farther of the studentised bootstrap (bootstrap-t) and of Student's t
  corrected for skewness (Hall's transformation). At n = 40 it covers 0.953 for exponential, 0.948 for gamma(1/2) and
  0.927 for log-normal(1) differences (bootstrap-t alone 0.951, 0.942, 0.919; Student's t 0.931, 0.918, 0.896). If one item
  in ten carries the whole change, by such amounts, it covers 0.924, 0.877 and 0.931 (bootstrap-t alone 0.808, 0.775,
  0.809); if three in a hundred do, 0.62 (0.54 to 0.60): in three samples of ten none of the 40 items is one of those.
- items of several subjects: Student's t over the subjects, see `pooled_error`.

Below `MINIMUM_ITEMS` no interval is given: at n = 10 simple intervals cover down to 0.39.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.clusters import PooledError, cluster_stderr, error_of_mean, pooled_error

MINIMUM_ITEMS = 40
"""Fewest items for an interval or a verdict; below it only counts are reported."""

LEVEL = 0.95

_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval [low, high] with the name of its construction."""

    low: float
    high: float
    level: float = LEVEL
    method: str = field(kw_only=True)

    def __neg__(self) -> "Interval":
        """The interval of the quantity with its sign turned."""
        return Interval(0.0 - self.high, 0.0 - self.low, self.level, method=self.method)


@dataclass(frozen=True)
class Proportion:
    """`correct` of `n` items.

    value = correct / n; stderr = sd / sqrt(n) of the 0/1 scores with divisor n - 1, the convention of
    lm-evaluation-harness (None for one item); interval: Wilson, None below `MINIMUM_ITEMS`.
    """

    correct: int
    n: int
    interval: Interval | None
    value: float
    stderr: float | None


@dataclass(frozen=True)
class PairedProportionChange:
    """Accuracy after minus accuracy before on the same `n` items.

    both + only_before + only_after + neither = n count the items that are right at both times, one of them, neither.
    value = (only_after - only_before) / n; stderr = sd(d_i) / sqrt(n) of d_i = after_i - before_i, None for one item;
    interval: Bonett & Price, None below `MINIMUM_ITEMS`; p_value: exact McNemar, two-sided, valid at any n;
    clustered_stderr: see `cluster_stderr`, None without at least two clusters. Of items of several subjects stderr,
    interval and p_value are those of `pooled_error` and Student's t.
    """

    n: int
    both: int
    only_before: int
    only_after: int
    neither: int
    value: float
    stderr: float | None
    interval: Interval | None
    p_value: float
    clustered_stderr: float | None


def wilson(correct: int, n: int) -> Interval:
    """Wilson's score interval (1927) for one proportion, at 95%.

    Raises ValueError unless 0 <= correct <= n and n >= 1.
    """
    _require_counts(correct, n - correct)
    limits = stats.binomtest(correct, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return Interval(float(limits.low), float(limits.high), method="Wilson score")


def proportion(correct: ArrayLike) -> Proportion:
    """The share of true values in a 0/1 array of shape (n,), with Wilson's interval from `MINIMUM_ITEMS` on."""
    scores = _as_bools(correct, "correct")
    count, n = int(scores.sum()), scores.size
    value, interval = count / n, wilson(count, n) if n >= MINIMUM_ITEMS else None
    return Proportion(count, n, interval, value, math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None)


def bonett_price_paired(only_before: int, only_after: int, n: int) -> Interval:
    """Bonett & Price's adjusted interval for `after - before`, paired, at 95%, cut to [-1, 1].

    With one item added to each discordant cell, p = (only_after + 1) / (n + 2), q = (only_before + 1) / (n + 2):
        (p - q) +- 1.96 sqrt((p + q - (p - q)^2) / (n + 2))
    Bonett & Price 2012, Journal of Educational and Behavioral Statistics 37:479. Raises ValueError for negative counts.
    """
    _require_counts(only_before, only_after, n - only_before - only_after)
    p, q = (only_after + 1) / (n + 2), (only_before + 1) / (n + 2)
    half_width = normal_quantile(LEVEL) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    low, high = max(p - q - half_width, -1.0), min(p - q + half_width, 1.0)
    return Interval(low, high, method="Bonett-Price 2012 (paired, adjusted)")


def mcnemar_exact(only_before: int, only_after: int) -> float:
    """Two-sided exact McNemar p-value: binomial test of the discordant pairs against 1/2; 1 if there are none."""
    if only_before < 0 or only_after < 0:
        raise ValueError(f"counts must not be negative, got {only_before} and {only_after}")
    discordant = only_before + only_after
    return float(stats.binomtest(only_before, discordant, 0.5).pvalue) if discordant else 1.0


def paired_proportion_change(
    before: ArrayLike, after: ArrayLike, *, clusters: Sequence[object] | None = None
) -> PairedProportionChange:
    """The change in accuracy between two 0/1 arrays of shape (n,) over the same items in the same order.

    `clusters` holds one label per item (the subject, when items of several subjects are pooled).
    Raises ValueError for values that are not 0/1 (NaN included), unequal lengths or no items.
    """
    x, y = _as_bools(before, "before"), _as_bools(after, "after")
    require_equal_length(x, y)
    both, only_before, only_after, neither = (int(np.sum(cell)) for cell in (x & y, x & ~y, ~x & y, ~x & ~y))
    d = y.astype(np.float64) - x
    value, p_value = (only_after - only_before) / d.size, mcnemar_exact(only_before, only_after)
    interval = bonett_price_paired(only_before, only_after, d.size)
    pooled = pooled_error(d, clusters)
    if pooled is not None:
        interval = over_subjects(value, pooled, within=1.0)
        p_value = pooled.p_value(value) if pooled.stderr else p_value
    return PairedProportionChange(
        n=d.size,
        both=both,
        only_before=only_before,
        only_after=only_after,
        neither=neither,
        value=value,
        stderr=error_of_mean(d, clusters),
        interval=interval if d.size >= MINIMUM_ITEMS else None,
        p_value=p_value,
        clustered_stderr=cluster_stderr(d, clusters),
    )


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float:
    """Stderr of the mean over all items of several groups, each with its own mean: groups weighted by size.

        sqrt(sum_g (n_g - 1) n_g s_g^2 / (N - G) / N),   N = sum n_g

    of G groups with stderrs s_g: the pooled within-group variance, as lm-evaluation-harness 0.4.13 reports it for groups.
    Raises ValueError where a group has one item or none.
    """
    if min(sizes) < 2 or len(sizes) != len(stderrs):
        raise ValueError(
            f"every group needs a stderr and two items or more, got {len(stderrs)} stderrs and sizes {sizes}"
        )
    within = sum((n - 1) * n * s**2 for s, n in zip(stderrs, sizes, strict=True))
    return math.sqrt(within / (sum(sizes) - len(sizes)) / sum(sizes))


def over_subjects(value: float, pooled: PooledError, within: float = math.inf) -> Interval:
    """Student's t interval at 95% around an estimate whose error is over subjects, cut to [-within, within]."""
    half_width = pooled.half_width(LEVEL)
    low, high = max(value - half_width, -within), min(value + half_width, within)
    return Interval(low, high, method=f"Student t over {pooled.groups} subjects (cluster-robust)")


def normal_quantile(level: float) -> float:
    """z with P(|Z| <= z) = level for a standard normal Z: 1.96 at 95%."""
    return float(stats.norm.ppf((1 + level) / 2))


def _require_counts(*counts: int) -> int:
    if min(counts) < 0 or sum(counts) < 1:
        raise ValueError(f"counts must not be negative and must sum to at least 1, got {counts}")
    return sum(counts)


def require_equal_length(x: Floats | _Bools, y: Floats | _Bools) -> None:
    """ValueError where values before and after are not of equally many items."""
    if x.size != y.size:
        raise ValueError(f"before and after must hold the same items, got {x.size} and {y.size}")


def _as_vector(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {x.shape}")
    return x


def as_finite(values: ArrayLike, name: str) -> Floats:
    """`values` as a vector of finite numbers; ValueError, which calls them `name`, where they are not."""
    x = _as_vector(values, name)
    wrong = int((~np.isfinite(x)).sum())
    if wrong:
        raise ValueError(f"{name} must be finite, got {wrong} NaN or infinite of {x.size} values")
    return x


def _as_bools(values: ArrayLike, name: str) -> _Bools:
    x = _as_vector(values, name)
    if not np.isin(x, (0.0, 1.0)).all():
        raise ValueError(f"{name} must hold only 0 and 1 (or False and True), NaN is not allowed")
    return x.astype(np.bool_)
