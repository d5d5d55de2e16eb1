"""Numbers that summarise a surface, an ensemble of lines, or a path."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_forgetting.arrays import Floats

# Losses of language models are differences of float32 logits of the size of 20: a smaller range is rounding, nats.
FLAT_RANGE = 1e-5
# A float32 number that was computed in many steps is right to a few units of its last digit.
LAST_DIGITS = 4 * float(np.finfo(np.float32).eps)
# A larger range than this does not excuse a larger error: two nats are all that separates certainty from a guess among seven.
RANGE_CAP = 2.0
# Second differences of a fitted surface are taken over this share of the distance: it is smooth to float64's last digits.
FINE_STEP = 1e-3


@dataclass(frozen=True)
class Curvature:
    """Largest absolute eigenvalue of the 2 x 2 second-derivative matrix, nats per squared distance unit.

    At the centre and over the disc of half the distance; the signed extreme eigenvalues at the centre tell a valley from a
    saddle.
    """

    centre: float
    inner: float
    centre_eigenvalues: tuple[float, float]


@dataclass(frozen=True)
class SurfaceMetrics:
    """Numbers of one loss surface on [-distance, distance]^2, nats (curvatures: nats per squared distance unit).

    `standard_deviation` is taken under the uniform measure on the square (trapezoid weights on the grid), `share_within` is
    the share of the square whose loss is at most tau above the centre's. The errors of the curvatures are their change
    between the last two degrees of the fit, None where there was no fit. Non-finite cells are left out and counted.
    """

    centre: float
    maximum: float
    standard_deviation: float
    curvature_centre: float
    curvature_centre_error: float | None
    curvature_inner: float
    curvature_inner_error: float | None
    range: float
    centre_eigenvalues: tuple[float, float]
    share_within: float
    flat: bool
    non_finite_cells: int


def surface_metrics(
    alphas: Floats,
    betas: Floats,
    values: Floats,
    *,
    tau: float,
    curvature: Curvature | None = None,
    coarser: Curvature | None = None,
    flat_below: float | None = None,
) -> SurfaceMetrics:
    """Metrics of values[i, j] at (alphas[i], betas[j]) on a uniform odd grid centred at 0.

    `curvature` of the function behind the values, and of a `coarser` fit to it, where there is one; else second differences
    over whole grid steps. A range below `flat_below` is rounding; None: below the `rounding` of the values.

    Returns:
        Numbers of the surface, nats; curvatures in nats per squared distance.
    """
    finite = np.isfinite(values)
    centre = values[len(alphas) // 2, len(betas) // 2]
    second = curvature or _grid_curvature(alphas, betas, values)
    spread = float(np.ptp(values[finite])) if finite.any() else float("nan")
    weights = np.multiply.outer(_trapezoid(len(alphas)), _trapezoid(len(betas)))
    with np.errstate(invalid="ignore"):
        within = finite & (values <= centre + tau)
    return SurfaceMetrics(
        centre=float(centre),
        maximum=float(values[finite].max()) if finite.any() else float("nan"),
        standard_deviation=_weighted_deviation(values[finite], weights[finite]),
        curvature_centre=second.centre,
        curvature_centre_error=None if coarser is None else abs(second.centre - coarser.centre),
        curvature_inner=second.inner,
        curvature_inner_error=None if coarser is None else abs(second.inner - coarser.inner),
        range=spread,
        centre_eigenvalues=second.centre_eigenvalues,
        share_within=float(weights[within].sum() / weights.sum()),
        flat=spread < (rounding(values) if flat_below is None else flat_below) or spread == 0,
        non_finite_cells=int((~finite).sum()),
    )


def rounding(values: Floats) -> float:
    """Rounding error of `values`, of any shape, computed in float32: a few units of the last digit of the largest one."""
    return LAST_DIGITS * float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def fitted_curvature(loss: Callable[[Floats], Floats], distance: float) -> Curvature:
    """Curvature of a smooth function of points (p, 2), by central differences over a thousandth of the distance."""
    h = FINE_STEP * distance
    axis = np.linspace(-0.5, 0.5, 21) * distance
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    places = places[np.hypot(*places.T) <= distance / 2 * (1 + 1e-9)]
    shifts = h * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
    f = loss((places[:, None, :] + shifts).reshape(-1, 2)).reshape(len(places), len(shifts))
    faa, fbb = (f[:, 1] - 2 * f[:, 0] + f[:, 2]) / h**2, (f[:, 3] - 2 * f[:, 0] + f[:, 4]) / h**2
    fab = (f[:, 5] - f[:, 6] - f[:, 7] + f[:, 8]) / (4 * h**2)
    eigenvalues = _eigenvalues(faa, fbb, fab)
    centre = eigenvalues[int(np.argmin(np.hypot(*places.T)))]
    return _as_curvature(centre, np.abs(eigenvalues).max(axis=1))


def _grid_curvature(alphas: Floats, betas: Floats, values: Floats) -> Curvature:
    """From second differences over whole grid steps; the inner disc is over the nodes within half the distance."""
    h, k, f = float(alphas[1] - alphas[0]), float(betas[1] - betas[0]), values
    with np.errstate(invalid="ignore"):
        faa = (f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]) / h**2
        fbb = (f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]) / k**2
        fab = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / (4 * h * k)
        eigenvalues = _eigenvalues(faa, fbb, fab)
    radius = np.hypot(alphas[:, None], betas[None, :])[1:-1, 1:-1]
    inner = np.abs(eigenvalues).max(axis=-1)[radius <= alphas[-1] / 2 * (1 + 1e-9)]
    return _as_curvature(eigenvalues[len(alphas) // 2 - 1, len(betas) // 2 - 1], inner)


def _eigenvalues(faa: Floats, fbb: Floats, fab: Floats) -> Floats:
    """(..., 2) ascending eigenvalues of the symmetric matrices [[faa, fab], [fab, fbb]]."""
    mean, half_gap = (faa + fbb) / 2, np.hypot((faa - fbb) / 2, fab)
    return np.stack([mean - half_gap, mean + half_gap], axis=-1)


def _as_curvature(centre: Floats, inner: Floats) -> Curvature:
    usable = inner[np.isfinite(inner)]
    return Curvature(
        centre=float(np.abs(centre).max()),
        inner=float(usable.max()) if usable.size else float("nan"),
        centre_eigenvalues=(float(centre[0]), float(centre[1])),
    )


def _weighted_deviation(values: Floats, weights: Floats) -> float:
    if not values.size:
        return float("nan")
    return float(np.sqrt(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights)))


def _trapezoid(n: int) -> Floats:
    weights = np.ones(n)
    weights[[0, -1]] = 0.5
    return weights


@dataclass(frozen=True)
class MeanRise:
    """Mean over n random directions of (f(+distance) + f(-distance)) / 2 - f(0), nats, with its standard error."""

    value: float
    stderr: float
    directions: int


def mean_rise(centre: float, ends: Floats) -> MeanRise:
    """Mean rise from `ends` (directions, 2), the losses at -distance and +distance of every direction."""
    with np.errstate(invalid="ignore"):  # a diverged end makes the result NaN or infinite, without a warning
        rises = ends.mean(axis=1) - centre
        return MeanRise(float(rises.mean()), float(rises.std(ddof=1) / len(rises) ** 0.5), len(rises))


def basin_radius(steps: Floats, losses: Floats, tau: float) -> float | None:
    """How far the mean loss over random directions stays within tau of the centre's: sup{a : mean f(b) <= f(0) + tau, b <= a}.

    `losses` (directions, steps) at odd, symmetric `steps`; both signs of a direction count alike, as a random direction has no
    sign. Between steps the mean is taken as linear. None where it is not left within the steps.

    Returns:
        The radius, in the unit of `steps`.
    """
    half = len(steps) // 2
    radii = steps[half:]
    mean = losses.mean(axis=0)
    with np.errstate(invalid="ignore"):
        rise = (mean[half:] + mean[half::-1]) / 2 - mean[half] - tau
        outside = np.flatnonzero(~(rise <= 0))
    if not outside.size:
        return None
    first = int(outside[0])
    if first == 0 or not np.isfinite(rise[first]):
        return float(radii[max(first - 1, 0)])
    return float(
        radii[first - 1] - rise[first - 1] * (radii[first] - radii[first - 1]) / (rise[first] - rise[first - 1])
    )


def welch_half_width(stderrs: tuple[float, float], samples: tuple[int, int]) -> float:
    """Half of Welch's 95% interval of a difference of two means, with Satterthwaite's degrees of freedom.

    Returns:
        Half the width; NaN where a mean is of a single sample.
    """
    if min(samples) < 2:
        return math.nan
    first, second = (stderr * stderr for stderr in stderrs)
    variance = first + second
    spread = first * first / (samples[0] - 1) + second * second / (samples[1] - 1)
    freedom = variance * variance / spread if spread > 0 else math.inf
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)


@dataclass(frozen=True)
class Barrier:
    """max_t [L(t) - (1 - t) L(0) - t L(1)], nats, and where; at least 0, its value at the ends."""

    value: float
    at: float


def barrier(steps: Floats, losses: Floats) -> Barrier:
    """Barrier of `losses` at `steps` from 0 to 1 (Frankle et al. 2020; linear mode connectivity)."""
    above = losses - (1 - steps) * losses[0] - steps * losses[-1]
    highest = int(np.argmax(above))
    return Barrier(float(above[highest]), float(steps[highest]))


def second_derivative(losses: Floats, step: float) -> tuple[float, float]:
    """Slope and curvature at the middle of three losses `step` apart."""
    before, centre, after = map(float, losses)
    return (after - before) / (2 * step), (after - 2 * centre + before) / step**2
