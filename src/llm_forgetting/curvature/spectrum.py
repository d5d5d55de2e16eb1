"""Spectrum of a symmetric operator: extreme eigenvalues, trace and density from a fixed number of products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from llm_forgetting.curvature.lanczos import (
    Keep,
    Krylov,
    density,
    eigenvector,
    extreme_eigenvalues,
    lanczos,
    random_start,
    traces,
)
from llm_forgetting.curvature.operators import SymmetricOperator
from llm_forgetting.curvature.results import Eigenvalue, SpectralDensity, Trace


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Estimates of a spectrum, each with its error.

    Attributes:
        largest: The largest eigenvalues, descending.
        smallest: The smallest eigenvalues, ascending, none of them in `largest` unless it is the only one.
        trace: Of the operator.
        trace_by_block: Of its diagonal blocks.
        density: The mean of the quadratures of all Lanczos runs.
        top: (n,), unit Ritz vector of the largest eigenvalue.
    """

    largest: tuple[Eigenvalue, ...]
    smallest: tuple[Eigenvalue, ...]
    trace: Trace
    trace_by_block: dict[str, Trace]
    density: SpectralDensity
    top: torch.Tensor


def estimate_spectrum(
    operator: SymmetricOperator,
    *,
    eigenvalues: int,
    lanczos_steps: int,
    density_runs: int,
    density_steps: int,
    trace_probes: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
    keep: Keep = lambda compute: compute(),
) -> Spectrum:
    """Extreme eigenvalues, traces and density, by lanczos_steps + density_runs density_steps + trace_probes products.

    Args:
        operator: H, (n, n).
        eigenvalues: How many of the largest and of the smallest, at most `lanczos_steps`.
        lanczos_steps: Products of the run behind eigenvalues and most of the trace; as many vectors are kept.
        density_runs: Further, shorter runs for the density.
        density_steps: Products of each of them; as many vectors are kept beside, until the run ends.
        trace_probes: Products for what is left of the trace, and for its standard error.
        seed: Of starting vectors and probes.
        advance: Called after every product.
        keep: From what computes the numbers of a shorter run, or of a probe, to these numbers.

    Returns:
        The spectrum; a Lanczos run ends early where its Krylov space is exhausted.
    """
    like = torch.empty(operator.shape[:1], dtype=operator.dtype, device=operator.device)
    longest = lanczos(operator, random_start(like, seed, 0), lanczos_steps, advance)
    others = []

    def shorter(number: int) -> list[float]:
        return lanczos(operator, random_start(like, seed, number), density_steps).numbers()

    for n in range(1, density_runs + 1):
        others.append(Krylov.of_numbers(keep(partial(shorter, n))))
        for _ in others[-1].alphas:
            advance()
    trace, by_block = traces(
        operator, longest, operator.blocks, probes=trace_probes, seed=seed, advance=advance, keep=keep
    )
    largest, smallest = extreme_eigenvalues(longest, eigenvalues)
    return Spectrum(
        largest=tuple(largest),
        smallest=tuple(smallest),
        trace=trace,
        trace_by_block=by_block,
        density=density([longest, *others]),
        top=eigenvector(longest, 0),
    )
