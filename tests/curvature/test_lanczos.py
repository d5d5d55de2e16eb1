"""Lanczos, traces and densities against dense matrices."""

import doctest

import numpy as np
import pytest
import torch

from llm_forgetting.curvature import lanczos as module
from llm_forgetting.curvature.lanczos import (
    Krylov,
    density,
    eigenvector,
    extreme_eigenvalues,
    lanczos,
    random_start,
    traces,
)
from llm_forgetting.curvature.results import Trace, mean_trace

N = 60
pytestmark = pytest.mark.usefixtures("one_thread")


def symmetric(eigenvalues: list[float] | torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A dense matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    H = (Q * values) @ Q.T
    return (H + H.T) / 2


def decaying(n: int = N) -> torch.Tensor:
    """A few large eigenvalues, many small ones, some below zero: what Hessians look like."""
    return symmetric(torch.cat([torch.tensor([5.0, 3.0, 2.5, -1.0]), torch.linspace(-0.05, 0.3, n - 4)]))


def run(H: torch.Tensor, steps: int, seed: int = 0) -> Krylov:
    return lanczos(H, random_start(H[0], seed, 0), steps)


def test_extreme_eigenvalues_with_their_residuals() -> None:
    H = decaying()
    krylov = run(H, 25)
    largest, smallest = extreme_eigenvalues(krylov, 3)
    true = torch.linalg.eigvalsh(H)
    for k, found in enumerate(largest):
        assert found.value == pytest.approx(float(true[-1 - k]), abs=1e-6)
    assert smallest[0].value == pytest.approx(-1.0, abs=1e-6)
    for k in (0, 1, 2, -1):
        v = eigenvector(krylov, k)
        value, residual = (
            (largest[k] if k >= 0 else smallest[0]).value,
            (largest[k] if k >= 0 else smallest[0]).residual,
        )
        assert float(v.norm()) == pytest.approx(1)
        assert float((H @ v - value * v).norm()) == pytest.approx(residual, abs=1e-12)


def test_residuals_bound_the_error_where_nothing_has_converged() -> None:
    H = symmetric(torch.linspace(0, 1, N))
    true = torch.linalg.eigvalsh(H)
    largest, smallest = extreme_eigenvalues(run(H, 6), 3)
    for found in (*largest, *smallest):
        assert found.residual > 1e-3
        assert float((true - found.value).abs().min()) <= found.residual


def test_no_residual_is_below_the_rounding_of_the_products() -> None:
    """Float32 runs that exhaust the space, where b_m s_m is 0: every true eigenvalue is within the residual."""
    for seed in range(20):
        H = symmetric(3.0 * torch.randn(N, generator=torch.Generator().manual_seed(seed)), seed)
        true = torch.linalg.eigvalsh(H)
        largest, smallest = extreme_eigenvalues(run(H.float(), N, seed), 5)
        assert len(largest) == len(smallest) == 5
        for found in (*largest, *smallest):
            assert float((true - found.value).abs().min()) <= found.residual
            assert 1e-7 < found.residual / float(true.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("spectrum", "count", "largest", "smallest"),
    [
        ([2.0, 2.0, 2.0, -1.0, -1.0, 0.0], 2, [2, 0], [-1]),
        ([2.0, 2.0, 2.0, -1.0, -1.0, 0.0], 4, [2, 0], [-1]),
        ([2.0, 2.0, 2.0, -1.0, -1.0, 0.0], 1, [2], [-1]),
        ([3.0, 3.0, 3.0, 3.0], 2, [3], [3]),
    ],
)
def test_equal_eigenvalues_are_given_once_and_in_one_of_the_lists(
    spectrum: list[float], count: int, largest: list[float], smallest: list[float]
) -> None:
    H = symmetric(spectrum)
    found = extreme_eigenvalues(run(H, len(spectrum)), count)
    for values, expected in zip(found, (largest, smallest), strict=True):
        assert [each.value for each in values] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_eigenvalue_is_found_twice(dtype: torch.dtype) -> None:
    """Without re-orthogonalisation copies of converged eigenvalues appear, and densities count them."""
    H = decaying().to(dtype)
    krylov = run(H, N)
    gram = krylov.basis @ krylov.basis.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=dtype), atol=1e-5, rtol=0)
    values, _ = krylov.ritz()
    assert np.diff(values[-3:]).min() > 0.4


def test_an_exhausted_space_ends_the_run() -> None:
    H = symmetric([2.0, 2.0, 2.0, -1.0, -1.0, 0.0])
    krylov = run(H, 6)
    assert len(krylov.basis) == 3
    assert krylov.betas[-1] == 0
    np.testing.assert_allclose(krylov.ritz()[0], [-1, 0, 2], atol=1e-12)


def test_products_are_read_off_the_recurrence() -> None:
    H = decaying()
    krylov = run(H, 12)
    for k in range(12):
        torch.testing.assert_close(krylov.products(k), H @ krylov.basis[k], atol=1e-12, rtol=0)


BLOCKS = {"first": [slice(0, 20)], "split": [slice(20, 30), slice(50, N)], "last": [slice(30, 50)]}


def true_blocks(H: torch.Tensor) -> dict[str, float]:
    return {name: sum(float(H.diagonal()[s].sum()) for s in slices) for name, slices in BLOCKS.items()}


def test_traces_are_unbiased_with_honest_errors() -> None:
    H = decaying()
    scores, by_block = [], []
    for seed in range(200):
        whole, blocks = traces(H, run(H, 10, seed), BLOCKS, probes=12, seed=seed)
        scores.append((whole.value - float(H.trace())) / whole.stderr)
        by_block.append([(blocks[name].value - true) / blocks[name].stderr for name, true in true_blocks(H).items()])
    for found in (np.array(scores), *np.array(by_block).T):
        assert abs(found.mean()) < 4 / 200**0.5
        assert 0.85 < found.std() < 1.3  # a t distribution with 11 degrees of freedom has 1.11
    assert np.mean(np.abs(scores) < 3) > 0.97


def test_a_krylov_space_that_holds_everything_leaves_nothing_to_estimate() -> None:
    H = decaying()
    whole, blocks = traces(H, run(H, N), BLOCKS, probes=3, seed=0)
    assert whole.value == pytest.approx(float(H.trace()), abs=1e-9)
    assert whole.stderr < 1e-9
    for name, true in true_blocks(H).items():
        assert blocks[name].value == pytest.approx(true, abs=1e-9)


def test_the_krylov_space_takes_most_of_the_error_away() -> None:
    H = decaying()
    with_space, _ = traces(H, run(H, 20), {}, probes=20, seed=0)
    nothing = Krylov(
        torch.zeros(0, N, dtype=torch.float64), np.zeros(0), np.zeros(0), torch.zeros(N, dtype=torch.float64)
    )
    plain, _ = traces(H, nothing, {}, probes=40, seed=0)
    assert with_space.stderr < plain.stderr / 4
    assert abs(plain.value - float(H.trace())) < 4 * plain.stderr


def test_trace_of_samples() -> None:
    assert mean_trace([1.0, 3.0]) == Trace(2.0, 1.0)
    assert mean_trace([1.0]).stderr == float("inf")


def test_density_has_the_moments_of_the_spectrum() -> None:
    H = decaying()
    true = torch.linalg.eigvalsh(H)
    found = density([run(H, 20, seed) for seed in range(300)])
    assert found.weights.sum() == pytest.approx(1)
    for power in range(4):
        expected = float((true**power).mean())
        assert found.moment(power) == pytest.approx(expected, rel=0.1)


def test_a_run_is_a_gauss_quadrature_of_its_own_start() -> None:
    """m steps integrate polynomials of degree 2 m - 1 exactly."""
    H = decaying()
    start = random_start(H[0], 0, 0)
    v = start / start.norm()
    found = density([run(H, 5)])
    power = v.clone()
    for degree in range(10):
        assert found.moment(degree) == pytest.approx(float(v @ power), rel=1e-9)
        power = H @ power


def test_a_smooth_density_integrates_to_one() -> None:
    found = density([run(decaying(), 20)])
    at = np.linspace(-3, 8, 4001)
    assert np.trapezoid(found.smooth(at, 0.1), at) == pytest.approx(1, abs=1e-6)


def test_the_examples_in_the_documentation() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_progress_is_told_of_every_product() -> None:
    H, calls = decaying(), []
    krylov = lanczos(H, random_start(H[0], 0, 0), 7, lambda: calls.append(1))
    traces(H, krylov, {}, probes=4, seed=0, advance=lambda: calls.append(1))
    assert len(calls) == 11
