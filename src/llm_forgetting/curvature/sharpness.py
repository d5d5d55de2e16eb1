"""Sharpness: how much the loss rises nearby in the worst case, on average, and along the steps an optimiser would take.

A loss is given as a function of an offset from theta, and where needed its gradient too. Offsets are flat vectors in the
coordinates of the caller's gradient.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from llm_forgetting.arrays import mean_stderr
from llm_forgetting.curvature.records import AverageCase, CriticalSharpness, WorstCase

LossAt = Callable[[torch.Tensor], float]
GradientAt = Callable[[torch.Tensor], torch.Tensor]
# Where no minimum is in sight, the first step promises a fall by this share of the loss; then the step doubles.
FIRST_STEP = 1e-3
DOUBLINGS = 40
PRECISION = 1 / 64


def worst_case(
    loss_at: LossAt, gradient_at: GradientAt, gradient: torch.Tensor, radius: float, steps: int
) -> WorstCase:
    """Worst-case sharpness of SAM (Foret et al. 2021), at the cost of steps + 2 losses and steps gradients.

    Args:
        loss_at: L(theta + offset).
        gradient_at: Its gradient there, (n,).
        gradient: g at theta, (n,).
        radius: Of the ball.
        steps: Gradient steps of half the radius after the first step radius g / |g|, each projected back onto the ball.

    Returns:
        The rise after the first step, and the largest rise met.
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


def average_case(rises: Sequence[float], radius: float) -> AverageCase:
    """Average-case sharpness from the measured rises of steps of length `radius`."""
    return AverageCase(radius, *mean_stderr(np.asarray(rises, dtype=np.float64)), len(rises))


def critical_sharpness(loss_at: LossAt, u: torch.Tensor, slope: float, curvature: float) -> CriticalSharpness:
    """Critical sharpness (Kalra et al. 2026): a step is doubled until the loss exceeds its start, then the interval is halved.

    For a quadratic along u it is u.Hu / g.u.

    Args:
        loss_at: L(theta + offset).
        u: (n,), the gradient of the same loss, or of another (relative critical sharpness).
        slope: g.u.
        curvature: u.Hu.

    Returns:
        2 / eta for the first eta at which the loss at theta - eta u exceeds L(theta), to a relative error of 1 / 64.
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
