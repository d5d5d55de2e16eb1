"""Operators on plain matrices: products, scipy's view of them, and the whole spectrum pipeline."""

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch.utils._python_dispatch import TorchDispatchMode

from llm_forgetting.curvature.double_backward import double_backward
from llm_forgetting.curvature.operators import DirectionalDerivatives, LossOperator, SymmetricOperator, Weights
from llm_forgetting.curvature.rayleigh import largest_eigenvalue
from llm_forgetting.curvature.spectrum import estimate_spectrum

pytestmark = pytest.mark.usefixtures("one_thread")
VALUES = [5.0, 3.0, 2.5, -1.0, *np.linspace(-0.05, 0.3, 36)]
BLOCKS = {"first": [slice(0, 15)], "rest": [slice(15, 40)]}


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix as an operator."""

    def __init__(self, H: torch.Tensor, blocks: Mapping[str, Sequence[slice]] | None = None) -> None:
        super().__init__(len(H), dtype=H.dtype, device=H.device, blocks=blocks)
        self._H = H

    def _product(self, vector: torch.Tensor) -> torch.Tensor:
        return self._H @ vector


@pytest.fixture(name="H")
def matrix() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(len(VALUES), len(VALUES), generator=generator, dtype=torch.float64))
    H = (Q * torch.tensor(VALUES, dtype=torch.float64)) @ Q.T
    return (H + H.T) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scipy_sees_the_same_matrix(H: torch.Tensor, dtype: torch.dtype) -> None:
    operator = MatrixOperator(H.to(dtype))
    seen = operator.to_scipy()
    assert seen.shape == operator.shape == (40, 40)
    assert seen.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    columns = seen @ np.eye(40)
    np.testing.assert_array_equal(columns, H.to(dtype).double().numpy())
    np.testing.assert_array_equal(seen.T @ np.eye(40)[:, 3], columns[:, 3])
    assert operator.products == 41


def test_eigsh_of_scipy_agrees_with_the_estimates(H: torch.Tensor) -> None:
    operator, calls = MatrixOperator(H, BLOCKS), []
    spectrum = estimate_spectrum(
        operator, eigenvalues=3, lanczos_steps=25, density_runs=2, density_steps=6, trace_probes=10, seed=0,
        advance=lambda: calls.append(1),
    )  # fmt: skip
    assert operator.products == len(calls) == 25 + 2 * 6 + 10
    values, vectors = eigsh(operator.to_scipy(), k=3, which="LA", v0=np.ones(40))
    assert [entry.value for entry in spectrum.largest] == pytest.approx(values[::-1], abs=1e-6)
    assert abs(float(spectrum.top @ torch.from_numpy(vectors[:, -1].copy()))) == pytest.approx(1, abs=1e-6)
    assert spectrum.smallest[0].value == pytest.approx(-1.0, abs=1e-6)
    assert abs(spectrum.trace.value - sum(VALUES)) < 4 * spectrum.trace.stderr
    for name, (block,) in BLOCKS.items():
        estimate = spectrum.trace_by_block[name]
        assert abs(estimate.value - float(H.diagonal()[block].sum())) < 4 * estimate.stderr
    assert spectrum.density.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_largest_eigenvalue_comes_from_below_and_stays(H: torch.Tensor, dtype: torch.dtype, error: float) -> None:
    """Long after convergence too, where a plane spanned by rounding noise would throw the ascent off."""

    def product(V: Weights) -> Weights:
        image = H.to(dtype) @ torch.cat([V["a"].flatten(), V["b"].flatten()])
        return Weights(a=image[:10].view(2, 5), b=image[10:].view(5, 6))

    start = Weights(a=torch.ones(2, 5, dtype=dtype), b=torch.ones(5, 6, dtype=dtype))
    assert start.norm() == pytest.approx(40**0.5)
    few, many = (largest_eigenvalue(product, start, steps) for steps in (3, 60))
    assert few.value < 5 - few.residual / 10
    assert 5 - error < many.value < 5 + error
    assert many.residual < 1e-3


class Live(TorchDispatchMode):
    """The most tensors of `size` numbers that were there after any operation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self.most = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.most = max(self.most, live(self._size) + 1)
        return found


def live(size: int) -> int:
    return len({t.data_ptr() for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() == size})


def test_the_ascent_holds_four_vectors() -> None:
    modules, size, steps = [f"layer {n}" for n in range(6)], 977, 4
    gc.collect()
    gc.freeze()  # what other tests left need not be looked through after every operation
    with Live(size) as counted:
        found = largest_eigenvalue(
            lambda V: Weights({name: part * torch.arange(size) for name, part in V.items()}),
            Weights({name: torch.ones(size) for name in modules}),
            steps,
        )
    gc.unfreeze()
    assert found.value > 600
    assert counted.most <= 4 * len(modules) + 3  # and what a module's own sum takes


def test_only_one_krylov_basis_stays(H: torch.Tensor) -> None:
    """That of the longest run: of the runs for the density two rows of numbers are wanted."""
    bases: list[int] = []

    class Watched(MatrixOperator):
        def _product(self, vector: torch.Tensor) -> torch.Tensor:
            bases.append(sum(1 for t in gc.get_objects() if type(t) is torch.Tensor and t.shape in ((25, 40), (6, 40))))
            return super()._product(vector)

    estimate_spectrum(
        Watched(H), eigenvalues=3, lanczos_steps=25, density_runs=4, density_steps=6, trace_probes=2, seed=0
    )
    assert max(bases) == 2
    assert bases[-1] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_eigenvector_has_a_residual_of_rounding(dtype: torch.dtype) -> None:
    start = Weights(a=torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype))
    found = largest_eigenvalue(lambda V: Weights(a=V["a"] * torch.tensor([1.0, 7.0, 3.0], dtype=dtype)), start, 5)
    assert (found.value, found.residual) == (7.0, 7.0 * torch.finfo(dtype).eps)


def test_double_backward_is_exact_on_a_quadratic(H: torch.Tensor) -> None:
    class Quadratic(LossOperator):
        def __init__(self, at: torch.Tensor) -> None:
            super().__init__(len(at), dtype=at.dtype, device=at.device)
            self.at = at.requires_grad_()

        def _derivatives(self, v: torch.Tensor) -> list[torch.Tensor | None]:
            constant = torch.zeros(2, requires_grad=True)
            (g, unused), (image, nothing) = double_backward(
                self.at @ H @ self.at / 2, [self.at, constant], [v, constant]
            )
            assert unused is None
            assert nothing is None
            return [g, image]

        def gradient(self) -> torch.Tensor:
            g, _ = self._derivatives(torch.zeros_like(self.at))
            assert g is not None
            return g.detach()

        def _product(self, vector: torch.Tensor) -> torch.Tensor:
            _, image = self._derivatives(vector)
            assert image is not None
            return image

    at, v = (torch.linspace(-1, 1, 40, dtype=torch.float64) ** power for power in (1, 2))
    operator = Quadratic(at.clone())
    torch.testing.assert_close(operator.gradient(), H @ at)
    torch.testing.assert_close(operator @ v, H @ v)
    along = DirectionalDerivatives(0.0, float(operator.gradient() @ v), float(v @ (operator @ v)))
    rise = float((at + v) @ H @ (at + v) - at @ H @ at) / 2
    assert along.second_order == pytest.approx(rise)
    leaf = torch.zeros(3, requires_grad=True)
    (linear,), (none,) = double_backward((leaf * 2).sum(), [leaf], [torch.ones(3)])
    assert linear.tolist() == [2, 2, 2]
    assert none is None
