"""Scans of functions with closed forms: orientation, axes, and every number that summarises a surface."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import CanonicalAdapter, Factors, canonicalise
from llm_forgetting.landscape.metrics import SurfaceMetrics, fitted_curvature, mean_rise, surface_metrics
from llm_forgetting.landscape.nodes import CachedEvaluator
from llm_forgetting.landscape.scan import LineScan, PlaneScan, axis, scan_lines, scan_plane
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.landscape.spectral import Rule

METHODS = ("grid", "spectral")
TAU = 0.1


def small_adapter(seed: int = 0) -> CanonicalAdapter:
    """Two modules of rank 2, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return canonicalise({"p": Factors(draw(5, 2), draw(2, 4)), "q": Factors(draw(3, 2), draw(2, 6))})


def flat(point: WeightUpdate | FactorStep) -> Floats:
    pairs = point.factors if isinstance(point, FactorStep) else point
    parts = [part.double().reshape(-1) for pair in pairs.values() for part in (pair.B, pair.A)]
    return np.asarray(torch.cat(parts).numpy())


class Probe:
    """Scans of functions whose values are their own losses, around an adapter."""

    def __init__(self, adapter: CanonicalAdapter, *functions: Callable[[Floats], float]) -> None:
        self.space = AdapterSpace(adapter)
        self.directions: list[FactorStep] = self.space.directions(5, 4, 1.5)
        self.origin = flat(self.space.point([]))
        self.functions = functions
        self.seen: list[WeightUpdate] = []
        self.told = 0
        self.nodes = CachedEvaluator(self._values_at, advance=self._tell)

    def _values_at(self, points: Iterable[WeightUpdate]) -> Iterator[Floats]:
        for point in points:
            self.seen.append(point)
            yield np.array([function(flat(point)) for function in self.functions])

    def _tell(self) -> None:
        self.told += 1

    def along(self, p: Floats, index: int) -> float:
        """The step of point `p` along direction number `index`."""
        u = flat(self.directions[index])
        return float((p - self.origin) @ u / (u @ u))

    def plane(self, method: str, distance: float = 1.0, cells: int = 5, budget: int = 60) -> PlaneScan:
        d, e = self.directions[:2]
        return scan_plane(
            self.nodes,
            lambda row: self.space.point([(row[0], d), (row[1], e)]),
            lambda values: values,
            distance=distance,
            cells=cells,
            method=method,  # type: ignore[arg-type]
            rule=Rule(budget=budget),
        )

    def lines(self, plane: PlaneScan, distance: float = 1.0) -> LineScan:
        return scan_lines(self.nodes, self.space, self.directions, plane, lambda values: values, distance=distance)


class Quadratic:
    """3 + g.p + p^T H p / 2 around an adapter, H symmetric and indefinite."""

    def __init__(self, adapter: CanonicalAdapter, seed: int = 1, slope: float = 0.05) -> None:
        self.origin = flat(AdapterSpace(adapter).point([]))
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(len(self.origin), len(self.origin)))
        self.H = (root + root.T) / 20
        self.g = slope * rng.normal(size=len(self.origin))

    def __call__(self, p: Floats) -> float:
        p = p - self.origin
        return float(3 + self.g @ p + p @ self.H @ p / 2)


@pytest.fixture
def adapter() -> CanonicalAdapter:
    return small_adapter()


# --- planes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_first_axis_is_the_first_direction(adapter: CanonicalAdapter, method: str) -> None:
    """Not symmetric in a and b, and two tasks that are not to be mixed up."""

    def first(p: Floats) -> float:
        a, b = (probe.along(p, index) for index in (0, 1))
        return 10 + 3 * a + b**2

    def second(p: Floats) -> float:
        a, b = (probe.along(p, index) for index in (0, 1))
        return 60 + b - 7 * a * b

    probe = Probe(adapter, first, second)
    plane = probe.plane(method, distance=2.0)
    assert plane.values.shape == (5, 5, 2)
    for i, a in enumerate(plane.alphas):
        for j, b in enumerate(plane.betas):
            assert plane.values[i, j, 0] == pytest.approx(10 + 3 * a + b**2, abs=1e-5)
            assert plane.values[i, j, 1] == pytest.approx(60 + b - 7 * a * b, abs=1e-5)
    assert plane.note is None
    assert probe.told == len(probe.seen) == len(plane.points) == {"grid": 25, "spectral": 15 + 8}[method]
    for (a, b), found, point in zip(plane.points, plane.measured, probe.seen, strict=True):
        assert probe.along(flat(point), 0) == pytest.approx(a, abs=1e-5)
        assert probe.along(flat(point), 1) == pytest.approx(b, abs=1e-5)
        assert found == pytest.approx([10 + 3 * a + b**2, 60 + b - 7 * a * b], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("cells", "distance"), [(3, 0.1), (5, 1.0), (11, 0.3), (21, 0.7)])
def test_axes_are_odd_and_pass_exactly_through_the_checkpoint(
    adapter: CanonicalAdapter, cells: int, distance: float, method: str
) -> None:
    probe = Probe(adapter, lambda p: 1.0)
    plane = probe.plane(method, distance=distance, cells=cells)
    for steps in (plane.alphas, plane.betas):
        assert len(steps) == cells
        assert steps[cells // 2] == 0.0
        np.testing.assert_array_equal(steps, -steps[::-1])
        np.testing.assert_allclose(steps, np.linspace(-distance, distance, cells), rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(steps, axis(distance, cells))
    (centre,) = (point for place, point in zip(plane.points, probe.seen, strict=True) if not place.any())
    for name, module in adapter.items():
        assert torch.equal(centre[name].B, module.factors.B)
        assert torch.equal(centre[name].A, module.factors.A)
    assert np.abs(plane.points).max() == pytest.approx(distance)


@pytest.mark.parametrize("method", METHODS)
def test_quadratic_surface_and_its_curvature(adapter: CanonicalAdapter, method: str) -> None:
    f = Quadratic(adapter)
    probe = Probe(adapter, f)
    plane = probe.plane(method, cells=7)
    u, v = (flat(direction) for direction in probe.directions[:2])
    K = np.array([[u @ f.H @ u, u @ f.H @ v], [u @ f.H @ v, v @ f.H @ v]])
    slope = np.array([f.g @ u, f.g @ v])
    nodes = np.stack(np.meshgrid(plane.alphas, plane.betas, indexing="ij"), axis=-1)
    expected = 3 + nodes @ slope + np.einsum("ijk,kl,ijl->ij", nodes, K, nodes) / 2
    surface = plane.values[..., 0]
    np.testing.assert_allclose(surface, expected, rtol=1e-6)

    assert (plane.surface is None) == (method == "grid")
    if plane.surface is not None:
        assert plane.surface.converged
    curvature = None if plane.surface is None else fitted_curvature(lambda points: plane.surface.fit(points)[:, 0], 1.0)
    metrics = surface_metrics(plane.alphas, plane.betas, surface, tau=TAU, curvature=curvature)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues[0] < -0.05
    assert eigenvalues[1] > 0.05
    assert metrics.centre == pytest.approx(3, abs=1e-6)
    assert metrics.centre_eigenvalues == pytest.approx(tuple(eigenvalues), rel=1e-5)
    assert metrics.curvature_centre == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)
    assert metrics.curvature_inner == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)
    assert metrics.maximum == pytest.approx(expected.max(), rel=1e-6)
    assert metrics.range == pytest.approx(expected.max() - expected.min(), rel=1e-5)
    assert not metrics.flat
    assert metrics.non_finite_cells == 0


def test_a_kink_is_fitted_badly_and_said_to_be(adapter: CanonicalAdapter) -> None:
    """|a| has no polynomial: the measured error is the fit's true size of error, and the fit is not called converged."""
    probe = Probe(adapter, lambda p: abs(probe.along(p, 0)))
    plane = probe.plane("spectral", cells=41, budget=40)
    assert plane.surface is not None
    assert not plane.surface.converged
    assert plane.surface.evaluations == len(probe.seen) <= 40
    worst = np.abs(plane.values[..., 0] - np.abs(plane.alphas)[:, None]).max()
    assert 0.01 < plane.surface.error[0] <= worst < 5 * plane.surface.error[0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverged_point_of_a_plane_stays_where_it_is(adapter: CanonicalAdapter, broken: float) -> None:
    probe = Probe(adapter, lambda p: broken if probe.along(p, 0) > 0.9 else 1.0)
    plane = probe.plane("grid", cells=3)
    assert np.isfinite(plane.values[..., 0]).tolist() == [[True] * 3, [True] * 3, [False] * 3]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize(("budget", "cells"), [(23, 5), (60, 7), (120, 9)])
def test_what_diverges_somewhere_is_scanned_cell_by_cell_after_all(
    adapter: CanonicalAdapter, broken: float, budget: int, cells: int
) -> None:
    """Nothing can be fitted through such values: a grid of about the same cost is taken, and said to be."""

    def f(p: Floats) -> float:
        a, b = (probe.along(p, index) for index in (0, 1))
        return broken if a > 0.9 else 2 + a - 3 * b

    probe = Probe(adapter, f)
    plane = probe.plane("spectral", cells=41, budget=budget)
    assert plane.surface is None
    assert plane.note is not None
    assert "are not finite" in plane.note
    assert f"{cells} x {cells}" in plane.note
    assert plane.values.shape == (cells, cells, 1)
    expected = 2 + plane.alphas[:, None] - 3 * plane.betas[None, :]
    np.testing.assert_allclose(plane.values[:-1, :, 0], expected[:-1], atol=1e-6)
    assert not np.isfinite(plane.values[-1]).any()


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_lines_of_a_quadratic_are_its_values_along_every_direction(adapter: CanonicalAdapter, method: str) -> None:
    """The first two are read off the plane, four more evaluations give each of the others."""
    f = Quadratic(adapter)
    probe = Probe(adapter, f)
    plane = probe.plane(method, distance=0.8)
    before = len(probe.seen)
    lines = probe.lines(plane, distance=0.8)
    assert len(probe.seen) - before == 4 * 2
    assert probe.told == len(probe.seen)
    assert lines.losses.shape == (4, len(lines.steps), 1)
    half = len(lines.steps) // 2
    assert lines.steps[half] == 0
    assert (lines.steps[0], lines.steps[-1]) == pytest.approx((-0.8, 0.8))
    assert lines.nodes.tolist() == pytest.approx([-0.8, -0.4, 0.4, 0.8])
    for direction, found in zip(probe.directions, lines.losses[..., 0], strict=True):
        u = flat(direction)
        np.testing.assert_allclose(found, [f(f.origin + a * u) for a in lines.steps], rtol=1e-6)
        h = lines.steps[-1]
        assert (found[0] - 2 * found[half] + found[-1]) / h**2 == pytest.approx(u @ f.H @ u, rel=1e-4)
        assert (found[-1] - found[0]) / (2 * h) == pytest.approx(f.g @ u, abs=1e-5)


def test_lines_off_the_plane_are_polynomials_through_what_was_evaluated(adapter: CanonicalAdapter) -> None:
    """a^4 is one, |a| is not: at the nodes and the centre it is met all the same."""
    probe = Probe(adapter, lambda p: probe.along(p, 2) ** 4, lambda p: 1 + abs(probe.along(p, 3)))
    lines = probe.lines(probe.plane("grid", cells=9))
    np.testing.assert_allclose(lines.losses[2, :, 0], lines.steps**4, atol=1e-6)
    for step, found in zip(lines.steps, lines.losses[3, :, 1], strict=True):
        if step in (-1, -0.5, 0, 0.5, 1):
            assert found == pytest.approx(1 + abs(step), abs=1e-6)


def test_a_line_that_diverges_is_finite_as_far_as_was_found(adapter: CanonicalAdapter) -> None:
    probe = Probe(adapter, lambda p: np.inf if abs(probe.along(p, 2)) > 0.9 else 2 + probe.along(p, 2))
    lines = probe.lines(probe.plane("spectral"))
    inside = np.abs(lines.steps) <= 0.5
    np.testing.assert_allclose(lines.losses[2, inside, 0], 2 + lines.steps[inside], atol=1e-6)
    assert not np.isfinite(lines.losses[2, [0, -1], 0]).any()
    assert np.isfinite(lines.losses[[0, 1, 3]]).all()


# --- numbers of a surface ---------------------------------------------------------------------------------------------


def grid(f: Callable[[Floats, Floats], Floats], n: int, distance: float = 1.0) -> tuple[Floats, Floats, Floats]:
    axis = np.linspace(-distance, distance, n)
    return axis, axis, f(axis[:, None], axis[None, :])


def measured(alphas: Floats, betas: Floats, values: Floats) -> SurfaceMetrics:
    return surface_metrics(alphas, betas, values, tau=TAU)


def test_standard_deviation_is_taken_under_the_uniform_measure() -> None:
    """Var of a + 2b on [-1, 1]^2 is 1/3 + 4/3; the trapezoid rule adds h^2/6 to each mean square."""
    for n in (3, 5, 21):
        h = 2 / (n - 1)
        metrics = measured(*grid(lambda a, b: a + 2 * b, n))
        assert metrics.standard_deviation == pytest.approx(np.sqrt(5 * (1 / 3 + h**2 / 6)), rel=1e-12)


def test_standard_deviation_against_a_fine_independent_integral() -> None:
    def f(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.exp(a) * np.cos(2 * b) + a * b)

    nodes, weights = np.polynomial.legendre.leggauss(40)
    values, joint = f(nodes[:, None], nodes[None, :]), np.multiply.outer(weights, weights) / 4
    mean = (joint * values).sum()
    exact = np.sqrt((joint * (values - mean) ** 2).sum())
    assert measured(*grid(f, 401)).standard_deviation == pytest.approx(exact, rel=1e-4)


def test_curvature_of_a_quartic_is_its_second_difference_at_centre_and_on_the_inner_disc() -> None:
    """f = a^4: the second difference at a is 12 a^2 + 2 h^2; the inner disc of [-2, 2]^2 reaches a = 1."""
    metrics = measured(*grid(lambda a, b: a**4 + 0 * b, 9, distance=2.0))
    h = 0.5
    assert metrics.curvature_centre == pytest.approx(2 * h**2, rel=1e-12)
    assert metrics.curvature_inner == pytest.approx(12 + 2 * h**2, rel=1e-12)


def test_curvature_counts_distance_in_the_axes_own_unit() -> None:
    metrics = measured(*grid(lambda a, b: 3 * a**2 - b**2 + a * b, 5, distance=0.25))
    expected = np.linalg.eigvalsh([[6, 1], [1, -2]])
    assert metrics.centre_eigenvalues == pytest.approx(tuple(expected), rel=1e-9)
    assert metrics.curvature_centre == pytest.approx(expected[1], rel=1e-9)


def test_largest_curvature_may_be_the_negative_one() -> None:
    metrics = measured(*grid(lambda a, b: 5 - 4 * a**2 + b**2, 5))
    assert metrics.centre_eigenvalues == pytest.approx((-8, 2))
    assert metrics.curvature_centre == pytest.approx(8)


def test_a_flat_surface_is_called_flat() -> None:
    axis = np.linspace(-1, 1, 5)
    metrics = measured(axis, axis, np.full((5, 5), 0.7))
    assert metrics.flat
    assert metrics.range == metrics.standard_deviation == metrics.curvature_centre == 0
    assert not measured(axis, axis, np.full((5, 5), np.nan)).flat


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_flat_is_what_rounding_alone_makes_in_whatever_unit(unit: float) -> None:
    axis = np.linspace(-1, 1, 5)
    values = unit * np.full((5, 5), 0.7)
    values[2, 3] *= 1 + 3e-7
    assert measured(axis, axis, values).flat
    values[2, 3] *= 1 + 1e-6
    assert not measured(axis, axis, values).flat
    assert surface_metrics(axis, axis, values, tau=TAU, flat_below=unit * 1e-5).flat


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_cells_are_counted_and_left_out(broken: float) -> None:
    axis, _, values = grid(lambda a, b: 1 + a + 0 * b, 5)
    values[4, 0] = values[4, 4] = broken
    metrics = measured(axis, axis, values)
    assert metrics.non_finite_cells == 2
    assert metrics.maximum == 2.0
    assert metrics.range == 2.0
    weights = np.outer([0.5, 1, 1, 1, 0.5], [0.5, 1, 1, 1, 0.5])
    weights[4, 0] = weights[4, 4] = 0
    finite = np.where(np.isfinite(values), values, 0)
    mean = (weights * finite).sum() / weights.sum()
    variance = (weights * (finite - mean) ** 2).sum() / weights.sum()
    assert metrics.standard_deviation == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert metrics.curvature_centre == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_centre_is_never_replaced(broken: float) -> None:
    axis, _, values = grid(lambda a, b: a + b, 5)
    values[2, 2] = broken
    metrics = measured(axis, axis, values)
    assert not np.isfinite(metrics.centre)
    assert not np.isfinite(metrics.curvature_centre)
    assert metrics.non_finite_cells == 1
    assert np.isfinite(metrics.maximum)


def test_a_surface_without_any_number() -> None:
    axis = np.linspace(-1, 1, 3)
    metrics = measured(axis, axis, np.full((3, 3), np.nan))
    assert metrics.non_finite_cells == 9
    assert np.isnan([metrics.maximum, metrics.range, metrics.standard_deviation, metrics.curvature_inner]).all()
    assert not metrics.flat


def test_mean_rise_worked_by_hand() -> None:
    """Rises 1, 2 and 6 above 0.5: mean 3, sample deviation sqrt 7, stderr sqrt(7/3)."""
    ends = np.array([[1.0, 2.0], [2.5, 2.5], [10.0, 3.0]])
    rise = mean_rise(0.5, ends)
    assert rise.value == pytest.approx(3.0, rel=1e-14)
    assert rise.stderr == pytest.approx(np.sqrt(7 / 3), rel=1e-14)
    assert rise.directions == 3


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_mean_rise_of_a_diverged_end_is_not_a_number(broken: float) -> None:
    rise = mean_rise(0.5, np.array([[1.0, 2.0], [broken, 2.5]]))
    assert not np.isfinite(rise.value)
    assert not np.isfinite(rise.stderr)


def test_share_within_weighs_the_border_cells_by_half() -> None:
    steps = np.linspace(-1, 1, 3)
    values = np.ones((3, 3))
    values[0] = 2.0
    assert surface_metrics(steps, steps, values, tau=0.5).share_within == pytest.approx(0.75)
