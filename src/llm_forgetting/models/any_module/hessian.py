"""Second derivatives of the loss of one's own model: `hessian_spectrum` at it, and `forecast` of a step from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_forgetting.curvature.lanczos import density, extreme_eigenvalues, lanczos, random_start, traces
from llm_forgetting.curvature.results import ForecastOfStep, HessianSpectrum
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise
from llm_forgetting.models.any_module.directions import GivenDirection, as_adapted
from llm_forgetting.models.any_module.losses import Batches, Loss, MeanLosses
from llm_forgetting.models.any_module.parameters import DirectionBasis, moved, named_parameters
from llm_forgetting.models.any_module.scan_options import Progress, Tasks, measuring

if TYPE_CHECKING:
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel


def hessian_spectrum(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches | Tasks,
    *,
    eigenvalues: int = 3,
    lanczos_steps: int = 30,
    density_runs: int = 2,
    density_steps: int = 12,
    trace_probes: int = 10,
    parameters: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> HessianSpectrum:
    """Extreme eigenvalues, trace and spectral density of the Hessian of `loss` at `model` as it stands, by double backward.

    Args:
        model: Any torch module, or a PEFT model with one LoRA adapter, which is differentiated in canonical factors (its
            spectrum then does not depend on how A and B are written). It is as before afterwards.
        loss: See `scan_plane`. Its kernels need second derivatives; attention is computed without the fused ones meanwhile.
        batches: See `scan_plane`.
        eigenvalues: How many of the largest and of the smallest.
        lanczos_steps: Products of the run behind them and behind most of the trace; as many vectors are kept.
        density_runs: Further, shorter runs for the density, of `density_steps` products each.
        trace_probes: Products for what is left of the trace, and its standard error.
        parameters: Patterns such as `layers.*.weight` of parameters, which are differentiated as they are (so `*lora_*` of a
            PEFT model gives a spectrum that depends on its gauge); None: all that require a gradient.
        seed: Of starting vectors and probes.
        progress: Called after every product.

    Raises UserError where nothing can be differentiated.
    """
    if not 1 <= eigenvalues <= lanczos_steps or trace_probes < 2 or density_runs < 0 or density_steps < 2:
        raise UserError(
            f"1 <= eigenvalues <= lanczos_steps, trace_probes >= 2, density_runs >= 0 and density_steps >= 2 are needed, were "
            f"{eigenvalues}, {lanczos_steps}, {trace_probes}, {density_runs} and {density_steps}"
        )
    calls = 0

    def tell() -> None:
        nonlocal calls
        calls += 1
        if progress is not None:
            progress()

    with measuring(model, loss, batches) as losses, _differentiated(model, losses, parameters) as at:
        gradient = at.gradient()
        whole = lanczos(at.product, random_start(gradient, seed, 0), lanczos_steps, tell)
        others = [
            lanczos(at.product, random_start(gradient, seed, n), density_steps, tell)
            for n in range(1, density_runs + 1)
        ]
        trace, by_module = traces(at.product, whole, at.blocks, probes=trace_probes, seed=seed, advance=tell)
    largest, smallest = extreme_eigenvalues(whole, eigenvalues)
    return HessianSpectrum(
        largest=tuple(largest),
        smallest=tuple(smallest),
        trace=trace,
        trace_by_module=by_module,
        density=density([whole, *others]),
        gradient_norm=float(gradient.norm()),
        dimension=len(gradient),
        description=at.description,
        products=calls,
    )


def forecast(
    model: torch.nn.Module, loss: Loss, batches: Batches | Tasks, *, direction: GivenDirection
) -> ForecastOfStep:
    """What slope and curvature of `loss` at `model` say about its change along a whole step, beside the change itself.

    `direction` is the step: a tensor per parameter of a plain module, or delta W = B A per adapted module of a PEFT model (in
    the merged weights); `checkpoint_difference` makes it from two checkpoints. See `hessian_spectrum` for the rest.
    """
    with measuring(model, loss, batches) as losses, sdpa_kernel(SDPBackend.MATH):
        before = float(losses.values().mean())
        adapted = as_adapted(model)
        found = (
            _along_tensors(model, losses, direction) if adapted is None else _along_update(adapted, losses, direction)
        )
    return ForecastOfStep(
        loss=before,
        first_order=found.slope,
        curvature=found.curvature,
        second_order=found.slope + found.curvature / 2,
        observed=found.after - before,
        distance=found.distance,
    )


@dataclass(frozen=True)
class _Step:
    """Slope and curvature at its beginning, the loss at its end, and its length."""

    slope: float
    curvature: float
    after: float
    distance: float


def _along_update(model: "AdaptedModel", losses: MeanLosses, direction: GivenDirection) -> _Step:
    """Derivatives for t of the loss at delta W + t D."""
    base, step = model.adapter_factors(), model.update_of(direction)
    t = torch.zeros((), device=next(iter(step.values())).B.device, requires_grad=True)

    def point() -> WeightUpdate:
        return WeightUpdate(
            {
                name: Factors(
                    torch.cat([base[name].B, t * step[name].B], dim=1), torch.cat([base[name].A, step[name].A])
                )
                for name in base
            }
        )

    with model.unmerged() as move:
        (slope,) = losses.gradient([t], lambda: move([point()]))
        (bend,) = losses.hessian([t], [torch.ones_like(t, requires_grad=False)], lambda: move([point()]))
    with model.perturbed() as move_to:
        move_to(WeightUpdate.combine([(1.0, base), (1.0, step)]))
        after = float(losses.values().mean())
    return _Step(float(slope), float(bend), after, step.inner(step) ** 0.5)


def _along_tensors(model: torch.nn.Module, losses: MeanLosses, direction: GivenDirection) -> _Step:
    tensors, (vector,) = named_parameters(model, [direction], "direction")  # type: ignore[list-item]
    known = dict(model.named_parameters(remove_duplicate=False))
    leaves, step = [known[name].requires_grad_() for name in tensors], [vector[name] for name in tensors]
    slope, bend = _dot(losses.gradient(leaves), step), _dot(losses.hessian(leaves, step), step)
    with moved(tensors) as move:
        move(DirectionBasis([vector]).point([1.0]))
        after = float(losses.values().mean())
    return _Step(slope, bend, after, _dot(step, step) ** 0.5)


def _dot(x: Sequence[torch.Tensor], y: Sequence[torch.Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(x, y, strict=True))


@dataclass(frozen=True)
class _Operator:
    """Gradient and products at a model, as flat vectors; `blocks` are their named parts."""

    gradient: Callable[[], torch.Tensor]
    product: Callable[[torch.Tensor], torch.Tensor]
    blocks: Mapping[str, Sequence[slice]]
    description: str


@contextmanager
def _differentiated(
    model: torch.nn.Module, losses: MeanLosses, parameters: Sequence[str] | None
) -> Iterator[_Operator]:
    adapted = as_adapted(model) if parameters is None else None
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if adapted is None:
            named = _chosen(model, parameters)
            leaves, description = list(named.values()), "the parameters"
            names, before = dict.fromkeys(named, 1), _nothing
        else:
            point = WeightUpdate.canonical(canonicalise(adapted.adapter_factors()))
            leaves = [part.requires_grad_() for pair in point.values() for part in (pair.B, pair.A)]
            names, description = dict.fromkeys(point, 2), "the adapter's canonical factors"
            move = stack.enter_context(adapted.unmerged())

            def before() -> None:
                move([point])

        sizes = [leaf.numel() for leaf in leaves]

        def product(vector: torch.Tensor) -> torch.Tensor:
            step = [part.view(leaf.shape) for part, leaf in zip(torch.split(vector, sizes), leaves, strict=True)]
            return _flat(losses.hessian(leaves, step, before))

        yield _Operator(lambda: _flat(losses.gradient(leaves, before)), product, _blocks(names, sizes), description)


def _nothing() -> None:
    """What has to be done before a batch of a plain module."""


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _blocks(names: Mapping[str, int], sizes: Sequence[int]) -> dict[str, list[slice]]:
    """Per name the slice of its successive tensors, as many as `names` says."""
    ends = [0, *accumulate(sizes)]
    blocks, first = {}, 0
    for name, count in names.items():
        blocks[name] = [slice(ends[first], ends[first + count])]
        first += count
    return blocks


def _chosen(model: torch.nn.Module, patterns: Sequence[str] | None) -> dict[str, torch.Tensor]:
    known = {name: p for name, p in model.named_parameters() if p.is_floating_point() and p.numel()}
    if patterns is None:
        chosen = {name: p for name, p in known.items() if p.requires_grad}
    else:
        unmatched = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in known)]
        if unmatched:
            raise UserError(f"every pattern of parameters= must match a floating-point parameter, {unmatched} did not")
        chosen = {name: p for name, p in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        raise UserError(
            "the model must have a parameter that requires a gradient, it has none; name some by parameters="
        )
    return {name: p.requires_grad_() for name, p in chosen.items()}
