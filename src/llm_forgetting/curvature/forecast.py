"""What the landscape at theta_1 says about the loss of its task at theta_2, beside what happened.

D = delta W_2 - delta W_1 is the merged difference, so slope, curvature, norms, trace and bound are all in merged-weight space,
restricted to the adapted modules; nothing here depends on how either adapter was written down.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.operators import Along
from llm_forgetting.curvature.results import Trace

# A trace smaller than this many standard errors is no denominator.
CERTAIN = 3.0


@dataclass(frozen=True)
class Forecast:
    """Changes of the mean loss from theta_1 to theta_2, nats: forecast of first and second order, and observed."""

    first_order: float
    curvature: float
    second_order: float
    observed: float

    @property
    def error(self) -> float:
        """Second order minus observed."""
        return self.second_order - self.observed


def forecast(along: Along, observed: float) -> Forecast:
    """g.D, D.HD, g.D + D.HD / 2, from slope and curvature along D; `observed` L(theta_2) - L(theta_1) of the same items."""
    return Forecast(along.slope, along.curvature, along.slope + along.curvature / 2, observed)


@dataclass(frozen=True)
class Validity:
    """How far the quadratic forecast holds along the straight path: up to the share `fraction` of the way it is within
    `tolerance` nats of the loss; 1 where it never breaks.
    """

    fraction: float
    tolerance: float


def quadratic(along: Along, steps: Floats) -> Floats:
    """(s,) L + t g.D + t^2 D.HD / 2 at t = `steps`."""
    return np.asarray(along.loss + steps * along.slope + steps**2 * along.curvature / 2)


def validity(steps: Floats, losses: Floats, along: Along, tolerance: float) -> Validity:
    """The first of `steps` (ascending, from 0) at which forecast and `losses` differ by more than `tolerance`."""
    broken = np.abs(quadratic(along, steps) - losses) > tolerance
    return Validity(float(steps[int(np.argmax(broken))]) if broken.any() else 1.0, tolerance)


def quadratic_bound(largest_eigenvalue: float, distance: float) -> float:
    """lambda_max |D|^2 / 2: the rise that a minimum (g = 0) cannot exceed (Mirzadeh et al. 2020)."""
    return largest_eigenvalue * distance**2 / 2


def average_rise(trace: Trace, dimension: int, distance: float) -> Trace:
    """tr H / n |D|^2 / 2: the second-order rise of a step of this length in a direction drawn at random."""
    scale = distance**2 / (2 * dimension)
    return Trace(trace.value * scale, trace.stderr * scale)


def alignment(along: Along, distance: float, trace: Trace, dimension: int) -> float | None:
    """kappa = (D.HD / |D|^2) / (tr H / n): how much more curved the way taken is than a random one. None where the trace is
    within three standard errors of 0.
    """
    if not distance or not abs(trace.value) >= CERTAIN * trace.stderr:
        return None
    return along.curvature / distance**2 / (trace.value / dimension)


def divergence(first: Floats, second: Floats) -> Floats:
    """(n,) KL(p_1 || p_2) in nats of next-token distributions, from logits (n, vocabulary) of two checkpoints.

    On the inputs of the new task it is the forecast of Shenfeld et al. (2025).
    """
    log_p, log_q = log_softmax(first.astype(np.float64), axis=-1), log_softmax(second.astype(np.float64), axis=-1)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).clip(min=0.0))


def mean_stderr(values: Floats) -> tuple[float, float]:
    """Mean and its standard error."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) / n**0.5) if n > 1 else math.inf
