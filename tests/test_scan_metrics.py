"""Scans of functions with closed forms: orientation, axes, and every number that summarises a surface."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from llm_forgetting.landscape.directions import Direction, orthogonal_directions
from llm_forgetting.landscape.gauge import Adapter, Factors, canonicalise
from llm_forgetting.landscape.metrics import mean_rise, surface_metrics
from llm_forgetting.landscape.scan import scan_line, scan_plane
from llm_forgetting.objective import AnswerStatistics, Floats

Points = dict[str, Factors]


def small_adapter(seed: int = 0) -> Adapter:
    """Two modules of rank 2, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return canonicalise({"p": Factors(draw(5, 2), draw(2, 4)), "q": Factors(draw(3, 2), draw(2, 6))})


def flat(point: Points) -> Floats:
    parts = [part.double().reshape(-1) for pair in point.values() for part in (pair.B, pair.A)]
    return np.asarray(torch.cat(parts).numpy())


def as_statistics(loss: float) -> AnswerStatistics:
    """One item whose loss is `loss` >= 0: z = (0, -inf), rest = log(e^loss - 1)."""
    with np.errstate(divide="ignore"):
        return AnswerStatistics(np.array([[0.0, -np.inf]]), np.log(np.expm1([loss])), np.array([0]))


def objective_of(*functions: Callable[[Floats], float]) -> Callable[[Points], Sequence[AnswerStatistics]]:
    return lambda point: [as_statistics(function(flat(point))) for function in functions]


class Quadratic:
    """3 + g.p + p^T H p / 2 around an adapter, H symmetric and indefinite."""

    def __init__(self, adapter: Adapter, seed: int = 1, slope: float = 0.05) -> None:
        self.origin = flat({name: module.factors for name, module in adapter.items()})
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(len(self.origin), len(self.origin)))
        self.H = (root + root.T) / 20
        self.g = slope * rng.normal(size=len(self.origin))

    def __call__(self, p: Floats) -> float:
        p = p - self.origin
        return float(3 + self.g @ p + p @ self.H @ p / 2)


@pytest.fixture
def adapter() -> Adapter:
    return small_adapter()


@pytest.fixture
def directions(adapter: Adapter) -> list[Direction]:
    return orthogonal_directions(adapter, 5, 3, 1.5)


def test_first_axis_is_the_first_direction(adapter: Adapter, directions: list[Direction]) -> None:
    """Not symmetric in a and b, and two tasks that are not to be mixed up."""
    d, e, _ = directions
    origin, u, v = flat({name: m.factors for name, m in adapter.items()}), flat(d), flat(e)

    def coordinates(p: Floats) -> tuple[float, float]:
        return float((p - origin) @ u / (u @ u)), float((p - origin) @ v / (v @ v))

    def first(p: Floats) -> float:
        a, b = coordinates(p)
        return 10 + 3 * a + b**2

    def second(p: Floats) -> float:
        a, b = coordinates(p)
        return 60 + b - 7 * a * b

    calls = []
    plane = scan_plane(
        objective_of(first, second), adapter, d, e, distance=2.0, resolution=5, advance=lambda: calls.append(1)
    )
    assert len(calls) == 25
    assert len(plane.tasks) == 2
    for i, a in enumerate(plane.alphas):
        for j, b in enumerate(plane.betas):
            assert plane.tasks[0].surface("loss")[i, j] == pytest.approx(10 + 3 * a + b**2, abs=1e-6)
            assert plane.tasks[1].surface("loss")[i, j] == pytest.approx(60 + b - 7 * a * b, abs=1e-6)


@pytest.mark.parametrize(("resolution", "distance"), [(3, 0.1), (5, 1.0), (11, 0.3), (21, 0.7)])
def test_axes_are_odd_and_pass_exactly_through_the_checkpoint(
    adapter: Adapter, directions: list[Direction], resolution: int, distance: float
) -> None:
    seen: list[Points] = []

    def objective(point: Points) -> list[AnswerStatistics]:
        seen.append(point)
        return [as_statistics(1.0)]

    plane = scan_plane(objective, adapter, *directions[:2], distance=distance, resolution=resolution)
    for axis in (plane.alphas, plane.betas):
        assert len(axis) == resolution
        assert axis[resolution // 2] == 0.0
        np.testing.assert_array_equal(axis, -axis[::-1])
        np.testing.assert_allclose(axis, np.linspace(-distance, distance, resolution), rtol=1e-12, atol=1e-15)
    centre = seen[resolution**2 // 2]
    for name, module in adapter.items():
        assert torch.equal(centre[name].B, module.factors.B)
        assert torch.equal(centre[name].A, module.factors.A)


def test_quadratic_surface_and_its_curvature(adapter: Adapter, directions: list[Direction]) -> None:
    d, e, _ = directions
    f = Quadratic(adapter)
    plane = scan_plane(objective_of(f), adapter, d, e, distance=1.0, resolution=7)
    u, v = flat(d), flat(e)
    K = np.array([[u @ f.H @ u, u @ f.H @ v], [u @ f.H @ v, v @ f.H @ v]])
    slope = np.array([f.g @ u, f.g @ v])
    nodes = np.stack(np.meshgrid(plane.alphas, plane.betas, indexing="ij"), axis=-1)
    expected = 3 + nodes @ slope + np.einsum("ijk,kl,ijl->ij", nodes, K, nodes) / 2
    surface = plane.tasks[0].surface("loss")
    np.testing.assert_allclose(surface, expected, rtol=1e-6)

    metrics = surface_metrics(plane.alphas, plane.betas, surface)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues[0] < -0.05
    assert eigenvalues[1] > 0.05
    assert metrics.centre == pytest.approx(3, abs=1e-12)
    assert metrics.centre_eigenvalues == pytest.approx(tuple(eigenvalues), rel=1e-5)
    assert metrics.curvature_centre == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)
    assert metrics.curvature_inner == pytest.approx(np.abs(eigenvalues).max(), rel=1e-5)
    assert metrics.maximum == pytest.approx(expected.max(), rel=1e-6)
    assert metrics.range == pytest.approx(expected.max() - expected.min(), rel=1e-5)
    assert not metrics.flat
    assert metrics.non_finite_cells == 0


def test_second_difference_of_a_line_is_the_curvature_along_it(adapter: Adapter, directions: list[Direction]) -> None:
    f = Quadratic(adapter)
    for d in directions:
        h = 0.5
        low, centre, high = scan_line(objective_of(f), adapter, d, (-h, 0.0, h))[0].surface("loss")
        assert (low - 2 * centre + high) / h**2 == pytest.approx(flat(d) @ f.H @ flat(d), rel=1e-5)
        assert (high - low) / (2 * h) == pytest.approx(f.g @ flat(d), abs=1e-6)


def test_line_keeps_the_order_of_its_steps_and_tells_progress(adapter: Adapter, directions: list[Direction]) -> None:
    f = Quadratic(adapter)
    calls = []
    steps = (0.7, -0.2, 0.0)
    (line,) = scan_line(objective_of(f), adapter, directions[0], steps, lambda: calls.append(1))
    u = flat(directions[0])
    np.testing.assert_allclose(line.surface("loss"), [f(f.origin + a * u) for a in steps], rtol=1e-6)
    assert len(calls) == 3


def grid(f: Callable[[Floats, Floats], Floats], n: int, distance: float = 1.0) -> tuple[Floats, Floats, Floats]:
    axis = np.linspace(-distance, distance, n)
    return axis, axis, f(axis[:, None], axis[None, :])


def test_standard_deviation_is_taken_under_the_uniform_measure() -> None:
    """Var of a + 2b on [-1, 1]^2 is 1/3 + 4/3; the trapezoid rule adds h^2/6 to each mean square."""
    for n in (3, 5, 21):
        h = 2 / (n - 1)
        metrics = surface_metrics(*grid(lambda a, b: a + 2 * b, n))
        assert metrics.standard_deviation == pytest.approx(np.sqrt(5 * (1 / 3 + h**2 / 6)), rel=1e-12)


def test_standard_deviation_against_a_fine_independent_integral() -> None:
    def f(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.exp(a) * np.cos(2 * b) + a * b)

    nodes, weights = np.polynomial.legendre.leggauss(40)
    values, joint = f(nodes[:, None], nodes[None, :]), np.multiply.outer(weights, weights) / 4
    mean = (joint * values).sum()
    exact = np.sqrt((joint * (values - mean) ** 2).sum())
    assert surface_metrics(*grid(f, 401)).standard_deviation == pytest.approx(exact, rel=1e-4)


def test_curvature_of_a_quartic_is_its_second_difference_at_centre_and_on_the_inner_disc() -> None:
    """f = a^4: the second difference at a is 12 a^2 + 2 h^2; the inner disc of [-2, 2]^2 reaches a = 1."""
    metrics = surface_metrics(*grid(lambda a, b: a**4 + 0 * b, 9, distance=2.0))
    h = 0.5
    assert metrics.curvature_centre == pytest.approx(2 * h**2, rel=1e-12)
    assert metrics.curvature_inner == pytest.approx(12 + 2 * h**2, rel=1e-12)


def test_curvature_counts_distance_in_the_axes_own_unit() -> None:
    metrics = surface_metrics(*grid(lambda a, b: 3 * a**2 - b**2 + a * b, 5, distance=0.25))
    expected = np.linalg.eigvalsh([[6, 1], [1, -2]])
    assert metrics.centre_eigenvalues == pytest.approx(tuple(expected), rel=1e-9)
    assert metrics.curvature_centre == pytest.approx(expected[1], rel=1e-9)


def test_largest_curvature_may_be_the_negative_one() -> None:
    metrics = surface_metrics(*grid(lambda a, b: 5 - 4 * a**2 + b**2, 5))
    assert metrics.centre_eigenvalues == pytest.approx((-8, 2))
    assert metrics.curvature_centre == pytest.approx(8)


def test_a_flat_surface_is_called_flat() -> None:
    axis = np.linspace(-1, 1, 5)
    metrics = surface_metrics(axis, axis, np.full((5, 5), 0.7))
    assert metrics.flat
    assert metrics.range == metrics.standard_deviation == metrics.curvature_centre == 0
    rounding = np.full((5, 5), 0.7)
    rounding[2, 3] += 9e-6
    assert surface_metrics(axis, axis, rounding).flat
    rounding[2, 3] += 2e-6
    assert not surface_metrics(axis, axis, rounding).flat


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_cells_are_counted_and_left_out(broken: float) -> None:
    axis, _, values = grid(lambda a, b: 1 + a + 0 * b, 5)
    values[4, 0] = values[4, 4] = broken
    metrics = surface_metrics(axis, axis, values)
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
    metrics = surface_metrics(axis, axis, values)
    assert not np.isfinite(metrics.centre)
    assert not np.isfinite(metrics.curvature_centre)
    assert metrics.non_finite_cells == 1
    assert np.isfinite(metrics.maximum)


def test_a_surface_without_any_number() -> None:
    axis = np.linspace(-1, 1, 3)
    metrics = surface_metrics(axis, axis, np.full((3, 3), np.nan))
    assert metrics.non_finite_cells == 9
    assert np.isnan([metrics.maximum, metrics.range, metrics.standard_deviation, metrics.curvature_inner]).all()
    assert not metrics.flat


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverged_point_of_a_plane_stays_where_it_is(
    adapter: Adapter, directions: list[Direction], broken: float
) -> None:
    origin = flat({name: m.factors for name, m in adapter.items()})
    u = flat(directions[0])

    def objective(point: Points) -> list[AnswerStatistics]:
        a = (flat(point) - origin) @ u / (u @ u)
        return [AnswerStatistics(np.full((1, 2), broken if a > 0.9 else 0.0), np.zeros(1), np.array([0]))]

    plane = scan_plane(objective, adapter, *directions[:2], distance=1.0, resolution=3)
    surface = plane.tasks[0].surface("loss")
    assert np.isfinite(surface).tolist() == [[True] * 3, [True] * 3, [False] * 3]


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
