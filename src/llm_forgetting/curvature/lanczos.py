"""Spectra of symmetric operators that are known only by their products with vectors: extreme eigenvalues, trace, density.

A Lanczos run with full re-orthogonalisation (without it, copies of converged eigenvalues appear) gives the extreme eigenvalues
with their residuals; its basis Q then carries most of the trace, tr Q^T H Q, known exactly, and only what is left of it is
estimated, from probes orthogonal to Q (Meyer et al. 2021, Hutch++, with a Krylov basis for the sketch). The same run and a few
shorter ones from other random vectors are the quadrature of the spectral density (Ubaru, Chen & Saad 2017). So every product
serves several estimates. Numbers of products are fixed beforehand: nothing stops when it looks good.

>>> H = torch.diag(torch.tensor([4.0, 1.0, 0.5, -2.0], dtype=torch.float64))
>>> krylov = lanczos(H, random_start(H[0], seed=0, number=0), steps=4)
>>> largest, smallest = extreme_eigenvalues(krylov, count=2)
>>> [round(eigenvalue.value, 6) for eigenvalue in (*largest, *smallest)]
[4.0, 1.0, -2.0, 0.5]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.operators import SupportsProducts, dot
from llm_forgetting.curvature.results import Eigenvalue, SpectralDensity, Trace, estimate
from llm_forgetting.landscape.gauge import numbers
from llm_forgetting.seeding import derive_seed

# From what computes numbers to these numbers, which may have been kept.
Keep = Callable[[Callable[[], Sequence[float]]], Sequence[float]]
# A Krylov space is exhausted when what is new in a product is rounding.
EXHAUSTED = 1e-10


@dataclass(frozen=True)
class Krylov:
    """Krylov space of an operator and a vector: H Q = Q T + beta_m q e_m^T.

    Attributes:
        basis: (m, n), rows Q^T.
        alphas: (m,), the diagonal of T.
        betas: (m,), the diagonal beside it, and beta_m.
        rest: (n,), the residual vector q, which is not in the basis; 0 where the space is exhausted.
        rounding: How far Q^T H Q is from T, the largest of its columns: 0 but for the rounding of products.
    """

    basis: torch.Tensor
    alphas: Floats
    betas: Floats
    rest: torch.Tensor
    rounding: float = 0.0

    def numbers(self) -> list[float]:
        """What a quadrature needs of it, T, with the rounding, in one list."""
        return [self.rounding, *self.alphas, *self.betas]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> "Krylov":
        """The Krylov space of `numbers`, without its vectors."""
        rounding, *both = numbers
        alphas, betas = np.array(both).reshape(2, -1)
        return cls(torch.empty(0, 0), alphas, betas, torch.empty(0), rounding)

    def ritz(self) -> tuple[Floats, Floats]:
        """Eigenvalues (m,) of T, ascending, and its eigenvectors (m, m), in columns."""
        T = np.diag(self.alphas) + np.diag(self.betas[:-1], 1) + np.diag(self.betas[:-1], -1)
        values, vectors = np.linalg.eigh(T)
        return values, vectors

    def products(self, index: int) -> torch.Tensor:
        """H q_index, read off the recurrence."""
        image: torch.Tensor = float(self.alphas[index]) * self.basis[index]
        if index:
            image = image + float(self.betas[index - 1]) * self.basis[index - 1]
        after = self.basis[index + 1] if index + 1 < len(self.basis) else self.rest
        return image + float(self.betas[index]) * after


def lanczos(
    operator: SupportsProducts, start: torch.Tensor, steps: int, advance: Callable[[], object] = lambda: None
) -> Krylov:
    """A Lanczos run with full re-orthogonalisation.

    Args:
        operator: H, (n, n).
        start: (n,), not 0, of any length.
        steps: Number of products, and of vectors that are kept; fewer where the space is exhausted.
        advance: Called after every product.

    Returns:
        The Krylov space of `start`.
    """
    basis = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    alphas: list[float] = []
    betas: list[float] = []
    new = start / start.norm()
    scale = noise = 0.0
    for m in range(len(basis)):
        basis[m] = new
        image = operator @ basis[m]
        advance()
        alphas.append(dot(basis[m], image))
        known = basis[: m + 1]
        overlaps = known @ image
        of_T = [0.0] * (m - 1) + betas[-1:] + alphas[-1:]
        noise = max(noise, float(np.linalg.norm(overlaps.double().cpu().numpy() - of_T)))
        image = image - known.T @ overlaps
        image = image - known.T @ (known @ image)
        betas.append(float(image.norm()))
        scale = max(scale, abs(alphas[-1]), betas[-1])
        rounding = max(EXHAUSTED, 10 * torch.finfo(start.dtype).eps)
        if betas[-1] <= rounding * scale:
            betas[-1] = 0.0
            return Krylov(basis[: m + 1], np.array(alphas), np.array(betas), torch.zeros_like(start), noise)
        new = image / betas[-1]
    return Krylov(basis, np.array(alphas), np.array(betas), new, noise)


def extreme_eigenvalues(krylov: Krylov, count: int) -> tuple[list[Eigenvalue], list[Eigenvalue]]:
    """The `count` largest eigenvalues and the `count` smallest; no residual is below what rounding makes of the products.

    Returns:
        The largest, descending, and the smallest, ascending; fewer where the run has fewer than 2 `count` vectors. A Krylov
        space holds every eigenvalue once, and none is in both lists unless it is the only one.
    """
    values, vectors = krylov.ritz()
    floor = max(krylov.rounding, torch.finfo(krylov.basis.dtype).eps * float(np.abs(values).max()))
    residuals = np.maximum(np.abs(krylov.betas[-1] * vectors[-1]), floor)
    eigenvalues = [Eigenvalue(float(v), float(r)) for v, r in zip(values, residuals, strict=True)]
    top = min(count, max(len(values) - 1, 1))
    return eigenvalues[::-1][:top], eigenvalues[: min(count, max(len(values) - top, 1))]


def eigenvector(krylov: Krylov, rank: int) -> torch.Tensor:
    """(n,) unit Ritz vector of the `rank`-th largest value (0: the largest; -1: the smallest)."""
    _, vectors = krylov.ritz()
    weights = torch.as_tensor(vectors[:, ::-1][:, rank].copy(), dtype=krylov.basis.dtype, device=krylov.basis.device)
    return weights @ krylov.basis


def traces(
    operator: SupportsProducts,
    krylov: Krylov,
    blocks: Mapping[str, Sequence[slice]],
    *,
    probes: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
    keep: Keep = lambda compute: compute(),
) -> tuple[Trace, dict[str, Trace]]:
    """Trace of H and of its diagonal blocks.

    With P = 1 - Q Q^T, tr H = tr Q^T H Q + tr P H P, and a probe z with independent signs gives (P z)^T H (P z), whose mean is
    the second term. For a block S, tr H_SS = tr S Q Q^T H + tr S P H Q Q^T + tr S P H P; the first two follow from H Q, the
    third is the mean of (S z)^T P H P z.

    Args:
        operator: H, (n, n).
        krylov: A Lanczos run of H.
        blocks: Named blocks, as slices of a vector.
        probes: Number of products.
        seed: Of the probes.
        advance: Called after every product.
        keep: From what computes a probe's numbers to these numbers.

    Returns:
        tr H, and the trace of every block.
    """
    basis = krylov.basis
    known = dict.fromkeys(blocks, 0.0)
    for index in range(len(basis)):
        q, image = basis[index], krylov.products(index)
        # S Q Q^T H and S P H Q Q^T, traced; only the last product leaves the Krylov space.
        both = image + krylov.betas[index] * krylov.rest if index == len(basis) - 1 else image
        for name, part in _by_block(q, both, blocks).items():
            known[name] += part
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    totals: list[float] = []

    def probe(number: int) -> list[float]:
        signs = _signs(basis, derive_seed(seed, "trace", number))
        z = signs - basis.T @ (basis @ signs)
        image = operator @ z
        image = image - basis.T @ (basis @ image)
        return [dot(z, image), *_by_block(signs, image, blocks).values()]

    for number in range(probes):
        total, *parts = keep(partial(probe, number))
        advance()
        totals.append(total)
        for name, part in zip(blocks, parts, strict=True):
            samples[name].append(part)
    return (
        estimate(float(krylov.alphas.sum()), totals),
        {name: estimate(known[name], samples[name]) for name in blocks},
    )


def _by_block(x: torch.Tensor, y: torch.Tensor, blocks: Mapping[str, Sequence[slice]]) -> dict[str, float]:
    """The part of every block in the inner product of two vectors, summed in float64."""
    parts = iter(numbers((x[s].double() * y[s].double()).sum() for slices in blocks.values() for s in slices))
    return {name: sum(next(parts) for _ in slices) for name, slices in blocks.items()}


def density(runs: Sequence[Krylov]) -> SpectralDensity:
    """Spectral density of Lanczos runs from random vectors: Ritz values by the squared first components of T's eigenvectors."""
    nodes, weights = [], []
    for run in runs:
        values, vectors = run.ritz()
        nodes.append(values)
        weights.append(vectors[0] ** 2 / len(runs))
    values, shares = np.concatenate(nodes), np.concatenate(weights)
    order = np.argsort(values)
    return SpectralDensity(values[order], shares[order])


def random_start(like: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """(n,) normal entries, the start of Lanczos run `number`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "lanczos", number))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def _signs(basis: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (basis.shape[1],), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(basis)
