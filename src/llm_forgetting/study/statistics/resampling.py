"""Bootstrap intervals of correlations over all runs, which come in units: first tasks, or task pairs where none share one.

Of the k units k - 1 are drawn with replacement, with all their runs, and weigh k / (k - 1): what holds over units. The interval
is tanh(atanh(r) +- t sd*(atanh r*)), with t of k - 1 degrees of freedom. Coverage of the coefficient's mean at nominal 0.95,
intra-class correlation 0.5, normal values, lowest of four correlations (500 studies each, +-0.02;
benchmarks/study_statistics.py):

    units                                      Spearman                  Kendall
    4 / 6 / 12 pairs x 8 runs                  0.968 / 0.930 / 0.942     0.978 / 0.944 / 0.942

What was not taken, at six pairs of eight runs: percentile intervals of whole pairs cover 0.87 to 0.91 (300 studies each).
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from llm_forgetting.forgetting.intervals import LEVEL, Interval
from llm_forgetting.seeding import generator
from llm_forgetting.study.statistics.rank_correlation import membership
from llm_forgetting.study.statistics.runs import Floats, Indices

RESAMPLES = 1999

# Beyond this the z of a resample that happens to agree perfectly would decide the width alone.
_LARGEST = 0.999
_USABLE = 0.95
_BATCH = 500

Coefficients = Callable[[Floats], Floats]


def whole_units(units: Indices, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Weights (resamples, n) of the rescaled bootstrap over units (n,). Raises ValueError for a single unit."""
    members = membership(units)
    k = members.shape[1]
    if k < 2:
        raise ValueError("a bootstrap over units needs at least two")
    drawn = generator(seed, "bootstrap over task pairs").multinomial(k - 1, np.full(k, 1 / k), resamples)
    return np.asarray(drawn @ members.T * (k / (k - 1)))


def correlation_interval(coefficients: Coefficients, weights: Floats, *, df: int, method: str) -> Interval | None:
    """The interval of a correlation that `coefficients` computes for rows of weights (m, n).

    None where it is not defined (NaN) for more than one resample in twenty, or the same for all of them.
    """
    value = float(coefficients(np.ones((1, weights.shape[1])))[0])
    starts = range(0, len(weights), _BATCH)
    drawn = np.concatenate([coefficients(weights[start : start + _BATCH]) for start in starts])
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or drawn.size < _USABLE * len(weights) or np.ptp(drawn) == 0:
        return None
    z = np.arctanh(np.clip(drawn, -_LARGEST, _LARGEST))
    centre = math.atanh(min(max(value, -_LARGEST), _LARGEST))
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, df) * z.std(ddof=1))
    low, high = math.tanh(centre - half_width), math.tanh(centre + half_width)
    return Interval(min(low, value), max(high, value), method=f"{method}, {len(weights)} resamples, Fisher z")
