"""Means and their paired changes over items, with intervals that hold up where differences are skewed; see `intervals`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from llm_forgetting.arrays import Floats, standard_error
from llm_forgetting.forgetting.clusters import cluster_stderr, error_of_mean, pooled_error
from llm_forgetting.forgetting.intervals import (
    LEVEL,
    MINIMUM_ITEMS,
    Interval,
    as_finite,
    over_subjects,
    require_equal_length,
)
from llm_forgetting.seeding import generator

RESAMPLES = 9999


_LARGEST_BATCH = 2_000_000


_ROUNDING = 1e-12


# With less skewness the correction is lost in rounding.
_STRAIGHT = 1e-6


@dataclass(frozen=True)
class Mean:
    """A mean over items, in the unit of the values; `stderr` = sd / sqrt(n), or `pooled_error` of several subjects.

    `stderr` is None for one item or values that are not finite, `interval` also below `MINIMUM_ITEMS`.
    """

    value: float
    stderr: float | None
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class PairedMeanChange:
    """Mean after minus mean before on the same `n` items, in the unit of the values.

    value = mean(d_i), d_i = after_i - before_i; stderr = sd(d_i) / sqrt(n), None for one item; interval: `mean_interval`,
    None below `MINIMUM_ITEMS`; clustered_stderr: see `cluster_stderr`, None without at least two clusters. Of items of
    several subjects stderr and interval are those of `pooled_error` and Student's t.
    """

    n: int
    value: float
    stderr: float | None
    interval: Interval | None
    clustered_stderr: float | None


def paired_mean_change(
    before: ArrayLike, after: ArrayLike, *, seed: int, clusters: Sequence[object] | None = None
) -> PairedMeanChange:
    """The change of a mean between two arrays of shape (n,) over the same items in the same order.

    `clusters` as in `paired_proportion_change`. Raises ValueError for NaN or infinite values,
    unequal lengths or no items.
    """
    x, y = as_finite(before, "before"), as_finite(after, "after")
    require_equal_length(x, y)
    mean = estimate_mean(y - x, seed=seed, clusters=clusters)
    return PairedMeanChange(mean.n, mean.value, mean.stderr, mean.interval, cluster_stderr(y - x, clusters))


def estimate_mean(values: ArrayLike, *, seed: int, clusters: Sequence[object] | None = None) -> Mean:
    """The mean of an array of shape (n,), from `MINIMUM_ITEMS` on with an interval: `mean_interval`, or Student's t over
    the `clusters` where there are several (see `pooled_error`).

    Raises ValueError for NaN or infinite values or no items.
    """
    x = as_finite(values, "values")
    value, pooled, interval = float(x.mean()), pooled_error(x, clusters), None
    if x.size >= MINIMUM_ITEMS:
        interval = mean_interval(x, seed=seed) if pooled is None else over_subjects(value, pooled)
    return Mean(value, error_of_mean(x, clusters), x.size, interval)


def mean_interval(values: ArrayLike, *, seed: int) -> Interval:
    """Interval for the mean of values (n,), at 95%: at each end the farther of `bootstrap_t` and `skewness_corrected`."""
    first, other = bootstrap_t(values, seed=seed), skewness_corrected(values)
    if first.low == first.high or (first.low <= other.low and first.high >= other.high):
        return first
    low, high = min(first.low, other.low), max(first.high, other.high)
    return Interval(low, high, method=f"{first.method}; {other.method} where it reaches farther")


def skewness_corrected(values: ArrayLike) -> Interval:
    """Student's t interval for the mean of values (n,), at 95%, corrected for their skewness (Hall 1992, JRSS B 54:221).

        T = (mean - mu) / s,   sqrt(n) (T + a T^2 + a^2 T^3 / 3 + a / (2 n)) is about Student's t,   a = skewness / 3

    solved for mu; s with divisor n - 1. Raises ValueError for NaN or infinite values, or fewer than two.
    """
    x = as_finite(values, "values")
    if x.size < 2:
        raise ValueError("an interval for a mean needs at least two values, got 1")
    mean, s, n = float(x.mean()), float(x.std(ddof=1)), x.size
    a = float(((x - mean) ** 3).mean()) / s**3 / 3 if s else 0.0
    y = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) / math.sqrt(n)
    low, high = (
        mean - s * (end if abs(a) < _STRAIGHT else (math.cbrt(1 + 3 * a * (end - a / (2 * n))) - 1) / a)
        for end in (y, -y)
    )
    return Interval(low, high, method="Student t corrected for skewness (Hall 1992)")


def bootstrap_t(values: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Studentised bootstrap interval for the mean of an array of shape (n,), at 95%.

        t*_b = (mean*_b - mean) / stderr*_b,   [mean - t*_(97.5%) stderr, mean - t*_(2.5%) stderr]

    The quantiles are order statistics, exact when resamples + 1 is a multiple of 40. Where they are not finite (so few
    values differ that resamples are constant) the interval is Student's t and its method says so; where all values are
    equal it is the point [mean, mean], and its method says that too. Same seed, same interval.
    Efron & Tibshirani 1993, section 12.5. Raises ValueError for NaN or infinite values, or fewer than two.
    """
    x = as_finite(values, "values")
    if x.size < 2:
        raise ValueError("an interval for a mean needs at least two values, got 1")
    mean, stderr = float(x.mean()), standard_error(x)
    assert stderr is not None
    if np.ptp(x) <= _ROUNDING * np.abs(x).max():
        return Interval(mean, mean, method="none: all values are equal")
    t = np.sort(_studentised_means(x, seed, resamples))
    tail = round((resamples + 1) * (1 - LEVEL) / 2)
    lower, upper = float(t[tail - 1]), float(t[resamples - tail])
    if math.isfinite(lower) and math.isfinite(upper):
        return Interval(mean - upper * stderr, mean - lower * stderr, method=f"bootstrap-t, {resamples} resamples")
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, x.size - 1)) * stderr
    return Interval(mean - half_width, mean + half_width, method="Student t (bootstrap-t is not finite here)")


def _studentised_means(x: Floats, seed: int, resamples: int) -> Floats:
    rng = generator(seed, "bootstrap-t")
    rows = max(_LARGEST_BATCH // x.size, 1)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    centred = x - x.mean()
    return np.concatenate([_studentise(centred[rng.integers(0, x.size, (size, x.size))]) for size in sizes])


def _studentise(samples: Floats) -> Floats:
    means = samples.mean(axis=1)
    stderrs = samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])
    # A constant resample has a stderr of rounding size, which would pass for an enormous but finite t.
    constant = stderrs <= _ROUNDING * np.abs(samples).max(axis=1)
    t: Floats = np.copysign(np.inf, means)
    np.divide(means, stderrs, out=t, where=~constant)
    return t
