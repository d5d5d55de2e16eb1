"""Second derivatives of the loss of any module: its Hessian's spectrum, and the forecast of a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import reduce
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_forgetting.curvature.operators import DirectionalDerivatives, LossOperator, dot
from llm_forgetting.curvature.results import ForecastOfStep, HessianSpectrum
from llm_forgetting.curvature.spectrum import Spectrum, estimate_spectrum
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
        eigenvalues: How many of the largest and of the smallest; equal ones count once.
        lanczos_steps: Products of the run behind them and behind most of the trace; as many vectors are kept.
        density_runs: Further, shorter runs for the density.
        density_steps: Products of each of them.
        trace_probes: Products for what is left of the trace, and its standard error.
        parameters: Patterns such as `layers.*.weight` of parameters, which are differentiated as they are (so `*lora_*` of a
            PEFT model gives a spectrum that depends on its gauge); None: all that require a gradient.
        seed: Of starting vectors and probes.
        progress: Called after every product.

    Returns:
        The spectrum, each estimate with its error.

    Raises:
        UserError: A number is out of range, or nothing can be differentiated.
    """
    if not 1 <= eigenvalues <= lanczos_steps or trace_probes < 2 or density_runs < 0 or density_steps < 2:
        raise UserError(
            f"1 <= eigenvalues <= lanczos_steps, trace_probes >= 2, density_runs >= 0 and density_steps >= 2 are needed, were "
            f"{eigenvalues}, {lanczos_steps}, {trace_probes}, {density_runs} and {density_steps}"
        )
    with hessian_operator(model, loss, batches, parameters) as hessian:
        gradient = hessian.gradient()
        spectrum = estimate_spectrum(
            hessian,
            eigenvalues=eigenvalues,
            lanczos_steps=lanczos_steps,
            density_runs=density_runs,
            density_steps=density_steps,
            trace_probes=trace_probes,
            seed=seed,
            advance=progress or (lambda: None),
        )
    return _described(spectrum, gradient, hessian, eigenvalues)


def _described(
    spectrum: Spectrum, gradient: torch.Tensor, hessian: "ModuleHessian", eigenvalues: int
) -> HessianSpectrum:
    known = len(spectrum.largest) + len(spectrum.smallest)
    return HessianSpectrum(
        largest=spectrum.largest,
        smallest=spectrum.smallest,
        trace=spectrum.trace,
        trace_by_module=spectrum.trace_by_block,
        density=spectrum.density,
        gradient_norm=float(gradient.norm()),
        dimension=len(gradient),
        description=hessian.description,
        products=hessian.products,
        note=None
        if known == 2 * eigenvalues
        else f"{known} different eigenvalues instead of {2 * eigenvalues}: equal ones are given once, and a run of "
        f"lanczos_steps products knows no more",
    )


def forecast(
    model: torch.nn.Module, loss: Loss, batches: Batches | Tasks, *, direction: GivenDirection
) -> ForecastOfStep:
    """Forecast of the change of `loss` along a whole step from slope and curvature at `model`, beside the change itself.

    Args:
        model: See `hessian_spectrum`.
        loss: See `hessian_spectrum`.
        batches: See `hessian_spectrum`.
        direction: The step: a tensor per parameter of a plain module, or delta W = B A per adapted module of a PEFT model (in
            the merged weights); `checkpoint_difference` makes it from two checkpoints.

    Returns:
        The forecast, the change that was observed, and the step's length.
    """
    with measuring(model, loss, batches) as losses, sdpa_kernel(SDPBackend.MATH):
        adapted = as_adapted(model)
        along, after, distance = (
            _along_tensors(model, losses, direction) if adapted is None else _along_update(adapted, losses, direction)
        )
    return ForecastOfStep(
        loss=along.loss,
        first_order=along.slope,
        curvature=along.curvature,
        second_order=along.second_order,
        observed=after - along.loss,
        distance=distance,
    )


_Along = tuple[DirectionalDerivatives, float, float]


def _along_update(model: "AdaptedModel", losses: MeanLosses, direction: GivenDirection) -> _Along:
    """Derivatives for t of the loss at delta W + t D, the loss at its end, and |D|."""
    before = float(losses.values().mean())
    base, step = model.adapter_factors(), model.update_of(direction)
    if not model.low_rank:
        return _along_dense(model, losses, base, step)
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
    return DirectionalDerivatives(before, float(slope), float(bend)), after, step.inner(step) ** 0.5


def _along_dense(model: "AdaptedModel", losses: MeanLosses, base: WeightUpdate, step: WeightUpdate) -> _Along:
    """The same of updates that are not plain LoRA, with W + t D in the places of the parameters."""
    from llm_forgetting.models.adapter.places import lines_along  # PEFT is there by now

    assert model.dense is not None
    with model.without_adapter(), model.exchanged() as move:
        move(base)
        lines = lines_along(model.dense.places, step, model.precision)
        t = torch.zeros((), dtype=model.precision, device=lines[0][1].device, requires_grad=True)

        def at_t() -> None:
            for places, weight, change in lines:
                for place in places:
                    place.put(weight + t * change)

        with model.analysed():
            before = float(losses.values().mean())
            (slope,) = losses.gradient([t], at_t)
            (bend,) = losses.hessian([t], [torch.ones_like(t, requires_grad=False)], at_t)
            move(WeightUpdate.combine([(1.0, base), (1.0, step)]))
            after = float(losses.values().mean())
    return DirectionalDerivatives(before, float(slope), float(bend)), after, step.norm()


def _along_tensors(model: torch.nn.Module, losses: MeanLosses, direction: GivenDirection) -> _Along:
    before = float(losses.values().mean())
    tensors, (vector,) = named_parameters(model, [direction], "direction")  # type: ignore[list-item]
    known = dict(model.named_parameters(remove_duplicate=False))
    leaves, step = [known[name].requires_grad_() for name in tensors], [vector[name] for name in tensors]
    slope, bend = _dot(losses.gradient(leaves), step), _dot(losses.hessian(leaves, step), step)
    with moved(tensors) as move:
        move(DirectionBasis([vector]).point([1.0]))
        after = float(losses.values().mean())
    return DirectionalDerivatives(before, slope, bend), after, _dot(step, step) ** 0.5


def _dot(x: Sequence[torch.Tensor], y: Sequence[torch.Tensor]) -> float:
    return sum(dot(a, b) for a, b in zip(x, y, strict=True))


class ModuleHessian(LossOperator):
    """The Hessian of the mean of the tasks' losses in `leaves`, as an operator on flat vectors.

    `before` is called before every batch; `blocks` are the parameters, or the adapted modules.
    """

    def __init__(
        self,
        losses: MeanLosses,
        leaves: Mapping[str, Sequence[torch.Tensor]],
        description: str,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._losses, self._before = losses, before
        self._leaves = [leaf for named in leaves.values() for leaf in named]
        self._sizes = [leaf.numel() for leaf in self._leaves]
        self.description = description
        ends = [0, *accumulate(sum(leaf.numel() for leaf in named) for named in leaves.values())]
        super().__init__(
            ends[-1],
            dtype=reduce(torch.promote_types, (leaf.dtype for leaf in self._leaves)),
            device=self._leaves[0].device,
            blocks={name: [slice(*block)] for name, block in zip(leaves, pairwise(ends), strict=True)},
        )

    def gradient(self) -> torch.Tensor:
        """g, (n,)."""
        return _flat(self._losses.gradient(self._leaves, self._before))

    def _product(self, vector: torch.Tensor) -> torch.Tensor:
        parts = zip(torch.split(vector, self._sizes), self._leaves, strict=True)
        step = [part.view(leaf.shape) for part, leaf in parts]
        return _flat(self._losses.hessian(self._leaves, step, self._before))


@contextmanager
def hessian_operator(
    model: torch.nn.Module, loss: Loss, batches: Batches | Tasks, parameters: Sequence[str] | None = None
) -> Iterator[ModuleHessian]:
    """The Hessian that `hessian_spectrum` describes, as an operator.

    Args:
        model: See `hessian_spectrum`.
        loss: See `hessian_spectrum`.
        batches: See `hessian_spectrum`.
        parameters: See `hessian_spectrum`.

    Yields:
        The operator, for the time of the block; the model is as before afterwards.
    """
    with measuring(model, loss, batches) as losses, sdpa_kernel(SDPBackend.MATH):
        adapted = as_adapted(model) if parameters is None else None
        if adapted is None:
            leaves = {name: [parameter] for name, parameter in _chosen(model, parameters).items()}
            yield ModuleHessian(losses, leaves, "the parameters")
            return
        adapted.require_low_rank("the spectrum of an adapter")
        point = WeightUpdate.canonical(canonicalise(adapted.adapter_factors()))
        leaves = {name: [pair.B.requires_grad_(), pair.A.requires_grad_()] for name, pair in point.items()}
        with adapted.unmerged() as move:
            yield ModuleHessian(losses, leaves, "the adapter's canonical factors", lambda: move([point]))


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


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
