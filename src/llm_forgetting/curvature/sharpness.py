"""How much the loss rises nearby: worst case, on average, and along the steps an optimiser would take.

Everything is told as functions: the loss at an offset from theta, and where needed its gradient there. Offsets are flat vectors
in whatever coordinates the caller's gradient has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

LossAt = Callable[[torch.Tensor], float]
GradientAt = Callable[[torch.Tensor], torch.Tensor]
# Where no minimum is in sight, the first step promises a fall by this share of the loss; then the step doubles.
FIRST_STEP = 1e-3
DOUBLINGS = 40
PRECISION = 1 / 64


@dataclass(frozen=True)
class WorstCase:
    """max over |e| <= radius of L(theta + e) - L(theta), from below: by one step along g, and by projected ascent."""

    radius: float
    one_step: float
    ascent: float
    steps: int


def worst_case(
    loss_at: LossAt, gradient_at: GradientAt, gradient: torch.Tensor, radius: float, steps: int
) -> WorstCase:
    """Sharpness of SAM (Foret et al. 2021): radius g / |g|, then `steps` further gradient steps of half the radius, each
    projected back onto the ball. The largest loss met counts. Costs steps + 2 losses and steps gradients.
    """
    centre = loss_at(torch.zeros_like(gradient))
    offset = _of_length(gradient, radius)
    rises = [loss_at(offset) - centre]
    for _ in range(steps):
        offset = offset + _of_length(gradient_at(offset), radius / 2)
        offset = _of_length(offset, min(radius, float(offset.norm())))
        rises.append(loss_at(offset) - centre)
    return WorstCase(radius, rises[0], max(rises), steps)


def _of_length(vector: torch.Tensor, length: float) -> torch.Tensor:
    norm = float(vector.norm())
    return vector * (length / norm) if norm else vector


@dataclass(frozen=True)
class AverageCase:
    """E L(theta + e) - L(theta), +- one standard error over independent e of norm `radius`."""

    radius: float
    value: float
    stderr: float
    samples: int


def average_case(rises: Sequence[float], radius: float) -> AverageCase:
    """The mean of measured rises."""
    found = np.asarray(rises, dtype=np.float64)
    spread = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else math.inf
    return AverageCase(radius, float(found.mean()), spread, len(found))


@dataclass(frozen=True)
class CriticalSharpness:
    """2 / eta_c, eta_c the first step along -u at which the loss exceeds its start (Kalra et al. 2026).

    For a quadratic along u that is u.Hu / g.u. `value` is None where it means nothing: `slope` g.u / |u| <= 0 (the loss rises
    at once: `curvature` u.Hu / |u|^2 says how), or no step up to `longest` brought the loss back to its start.
    """

    value: float | None
    step: float | None
    slope: float
    curvature: float
    longest: float


def critical_sharpness(loss_at: LossAt, u: torch.Tensor, slope: float, curvature: float) -> CriticalSharpness:
    """Doubles a step until the loss at theta - eta u exceeds L(theta), then halves the interval; to a relative error of 1 / 64.

    `slope` is g.u and `curvature` u.Hu. u is the gradient of the same loss (critical sharpness) or of another (relative
    critical sharpness).
    """
    size = float(u.norm())
    if slope <= 0 or not size:
        return CriticalSharpness(None, None, slope / size if size else 0.0, curvature / size**2 if size else 0.0, 0.0)
    centre = loss_at(torch.zeros_like(u))
    # The step to the minimum of the quadratic model where there is one, else one that promises a small fall.
    step = slope / curvature if curvature > 0 else FIRST_STEP * max(abs(centre), 1.0) / slope
    low, high = 0.0, None
    for _ in range(DOUBLINGS):
        if not loss_at(-step * u) <= centre:
            high = step
            break
        low, step = step, 2 * step
    relative = slope / size, curvature / size**2
    if high is None:
        return CriticalSharpness(None, None, *relative, low)
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if not middle:
            break
        if loss_at(-middle * u) <= centre:
            low = middle
        else:
            high = middle
    eta = (low + high) / 2
    return CriticalSharpness(2 / eta, eta, *relative, high)
