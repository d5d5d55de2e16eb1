"""Forecast of the loss of a task at theta_2 from slope and curvature at theta_1.

D = delta W_2 - delta W_1 is the merged difference, so slope, curvature, norms, trace and bound are all in merged-weight space,
restricted to the adapted modules; nothing here depends on how either adapter was written down.
"""

import numpy as np
from scipy.special import log_softmax

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.operators import DirectionalDerivatives
from llm_forgetting.curvature.records import Validity
from llm_forgetting.curvature.results import Trace

# A trace smaller than this many standard errors is no denominator.
CERTAIN = 3.0


def quadratic(derivatives: DirectionalDerivatives, steps: Floats) -> Floats:
    """Quadratic forecast (s,) L + t g.D + t^2 D.HD / 2 at t = `steps` (s,)."""
    return np.asarray(derivatives.loss + steps * derivatives.slope + steps**2 * derivatives.curvature / 2)


def validity(steps: Floats, losses: Floats, derivatives: DirectionalDerivatives, tolerance: float) -> Validity:
    """Validity of the quadratic forecast along a path.

    Args:
        steps: (s,), ascending from 0 to 1.
        losses: (s,), nats.
        derivatives: Along the whole path, at its start.
        tolerance: Nats.

    Returns:
        The first step at which forecast and loss differ by more than the tolerance; 1 where there is none.
    """
    broken = np.abs(quadratic(derivatives, steps) - losses) > tolerance
    return Validity(float(steps[int(np.argmax(broken))]) if broken.any() else 1.0, tolerance)


def quadratic_bound(largest_eigenvalue: float, distance: float) -> float:
    """Bound lambda_max |D|^2 / 2 of the rise around a minimum, where g = 0 (Mirzadeh et al. 2020)."""
    return largest_eigenvalue * distance**2 / 2


def average_rise(trace: Trace, dimension: int, distance: float) -> Trace:
    """Second-order rise tr H / n |D|^2 / 2 of a step of length `distance` in a random direction of n = `dimension` axes."""
    scale = distance**2 / (2 * dimension)
    return Trace(trace.value * scale, trace.stderr * scale)


def alignment(derivatives: DirectionalDerivatives, distance: float, trace: Trace, dimension: int) -> float | None:
    """Curvature along D against that along a random direction, kappa = (D.HD / |D|^2) / (tr H / n).

    Args:
        derivatives: Along D.
        distance: |D|.
        trace: tr H.
        dimension: n.

    Returns:
        kappa; None where D = 0 or the trace is within three standard errors of 0.
    """
    if not distance or not abs(trace.value) >= CERTAIN * trace.stderr:
        return None
    return derivatives.curvature / distance**2 / (trace.value / dimension)


def divergence(first: Floats, second: Floats) -> Floats:
    """Divergence KL(p_1 || p_2) of next-token distributions; on inputs of the new task the forecast of Shenfeld et al. (2025).

    Args:
        first: Logits (n, vocabulary) of the first checkpoint.
        second: Logits (n, vocabulary) of the second.

    Returns:
        (n,), nats.
    """
    log_p, log_q = log_softmax(first.astype(np.float64), axis=-1), log_softmax(second.astype(np.float64), axis=-1)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).clip(min=0.0))
