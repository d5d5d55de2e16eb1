"""Spectra of symmetric operators that are known only by their products with vectors: extreme eigenvalues, trace, density.

A Lanczos run with full re-orthogonalisation (without it, copies of converged eigenvalues appear) gives the extreme eigenvalues
with their residuals; its basis Q then carries most of the trace, tr Q^T H Q, known exactly, and only what is left of it is
estimated, from probes orthogonal to Q (Meyer et al. 2021, Hutch++, with a Krylov basis for the sketch). The same run and a few
shorter ones from other random vectors are the quadrature of the spectral density (Ubaru, Chen & Saad 2017). So every product
serves several estimates. Numbers of products are fixed beforehand: nothing stops when it looks good.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.results import Density, Eigenvalue, Trace, estimate
from llm_forgetting.seeding import derive_seed

Product = Callable[[torch.Tensor], torch.Tensor]
# A Krylov space is exhausted when what is new in a product is rounding.
EXHAUSTED = 1e-10


@dataclass(frozen=True)
class Krylov:
    """H Q = Q T + beta_m q e_m^T: `basis` (m, n) rows Q^T, T tridiagonal with `alphas` (m,) and `betas` (m,), the last beta_m
    that of the residual vector `rest` (n,), which is not in the basis (0 where the space is exhausted).
    """

    basis: torch.Tensor
    alphas: Floats
    betas: Floats
    rest: torch.Tensor

    def ritz(self) -> tuple[Floats, Floats]:
        """Eigenvalues of T, ascending (m,), and its eigenvectors (m, m)."""
        T = np.diag(self.alphas) + np.diag(self.betas[:-1], 1) + np.diag(self.betas[:-1], -1)
        values, vectors = np.linalg.eigh(T)
        return values, vectors

    def products(self, index: int) -> torch.Tensor:
        """H q_index, read off the recurrence."""
        found: torch.Tensor = float(self.alphas[index]) * self.basis[index]
        if index:
            found = found + float(self.betas[index - 1]) * self.basis[index - 1]
        after = self.basis[index + 1] if index + 1 < len(self.basis) else self.rest
        return found + float(self.betas[index]) * after


def lanczos(product: Product, start: torch.Tensor, steps: int, advance: Callable[[], None] = lambda: None) -> Krylov:
    """`steps` products from `start` (n,), fewer where the space is exhausted; keeps steps vectors."""
    basis = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    alphas, betas = [], []
    new = start / start.norm()
    scale = 0.0
    for m in range(len(basis)):
        basis[m] = new
        image = product(basis[m])
        advance()
        alphas.append(_dot(basis[m], image))
        known = basis[: m + 1]
        for _ in range(2):
            image = image - known.T @ (known @ image)
        betas.append(float(image.norm()))
        scale = max(scale, abs(alphas[-1]), betas[-1])
        rounding = max(EXHAUSTED, 10 * torch.finfo(start.dtype).eps)
        if betas[-1] <= rounding * scale:
            betas[-1] = 0.0
            return Krylov(basis[: m + 1], np.array(alphas), np.array(betas), torch.zeros_like(start))
        new = image / betas[-1]
    return Krylov(basis, np.array(alphas), np.array(betas), new)


def extreme_eigenvalues(krylov: Krylov, count: int) -> tuple[list[Eigenvalue], list[Eigenvalue]]:
    """The `count` largest, descending, and the `count` smallest, ascending."""
    values, vectors = krylov.ritz()
    residuals = np.abs(krylov.betas[-1] * vectors[-1])
    found = [Eigenvalue(float(v), float(r)) for v, r in zip(values, residuals, strict=True)]
    return found[::-1][:count], found[:count]


def eigenvector(krylov: Krylov, rank: int) -> torch.Tensor:
    """(n,) unit Ritz vector of the `rank`-th largest value (0: the largest; -1: the smallest)."""
    _, vectors = krylov.ritz()
    weights = torch.as_tensor(vectors[:, ::-1][:, rank].copy(), dtype=krylov.basis.dtype, device=krylov.basis.device)
    return weights @ krylov.basis


def traces(
    product: Product,
    krylov: Krylov,
    blocks: Mapping[str, Sequence[slice]],
    *,
    probes: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Trace, dict[str, Trace]]:
    """tr H, and the traces of the diagonal blocks of H that `blocks` names (slices of the vector), from `probes` products.

    With P = 1 - Q Q^T, tr H = tr Q^T H Q + tr P H P, and a probe z with independent signs gives (P z)^T H (P z), whose mean is
    the second term. For a block S, tr H_SS = tr S Q Q^T H + tr S P H Q Q^T + tr S P H P; the first two follow from H Q, the
    third is the mean of (S z)^T P H P z.
    """
    basis = krylov.basis
    known = dict.fromkeys(blocks, 0.0)
    for index in range(len(basis)):
        q, image = basis[index], krylov.products(index)
        # S Q Q^T H and S P H Q Q^T, traced; only the last product leaves the Krylov space.
        both = image + krylov.betas[index] * krylov.rest if index == len(basis) - 1 else image
        for name, slices in blocks.items():
            known[name] += sum(_dot(q[s], both[s]) for s in slices)
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    whole: list[float] = []
    for number in range(probes):
        signs = _signs(basis, derive_seed(seed, "trace", number))
        z = signs - basis.T @ (basis @ signs)
        image = product(z)
        advance()
        image = image - basis.T @ (basis @ image)
        whole.append(_dot(z, image))
        for name, slices in blocks.items():
            samples[name].append(sum(_dot(signs[s], image[s]) for s in slices))
    return (
        estimate(float(krylov.alphas.sum()), whole),
        {name: estimate(known[name], samples[name]) for name in blocks},
    )


def density(runs: Sequence[Krylov]) -> Density:
    """Of Lanczos runs from random vectors: Ritz values, weighted by the squared first components of T's eigenvectors."""
    nodes, weights = [], []
    for run in runs:
        values, vectors = run.ritz()
        nodes.append(values)
        weights.append(vectors[0] ** 2 / len(runs))
    values, shares = np.concatenate(nodes), np.concatenate(weights)
    order = np.argsort(values)
    return Density(values[order], shares[order])


def random_start(like: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """(n,) normal entries, the start of Lanczos run `number`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "lanczos", number))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def _signs(basis: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (basis.shape[1],), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(basis)


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() * y.double()).sum())
