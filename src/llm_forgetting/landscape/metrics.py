"""Numbers that summarise a surface."""

from dataclasses import dataclass

import numpy as np

from llm_forgetting.objective import Floats

FLAT_RANGE = 1e-5


@dataclass(frozen=True)
class SurfaceMetrics:
    """Five numbers of one loss surface on [-distance, distance]^2, nats (curvatures: nats per squared distance unit).

    `standard_deviation` is taken under the uniform measure on the square (trapezoid weights on the grid).
    `curvature_centre` and `curvature_inner` are the largest absolute eigenvalue of the 2 x 2 matrix of central second
    differences, at the centre and over the nodes within half the distance; the signed extreme eigenvalues at the
    centre tell a valley from a saddle. Non-finite cells are left out and counted in `non_finite_cells`.
    """

    centre: float
    maximum: float
    standard_deviation: float
    curvature_centre: float
    curvature_inner: float
    range: float
    centre_eigenvalues: tuple[float, float]
    flat: bool
    non_finite_cells: int


def surface_metrics(alphas: Floats, betas: Floats, values: Floats) -> SurfaceMetrics:
    """Metrics of values[i, j] at (alphas[i], betas[j]) on a uniform odd grid centred at 0."""
    finite = np.isfinite(values)
    centre = len(alphas) // 2, len(betas) // 2
    eigenvalues = _second_difference_eigenvalues(values, float(alphas[1] - alphas[0]), float(betas[1] - betas[0]))
    radius = np.hypot(alphas[:, None], betas[None, :])[1:-1, 1:-1]
    inner = np.abs(eigenvalues).max(axis=-1)[radius <= alphas[-1] / 2 * (1 + 1e-9)]
    usable = inner[np.isfinite(inner)]
    at_centre = eigenvalues[centre[0] - 1, centre[1] - 1]
    spread = float(np.ptp(values[finite])) if finite.any() else float("nan")
    return SurfaceMetrics(
        centre=float(values[centre]),
        maximum=float(values[finite].max()) if finite.any() else float("nan"),
        standard_deviation=_weighted_deviation(values, finite),
        curvature_centre=float(np.abs(at_centre).max()),
        curvature_inner=float(usable.max()) if usable.size else float("nan"),
        range=spread,
        centre_eigenvalues=(float(at_centre[0]), float(at_centre[1])),
        flat=spread < FLAT_RANGE,
        non_finite_cells=int((~finite).sum()),
    )


def _second_difference_eigenvalues(values: Floats, h: float, k: float) -> Floats:
    """(m - 2, n - 2, 2) ascending eigenvalues of the 2 x 2 second-difference matrix at the interior nodes."""
    f = values
    with np.errstate(invalid="ignore"):
        faa = (f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]) / h**2
        fbb = (f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]) / k**2
        fab = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / (4 * h * k)
        mean, half_gap = (faa + fbb) / 2, np.hypot((faa - fbb) / 2, fab)
        return np.stack([mean - half_gap, mean + half_gap], axis=-1)


def _weighted_deviation(values: Floats, finite: np.ndarray) -> float:
    if not finite.any():
        return float("nan")
    weights = np.multiply.outer(_trapezoid(values.shape[0]), _trapezoid(values.shape[1]))[finite]
    kept = values[finite]
    mean = np.average(kept, weights=weights)
    return float(np.sqrt(np.average((kept - mean) ** 2, weights=weights)))


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
