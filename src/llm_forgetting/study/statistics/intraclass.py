"""How alike the runs of one task pair are, and what that costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_forgetting.forgetting.intervals import LEVEL, Interval
from llm_forgetting.study.statistics.runs import Columns, Run, columns


@dataclass(frozen=True)
class IntraclassCorrelation:
    """The share of a number's variance that lies between task pairs, ICC(1) of the one-way analysis of variance.

        value = (F - 1) / (F + m - 1),   F = mean square between / mean square within,
        m = (n - sum n_p^2 / n) / (k - 1) runs per pair

    for n runs of k pairs; not cut at 0. interval: from the F distribution (Shrout & Fleiss 1979, Psychological Bulletin
    86:420), exact for normal values and equal pairs. design_effect: 1 + (sum n_p^2 / n - 1) max(value, 0), by which the
    variance of a mean over runs exceeds that of independent runs (Kish 1965); effective_runs: n / design_effect.
    reliability: 1 - mean(stderr^2) / mean square within, the share of the variance within pairs that is not measurement
    error, None unless every run has a stderr; a correlation within pairs cannot exceed its root by much.
    refusal: why value and interval are missing, else None.
    """

    name: str
    n_runs: int
    n_pairs: int
    excluded: int
    value: float | None = None
    interval: Interval | None = None
    design_effect: float | None = None
    effective_runs: float | None = None
    reliability: float | None = None
    refusal: str | None = None


def intraclass_correlation(runs: Sequence[Run], name: str) -> IntraclassCorrelation:
    """How alike the runs of one task pair are in the measure or outcome `name`.

    Refused for fewer than two pairs, no pair with two runs, or values that do not vary within pairs.
    """
    data = columns(runs, [name])
    n, k = data.n_runs, data.n_pairs
    about = (name, n, k, data.excluded)
    if k < 2 or n <= k:
        return IntraclassCorrelation(*about, refusal="needs two task pairs and more runs than pairs")
    between, within, sizes = _mean_squares(data)
    if within <= 1e-12 * between or within == 0:
        return IntraclassCorrelation(*about, refusal=f"{name} does not vary within task pairs")
    per_pair = (n - float(sizes @ sizes) / n) / (k - 1)
    value = _from_ratio(between / within, per_pair)
    effect = 1 + (float(sizes @ sizes) / n - 1) * max(value, 0.0)
    interval = _interval(between / within, per_pair, n, k)
    return IntraclassCorrelation(*about, value, interval, effect, n / effect, _reliability(runs, data, name, within))


def _mean_squares(data: Columns) -> tuple[float, float, np.ndarray]:
    values = data.values[:, 0]
    sizes = np.bincount(data.pairs)
    means = np.bincount(data.pairs, weights=values) / sizes
    between = float(sizes @ (means - values.mean()) ** 2) / (data.n_pairs - 1)
    within = float(((values - means[data.pairs]) ** 2).sum()) / (data.n_runs - data.n_pairs)
    return between, within, sizes


def _from_ratio(ratio: float, per_pair: float) -> float:
    return (ratio - 1) / (ratio + per_pair - 1)


def _interval(ratio: float, per_pair: float, n: int, k: int) -> Interval:
    lower = ratio / float(stats.f.ppf((1 + LEVEL) / 2, k - 1, n - k))
    upper = ratio * float(stats.f.ppf((1 + LEVEL) / 2, n - k, k - 1))
    return Interval(_from_ratio(lower, per_pair), _from_ratio(upper, per_pair), method="Shrout-Fleiss F")


def _reliability(runs: Sequence[Run], data: Columns, name: str, within: float) -> float | None:
    known = [runs[row].stderrs.get(name) for row in data.rows]
    stderrs = [stderr for stderr in known if stderr is not None and math.isfinite(stderr)]
    if len(stderrs) < data.n_runs:
        return None
    return 1 - float(np.mean(np.square(stderrs))) / within
