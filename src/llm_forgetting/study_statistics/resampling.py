"""Bootstrap intervals of correlations over runs that come in task pairs.

Two resamplings, for two questions:

- `runs_within_pairs`, for what holds within these pairs: of the n_b runs of a pair n_b - 1 are drawn with replacement
  and weigh n_b / (n_b - 1) each, which mends the variance that small strata lose (Rao & Wu 1988, JASA 83:231);
- `whole_pairs`, for what holds over pairs: task pairs are drawn with replacement, with all their runs.

Both give the interval tanh(atanh(r) +- t sd*(atanh r*)), with t of n - k - 1 - c degrees of freedom (n runs, k pairs,
c covariates) within pairs and of k - 1 over pairs. COVERAGE
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from llm_forgetting.seeding import generator
from llm_forgetting.statistics import LEVEL, Interval
from llm_forgetting.study_statistics.rank_correlation import membership
from llm_forgetting.study_statistics.runs import Floats, Indices

RESAMPLES = 1999

# Beyond this the z of a resample that happens to agree perfectly would decide the width alone.
_LARGEST = 0.999
_USABLE = 0.95
_BATCH = 500

Coefficients = Callable[[Floats], Floats]


def runs_within_pairs(pairs: Indices, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Weights (resamples, n) of the rescaled bootstrap within pairs; a pair of one run keeps it."""
    rng = generator(seed, "bootstrap within task pairs")
    weights: Floats = np.ones((resamples, pairs.size))
    for members in (np.flatnonzero(pairs == pair) for pair in np.unique(pairs)):
        n = members.size
        if n > 1:
            weights[:, members] = rng.multinomial(n - 1, np.full(n, 1 / n), resamples) * (n / (n - 1))
    return weights


def whole_pairs(pairs: Indices, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Weights (resamples, n) of the rescaled bootstrap over pairs. Raises ValueError for a single pair."""
    members = membership(pairs)
    k = members.shape[1]
    if k < 2:
        raise ValueError("a bootstrap over task pairs needs at least two")
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
