"""What a study of a given size could have seen.

The power is that of the two-sided t test of Pearson's correlation between independent pairs of normal values, from the
exact distribution of r (Hotelling 1953). Centring within k task pairs costs k - 1 runs: n runs count as n - k + 1. Rank
correlations see a little less, so every number here is what could be seen at best.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import special, stats
from scipy.optimize import brentq

SIGNIFICANCE = 0.05
POWER = 0.80

_GRID = 2001


@lru_cache(maxsize=256)
def detectable_correlation(n_runs: int, n_pairs: int = 1, *, tests: int = 1, power: float = POWER) -> float:
    """The smallest correlation within pairs that is seen with this power; 1 where no correlation is."""
    n = n_runs - n_pairs + 1
    if n < 4 or correlation_power(n, 0.9999, tests=tests) < power:
        return 1.0
    return float(brentq(lambda r: correlation_power(n, r, tests=tests) - power, 1e-4, 0.9999, xtol=1e-4))


def correlation_power(n: int, correlation: float, *, tests: int = 1) -> float:
    """The chance that r of n >= 4 independent normal runs is significant at 0.05 / tests, two-sided."""
    _require(correlation, tests)
    if n < 4:
        raise ValueError(f"the power of a correlation needs at least 4 runs, got {n}")
    t = stats.t.ppf(1 - SIGNIFICANCE / tests / 2, n - 2)
    bound = math.atanh(t / math.sqrt(t**2 + n - 2))
    return _upper_tail(bound, n, correlation) + _upper_tail(bound, n, -correlation)


def _upper_tail(bound: float, n: int, rho: float) -> float:
    """P(atanh r > bound), on a grid in z = atanh r, where the density is nearly normal."""
    end = max(bound, math.atanh(rho)) + 12 / math.sqrt(n - 3)
    z = np.linspace(max(bound, math.atanh(rho) - 12 / math.sqrt(n - 3)), end, _GRID)
    r = np.tanh(z)
    log_density = (
        math.log(n - 2)
        + special.gammaln(n - 1)
        - special.gammaln(n - 0.5)
        - 0.5 * math.log(2 * math.pi)
        + (n - 1) / 2 * math.log1p(-(rho**2))
        + (n - 2) / 2 * np.log1p(-(r**2))
        - (n - 1.5) * np.log1p(-rho * r)
    )
    density = np.exp(log_density) * special.hyp2f1(0.5, 0.5, n - 0.5, (1 + rho * r) / 2)
    return float(np.trapezoid(density, z))


def _require(correlation: float, tests: int) -> None:
    if not 0 < abs(correlation) < 1 or tests < 1:
        raise ValueError(f"needs 0 < |correlation| < 1 and at least one test, got {correlation} and {tests}")
