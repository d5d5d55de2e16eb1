"""Bootstrap intervals of correlations over runs that come in task pairs.

Two resamplings, for two questions:

- `runs_within_pairs`, for what holds within these pairs: of the n_b runs of a pair n_b - 1 are drawn with replacement
  and weigh n_b / (n_b - 1) each, which mends the variance that small strata lose (Rao & Wu 1988, JASA 83:231);
- `whole_pairs`, for what holds over pairs: k - 1 of the k task pairs are drawn with all their runs and weigh k / (k - 1).

Runs that share a first checkpoint are drawn together. For a measure made there, n and k count first checkpoints and first
tasks, and `whole_pairs` draws first tasks.

Both give the interval tanh(atanh(r) +- t sd*(atanh r*)), with t of n - k - 1 - c degrees of freedom (n runs, k pairs,
c covariates) within pairs and of k - 1 over pairs. Coverage of the coefficient's mean at nominal 0.95, intra-class
correlation 0.5, normal values (500 studies each, +-0.02; benchmarks/study_statistics.py):

    within pairs, correlation 0 / 0.5 / 0.8         Spearman                  Kendall
    6 pairs x 8 runs                           0.964 / 0.956 / 0.954     0.986 / 0.996 / 1.000
    12 pairs x 8 runs                          0.960 / 0.950 / 0.952     0.988 / 0.994 / 0.996
    4 pairs x 8 runs                           0.976 / 0.974 / 0.966     0.994 / 1.000 / 1.000
    6 pairs x 4 runs                           0.982 / 0.998 / 0.990     1.000 / 1.000 / 1.000
    over pairs, lowest of four correlations    Spearman                  Kendall
    4 / 6 / 12 pairs x 8 runs                  0.968 / 0.930 / 0.942     0.978 / 0.944 / 0.942

Intervals within pairs are wider than they need be below eight runs per pair, Kendall's always. What was not taken, at
six pairs of eight runs: percentile intervals of runs drawn within pairs cover 0.92 to 0.95 within pairs and 0.64 to 0.73
over pairs, percentile intervals of whole pairs 0.87 to 0.91 (300 studies each).
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
