"""Standard errors of means over items that come in clusters: those of one subject are alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from llm_forgetting.arrays import standard_error


def cluster_stderr(values: ArrayLike, clusters: Sequence[object] | None) -> float | None:
    """Cluster-robust stderr of the mean of values of shape (n,) with one label each; None below two clusters.

        sqrt(G / (G - 1) sum_g (sum_{i in g} (d_i - mean))^2) / n      for G clusters

    Liang & Zeger 1986, with the usual small-sample factor; noisy for few clusters. Raises ValueError unless there is
    one label per value.
    """
    if clusters is None:
        return None
    x = np.asarray(values, dtype=np.float64)
    if len(clusters) != x.size:
        raise ValueError(f"clusters must hold one label per item, got {len(clusters)} labels for {x.size} items")
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in clusters])
    groups = len(numbers)
    if groups < 2:
        return None
    sums = np.bincount(index, weights=x - x.mean())
    return float(math.sqrt(groups / (groups - 1) * float(np.sum(sums**2))) / x.size)


@dataclass(frozen=True)
class PooledError:
    """Error of a mean over items of several subjects: `stderr`, with `groups` - 1 degrees of freedom."""

    stderr: float
    groups: int

    def half_width(self, level: float) -> float:
        """Of Student's t interval."""
        return float(stats.t.ppf((1 + level) / 2, self.groups - 1)) * self.stderr

    def p_value(self, value: float) -> float:
        """Two-sided p-value of `value` against 0."""
        return float(2 * stats.t.sf(abs(value) / self.stderr, self.groups - 1))


def pooled_error(values: ArrayLike, clusters: Sequence[object] | None) -> PooledError | None:
    """Error of the mean of values (n,) of items that come in `clusters`, one label each; None for a single cluster, and
    where every item is one.

    Items of one subject are alike, so the subjects are what was sampled. The larger of `cluster_stderr` and sd / sqrt(n):
    of few subjects the former is noisy, and far too small by chance.
    """
    groups = 0 if clusters is None else len(set(clusters))
    clustered, plain = cluster_stderr(values, clusters), standard_error(values)
    if clustered is None or plain is None or groups == np.size(values):
        return None
    return PooledError(max(clustered, plain), groups)


def error_of_mean(values: ArrayLike, clusters: Sequence[object] | None) -> float | None:
    """sd / sqrt(n) of values (n,), or that of `pooled_error` where they are of several subjects; None for one value."""
    pooled = pooled_error(values, clusters)
    return standard_error(values) if pooled is None else pooled.stderr
