"""Numbers of smooth surfaces, ensembles of lines and paths, against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import barrier, basin_radius, fitted_curvature, surface_metrics


@pytest.mark.parametrize("distance", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("hessian", [[[3.0, 1.0], [1.0, -2.0]], [[2.0, -0.7], [-0.7, 5.0]], [[-4.0, 0.0], [0.0, 1.0]]])
def test_curvature_of_a_quadratic_is_exact_everywhere(hessian: list[list[float]], distance: float) -> None:
    H = np.array(hessian)
    found = fitted_curvature(lambda p: 0.3 + p @ [0.4, -1] + np.einsum("pi,ij,pj->p", p, H, p) / 2, distance)
    eigenvalues = np.linalg.eigvalsh(H)
    assert found.centre_eigenvalues == pytest.approx(tuple(eigenvalues), abs=1e-5)
    assert found.centre == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)
    assert found.inner == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_curvature_of_an_anisotropic_quartic(distance: float) -> None:
    """a^4 + 3 a^2 b^2 - 2 b^4 + a^2: largest on the inner disc at its ends (0, +-distance / 2), 24 b^2."""
    found = fitted_curvature(
        lambda p: p[:, 0] ** 4 + 3 * p[:, 0] ** 2 * p[:, 1] ** 2 - 2 * p[:, 1] ** 4 + p[:, 0] ** 2, distance
    )
    assert found.centre_eigenvalues == pytest.approx((0, 2), abs=1e-4 * distance**2)
    assert found.centre == pytest.approx(2, rel=1e-4)
    radius = distance / 2
    turns = np.linspace(0, np.pi, 181)
    a, b = radius * np.cos(turns), radius * np.sin(turns)
    hessians = np.array([[12 * a**2 + 6 * b**2 + 2, 12 * a * b], [12 * a * b, 6 * a**2 - 24 * b**2]]).T
    expected = np.abs(np.linalg.eigvalsh(hessians)).max()
    assert expected == pytest.approx(max(24 * radius**2, expected))
    assert found.inner == pytest.approx(expected, rel=1e-2)


def test_curvature_is_of_the_inner_disc_and_not_beyond() -> None:
    """a^12 is steep outside; at half the distance its second derivative is 132 / 2^10."""
    found = fitted_curvature(lambda p: p[:, 0] ** 12, 1.0)
    assert found.inner == pytest.approx(132 / 2**10, rel=1e-3)
    assert found.centre == pytest.approx(0, abs=1e-8)


def test_error_of_the_curvatures_is_their_change_between_two_fits() -> None:
    axis = np.linspace(-1, 1, 5)
    values = axis[:, None] ** 2 + 0 * axis
    fine, coarse = (fitted_curvature(lambda p, c=c: c * p[:, 0] ** 2 + p[:, 0] ** 4, 1.0) for c in (1.0, 0.75))
    metrics = surface_metrics(axis, axis, values, tau=0.1, curvature=fine, coarser=coarse)
    assert metrics.curvature_centre == fine.centre
    assert metrics.curvature_inner == fine.inner
    assert metrics.curvature_centre_error == pytest.approx(0.5, rel=1e-6)
    assert metrics.curvature_inner_error == pytest.approx(0.5, rel=1e-6)
    alone = surface_metrics(axis, axis, values, tau=0.1)
    assert alone.curvature_centre == pytest.approx(2)
    assert alone.curvature_centre_error is alone.curvature_inner_error is None


def test_share_within_tau_is_an_area() -> None:
    """Loss |a| on [-1, 1]^2: within 0.5 of the centre lies half of the square (and half a cell on both sides)."""
    axis = np.linspace(-1, 1, 201)
    values = np.abs(axis)[:, None] + 0 * axis
    assert surface_metrics(axis, axis, values, tau=0.5).share_within == pytest.approx(0.505, abs=1e-6)
    values[:, 0] = np.nan
    assert surface_metrics(axis, axis, values, tau=0.5).share_within == pytest.approx(0.505 * (1 - 1 / 400), abs=1e-6)


STEPS = np.linspace(-2, 2, 81)


def ensemble(curvatures: Floats, cubic: Floats | None = None, slope: float = 0.0) -> Floats:
    skew = np.zeros_like(curvatures) if cubic is None else cubic
    return 0.3 + slope * STEPS + np.multiply.outer(curvatures, STEPS**2 / 2) + np.multiply.outer(skew, STEPS**3)


CURVATURES = np.array([0.2, 1.0, 3.0])


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.7, 1.3])
def test_basin_radius_of_quadratics(tau: float) -> None:
    expected = np.sqrt(2 * tau / CURVATURES.mean())
    linear_between_steps = 0.05**2 / 8 / expected
    assert basin_radius(STEPS, ensemble(CURVATURES), tau) == pytest.approx(expected, abs=1.01 * linear_between_steps)


def test_basin_radius_is_exact_where_a_step_lies_on_its_border() -> None:
    assert basin_radius(STEPS, ensemble(CURVATURES), 1.4 / 2 * 0.75**2) == pytest.approx(0.75, rel=1e-12)


def test_directions_have_no_sign() -> None:
    """Slopes and cubic terms vanish in the mean of both signs."""
    skew = ensemble(CURVATURES, np.array([0.3, -0.1, 0.4]), slope=0.8)
    straight = basin_radius(STEPS, ensemble(CURVATURES), 0.4)
    assert basin_radius(STEPS, skew, 0.4) == pytest.approx(straight, rel=1e-12)
    assert basin_radius(STEPS, skew[:, ::-1], 0.4) == pytest.approx(straight, rel=1e-12)


def test_the_mean_loss_bounds_the_basin_and_not_the_mean_radius() -> None:
    steep = basin_radius(STEPS, ensemble(np.array([0.0, 2.0])), 0.5)
    assert steep == pytest.approx(1.0, abs=1e-9)


def test_a_basin_that_is_not_left_has_no_radius() -> None:
    assert basin_radius(STEPS, ensemble(CURVATURES), 2.9) is None
    assert basin_radius(STEPS, ensemble(CURVATURES), 2.7) is not None
    assert basin_radius(STEPS, ensemble(-CURVATURES), 0.1) is None


def test_the_basin_ends_where_it_is_left_first() -> None:
    losses = 0.3 + np.where(np.abs(np.abs(STEPS) - 1) < 0.01, 5.0, 0.0)[None]
    assert basin_radius(STEPS, losses, 1.0) == pytest.approx(0.95 + 0.05 / 5, rel=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_basin_ends_before_a_diverged_step(broken: float) -> None:
    losses = np.full((2, 81), 0.3)
    losses[1, 50] = broken
    assert basin_radius(STEPS, losses, 0.1) == pytest.approx(STEPS[49])
    losses[1, 40] = broken
    assert basin_radius(STEPS, losses, 0.1) == 0.0


T = np.linspace(0, 1, 101)
PATHS: dict[str, tuple[Callable[[Floats], Floats], float, float]] = {
    "convex": (lambda t: (t - 0.3) ** 2, 0.0, 0.0),
    "straight": (lambda t: 3 - 2 * t, 0.0, 0.0),
    "bump": (lambda t: 1 + 4 * t + t * (1 - t), 0.25, 0.5),
    "skew bump": (lambda t: 27 / 4 * t**2 * (1 - t) - 2 * t, 1.0, 2 / 3),
    "sine": (lambda t: 0.5 * np.sin(np.pi * t) + 7 * t, 0.5, 0.5),
}


@pytest.mark.parametrize("path", PATHS)
def test_barrier(path: str) -> None:
    f, value, at = PATHS[path]
    found = barrier(T, f(T))
    assert found.value == pytest.approx(value, abs=1e-3)
    assert found.value >= 0
    if value:
        assert found.at == pytest.approx(at, abs=0.005)
    else:
        assert found.value < 1e-12
