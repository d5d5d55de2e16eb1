"""The curvature phases of an experiment: what the landscape at a checkpoint forecasts, and its spectrum and sharpness."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llm_forgetting.config.sections import CurvatureConfig
from llm_forgetting.curvature.lanczos import density, eigenvector, extreme_eigenvalues, lanczos, random_start, traces
from llm_forgetting.curvature.operators import Products
from llm_forgetting.curvature.rayleigh import largest_eigenvalue
from llm_forgetting.curvature.results import mean_trace
from llm_forgetting.curvature.sharpness import average_case, critical_sharpness, worst_case
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.models.hessian.coordinates import Coordinates, moved, random_update
from llm_forgetting.models.hessian.difference_products import DifferenceProducts
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.progress import Advance

Items = Sequence[EncodedItem]
Result = dict[str, Any]
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
) -> Result:
    """Spectrum, trace, density and sharpness of the loss of `items` at the live adapter, in canonical factors; trace and
    largest eigenvalue in the merged weights.
    """
    base = WeightUpdate.canonical(canonicalise(model.adapter_factors()))
    coordinates = Coordinates(base)

    def tell() -> None:
        advance(1, "")

    with products_at(model, items, base, micro_batch=config.micro_batch, method=config.products) as products:

        def product(vector: torch.Tensor) -> torch.Tensor:
            return coordinates.vector(products.hessian(coordinates.step(vector)))

        gradient = coordinates.vector(products.gradient())
        along_gradient = product(gradient)
        again = product(gradient)
        tell()
        tell()
        whole = lanczos(product, random_start(gradient, config.seed, 0), config.lanczos_steps, tell)
        others = [
            lanczos(product, random_start(gradient, config.seed, n), config.density_steps, tell)
            for n in range(1, config.density_runs + 1)
        ]
        trace, by_module = traces(
            product, whole, coordinates.blocks, probes=config.trace_probes, seed=config.seed, advance=tell
        )
        top = coordinates.step(eigenvector(whole, 0))
        weights = _weights(products, base, top, config, tell) if config.weight_probes else None
    sharpness = _sharpness(model, items, base, gradient, along_gradient, config, batch_size)
    largest, smallest = extreme_eigenvalues(whole, config.eigenvalues)
    spectral = density([whole, *others])
    return {
        "items": [item.item.id for item in items],
        "dimension": coordinates.dimension,
        "gradient_norm": float(gradient.norm()),
        "largest": [dataclasses.asdict(value) for value in largest],
        "smallest": [dataclasses.asdict(value) for value in smallest],
        "trace": dataclasses.asdict(trace),
        "trace_by_module": {name: dataclasses.asdict(value) for name, value in by_module.items()},
        "density": {"eigenvalues": spectral.eigenvalues.tolist(), "weights": spectral.weights.tolist()},
        "repeated_product_difference": float((along_gradient - again).norm() / along_gradient.norm().clamp(min=1e-30)),
        "difference_error": products.error if isinstance(products, DifferenceProducts) else None,
        "weights": weights,
        "sharpness": sharpness,
    }


def _weights(
    products: Products, base: WeightUpdate, top: FactorStep, config: CurvatureConfig, advance: Callable[[], None]
) -> Result:
    """Trace and largest eigenvalue in the merged weights of the adapted modules."""
    samples = []
    for number in range(config.weight_probes):
        samples.append(products.along_update(random_update(base, config.seed, number, PROBE_RANK)).curvature)
        advance()
    # The steepest step of the factors, as a step of the weights, is where the ascent begins.
    start = {name: top[name].B @ base[name].A + base[name].B @ top[name].A for name in base}
    found = largest_eigenvalue(products.weight_hessian, start, config.power_steps, advance)
    return {
        "dimension": sum(len(pair.B) * pair.A.shape[1] for pair in base.values()),
        "trace": dataclasses.asdict(mean_trace(samples)),
        "largest": dataclasses.asdict(found),
    }


def _sharpness(  # noqa: PLR0917 -- one call, above
    model: LanguageModel,
    items: Items,
    base: WeightUpdate,
    gradient: torch.Tensor,
    along_gradient: torch.Tensor,
    config: CurvatureConfig,
    batch_size: int,
) -> Result:
    """Worst case, average case and along the gradient, all within canonical factors; the radius is a share of their norm."""
    coordinates = Coordinates(base)
    space = AdapterSpace(canonicalise(base))
    radius = config.radius * space.norm
    loss_at = _loss_at(model, items, base, batch_size)

    def gradient_at(offset: torch.Tensor) -> torch.Tensor:
        with products_at(
            model, items, moved(base, coordinates.step(offset)), micro_batch=config.micro_batch, method=config.products
        ) as there:
            return coordinates.vector(there.gradient())

    worst = worst_case(loss_at, gradient_at, gradient, radius, config.ascent_steps)
    centre = loss_at(torch.zeros_like(gradient))
    drawn = [coordinates.vector(d) for d in space.directions(config.seed, config.sharpness_directions, radius)]
    average = average_case([loss_at(d) - centre for d in drawn], radius)
    slope, curvature = _dot(gradient, gradient), _dot(gradient, along_gradient)
    return {
        "items_per_step": len(items),
        "worst_case": dataclasses.asdict(worst),
        "average_case": dataclasses.asdict(average),
        "critical": dataclasses.asdict(critical_sharpness(loss_at, gradient, slope, curvature)),
    }


def _loss_at(
    model: LanguageModel, items: Items, base: WeightUpdate, batch_size: int
) -> Callable[[torch.Tensor], float]:
    """The mean loss of `items` at an offset from the factors `base`."""
    coordinates = Coordinates(base)

    def loss_at(offset: torch.Tensor) -> float:
        with model.perturbed() as move:
            move(moved(base, coordinates.step(offset)))
            return float(score(model, items, batch_size).losses.mean())

    return loss_at


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() * y.double()).sum())
