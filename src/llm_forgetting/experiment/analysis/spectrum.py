"""The spectrum phase: spectrum and sharpness of the loss at a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from llm_forgetting.config.measurements import CurvatureConfig
from llm_forgetting.curvature.operators import Weights, dot
from llm_forgetting.curvature.rayleigh import largest_eigenvalue
from llm_forgetting.curvature.records import Sharpness, SpectrumRecord, WeightSpectrum
from llm_forgetting.curvature.replay import Replay, ReplayedOperator, replay_in
from llm_forgetting.curvature.results import mean_trace
from llm_forgetting.curvature.sharpness import average_case, critical_sharpness, worst_case
from llm_forgetting.curvature.spectrum import estimate_spectrum
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.models.hessian.coordinates import Coordinates, moved, random_update
from llm_forgetting.models.hessian.difference_products import DifferenceProducts
from llm_forgetting.models.hessian.products import AdapterHessian, Products, products_at
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.progress import Advance

Items = Sequence[EncodedItem]
# Of the random directions behind the trace in the merged weights.
PROBE_RANK = 16


def curvature_evaluations(config: CurvatureConfig) -> int:
    """Hessian-vector products of one `analyse_curvature`."""
    adapter = config.lanczos_steps + config.density_runs * config.density_steps + config.trace_probes + 2
    return adapter + (config.weight_probes + config.power_steps if config.weight_probes else 0)


def analyse_curvature(
    model: LanguageModel,
    items: Items,
    config: CurvatureConfig,
    *,
    batch_size: int,
    advance: Advance,
    journal: Path | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> SpectrumRecord:
    """Spectrum, trace, density and sharpness of the loss of `items` at the live adapter, in canonical factors; trace and
    largest eigenvalue in the merged weights.

    What is made on the way is kept in the folder `journal`, where it fits onto the disk (else `note` hears of it), and is read
    back by a later call of the same computation.
    """
    base = WeightUpdate.canonical(canonicalise(model.adapter_factors()))

    def tell() -> None:
        advance(1, "")

    replay = replay_in(journal, journal_bytes(base, config), note)
    with products_at(model, items, base, micro_batch=config.micro_batch, method=config.products) as products:
        adapter_hessian = AdapterHessian(products)
        hessian = ReplayedOperator(adapter_hessian, replay)
        gradient = replay.array(adapter_hessian.gradient).to(hessian.device)
        along_gradient = hessian @ gradient
        if isinstance(products, DifferenceProducts):
            products.choose(*replay.numbers(products.choice))
        repeated = hessian @ gradient
        tell()
        tell()
        spectrum = estimate_spectrum(
            hessian,
            eigenvalues=config.eigenvalues,
            lanczos_steps=config.lanczos_steps,
            density_runs=config.density_runs,
            density_steps=config.density_steps,
            trace_probes=config.trace_probes,
            seed=config.seed,
            advance=tell,
            keep=replay.numbers,
        )
        top = adapter_hessian.coordinates.step(spectrum.top)
        weights = _weights(products, base, top, config, advance=tell, replay=replay) if config.weight_probes else None
    return SpectrumRecord(
        items=tuple(item.item.id for item in items),
        dimension=len(gradient),
        gradient_norm=float(gradient.norm()),
        largest=spectrum.largest,
        smallest=spectrum.smallest,
        trace=spectrum.trace,
        trace_by_module=spectrum.trace_by_block,
        density=spectrum.density,
        repeated_product_difference=float((along_gradient - repeated).norm() / along_gradient.norm().clamp(min=1e-30)),
        difference_error=products.error if isinstance(products, DifferenceProducts) else None,
        weights=weights,
        sharpness=_sharpness(AdapterLoss(model, items, base, config, batch_size, replay), gradient, along_gradient),
    )


def journal_bytes(base: WeightUpdate, config: CurvatureConfig) -> float:
    """Most that the journal of `analyse_curvature` takes on a disk: vectors of the longest Lanczos run and of a shorter one,
    gradients, and two dense vectors of the merged weights.
    """
    vectors = 3 + config.lanczos_steps + config.density_steps + config.ascent_steps
    size = next(iter(base.values())).B.element_size()
    dense = sum(len(pair.B) * pair.A.shape[1] for pair in base.values()) if config.weight_probes else 0
    return float(size * (vectors * Coordinates(base).dimension + 2 * dense))


def _weights(
    products: Products,
    base: WeightUpdate,
    top: FactorStep,
    config: CurvatureConfig,
    *,
    advance: Callable[[], None],
    replay: Replay,
) -> WeightSpectrum:
    """Trace and largest eigenvalue in the merged weights of the adapted modules."""
    samples = []

    def probe(number: int) -> list[float]:
        return [products.along_update(random_update(base, config.seed, number, PROBE_RANK)).curvature]

    for number in range(config.weight_probes):
        samples += replay.numbers(partial(probe, number))
        advance()
    largest = largest_eigenvalue(
        products.weight_hessian,
        # The steepest step of the factors, as a step of the weights, is where the ascent begins.
        Weights({name: top[name].B @ base[name].A + base[name].B @ top[name].A for name in base}),
        config.power_steps,
        advance,
        replay.state(),
    )
    dimension = sum(len(pair.B) * pair.A.shape[1] for pair in base.values())
    return WeightSpectrum(dimension=dimension, trace=mean_trace(samples), largest=largest)


@dataclass(frozen=True)
class AdapterLoss:
    """The mean loss of `items` as a function of an offset, a flat vector, from the factors `base`."""

    model: LanguageModel
    items: Items
    base: WeightUpdate
    config: CurvatureConfig
    batch_size: int
    replay: Replay = field(default_factory=Replay)

    def _moved(self, offset: torch.Tensor) -> WeightUpdate:
        return moved(self.base, Coordinates(self.base).step(offset))

    def __call__(self, offset: torch.Tensor) -> float:
        """L(theta + offset), nats."""
        (loss,) = self.replay.numbers(lambda: [self._loss(offset)])
        return loss

    def _loss(self, offset: torch.Tensor) -> float:
        with self.model.perturbed() as move:
            move(self._moved(offset))
            return float(score(self.model, self.items, self.batch_size).mean_loss)

    def gradient(self, offset: torch.Tensor) -> torch.Tensor:
        """The gradient at an offset, a flat vector."""
        return self.replay.array(lambda: self._gradient(offset)).to(offset.device)

    def _gradient(self, offset: torch.Tensor) -> torch.Tensor:
        config = self.config
        with products_at(
            self.model, self.items, self._moved(offset), micro_batch=config.micro_batch, method=config.products
        ) as products:
            return AdapterHessian(products).gradient()


def _sharpness(loss: AdapterLoss, gradient: torch.Tensor, along_gradient: torch.Tensor) -> Sharpness:
    """Worst case, average case and along the gradient, all within canonical factors; the radius is a share of their norm."""
    config, coordinates = loss.config, Coordinates(loss.base)
    space = AdapterSpace(canonicalise(loss.base))
    radius = config.radius * space.norm
    worst = worst_case(loss, loss.gradient, gradient, radius, config.ascent_steps)
    centre = loss(torch.zeros_like(gradient))
    drawn = [coordinates.vector(d) for d in space.directions(config.seed, config.sharpness_directions, radius)]
    average = average_case([loss(d) - centre for d in drawn], radius)
    critical = critical_sharpness(loss, gradient, dot(gradient, gradient), dot(gradient, along_gradient))
    return Sharpness(len(loss.items), worst, average, critical)
