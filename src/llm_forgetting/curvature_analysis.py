"""The curvature phases of an experiment: what the landscape at a checkpoint forecasts, and its spectrum and sharpness."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from llm_forgetting.batches import EncodedItem
from llm_forgetting.config import CurvatureConfig
from llm_forgetting.curvature import forecast as forecasts
from llm_forgetting.curvature.along import Along, Weights
from llm_forgetting.curvature.difference_products import DifferenceProducts
from llm_forgetting.curvature.products import Products, products_at
from llm_forgetting.curvature.sharpness import average_case, critical_sharpness, worst_case
from llm_forgetting.curvature.vectors import Coordinates, moved, random_update
from llm_forgetting.eigenvalues import Eigenvalue, Trace, mean_trace
from llm_forgetting.evaluation import answer_distributions, score
from llm_forgetting.krylov import (
    density,
    eigenvector,
    extreme_eigenvalues,
    lanczos,
    random_start,
    traces,
)
from llm_forgetting.landscape.directions import Direction
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.lowrank import Update, combination, norm
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.language_model import LanguageModel
from llm_forgetting.progress import Advance

Items = Sequence[EncodedItem]
Result = dict[str, Any]
# Of the random directions behind the trace in the merged weights.
PROBE_RANK = 16


def forecast_evaluations(old_tasks: int) -> int:
    """Steps of the progress bar of `analyse_forecast`: two splits per old task, and the divergence."""
    return 2 * old_tasks + 1


def analyse_forecast(  # noqa: PLR0917 -- named at its one call
    model: LanguageModel,
    first: Update,
    second: Update,
    old: Mapping[str, Mapping[str, Items]],
    new: Items,
    path: Mapping[str, Any] | None,
    config: CurvatureConfig,
    *,
    tau: float,
    batch_size: int,
    advance: Advance,
) -> Result:
    """What the landscape at `first` says about the losses of the `old` tasks (name, split, items) at `second`.

    Exact slope and curvature along D = delta W_2 - delta W_1 in the merged weights, per task and split, beside the change of
    loss of the same items; for the items whose `path` was measured also the path's own derivatives, and how far along it the
    quadratic holds within `tau` nats. `new` are items of the task that was learnt in between; with `config.spectrum` their
    gradient is what the relative critical sharpness of the last old task's first split goes against.
    """
    difference = combination([(1.0, second), (-1.0, first)])
    distance = norm(difference)
    found: dict[str, dict[str, Result]] = {}
    for task, splits in old.items():
        found[task] = {}
        for split, items in splits.items():
            with products_at(model, items, first, micro_batch=config.micro_batch, method=config.products) as products:
                along = products.along_update(difference)
            with model.perturbed() as move:
                move(second)
                after = score(model, items, batch_size).losses
            found[task][split] = {
                "items": [item.item.id for item in items],
                "loss": along.loss,
                **dataclasses.asdict(forecasts.forecast(along, float(after.mean()) - along.loss)),
                "path": _on_the_path(path, task, items, along, tau),
            }
            advance(1, "")
    kl = _divergence(model, first, second, new, batch_size)
    advance(1, "")
    relative = None
    if config.spectrum:
        own, *_ = list(old.values())[-1].values()
        relative = _relative_critical(model, first, own, new, config, batch_size)
    return {
        "update_norm": distance,
        "relative_critical": relative,
        "divergence": dict(zip(("value", "stderr", "items"), (*forecasts.mean_stderr(kl), len(kl)), strict=True)),
        "tasks": found,
    }


def _on_the_path(path: Mapping[str, Any] | None, task: str, items: Items, along: Along, tau: float) -> Result | None:
    """The path's derivatives at its start and the quadratic beside it, where it is the path of the same items."""
    measured = None if path is None else path["tasks"].get(task)
    if path is None or measured is None or measured["items"] != [item.item.id for item in items]:
        return None
    steps, losses = np.array(path["steps"]), np.array(measured["loss"])
    start = measured["at_start"]
    return {
        "slope": start["slope"],
        "curvature": start["curvature"],
        "curvature_error": start["curvature_error"],
        "disagreement": abs(start["curvature"] - along.curvature) / max(abs(along.curvature), 1e-12),
        "quadratic": forecasts.quadratic(along, steps).tolist(),
        "validity": dataclasses.asdict(forecasts.validity(steps, losses, along, tau)),
    }


def _divergence(model: LanguageModel, first: Update, second: Update, items: Items, batch_size: int) -> np.ndarray:
    logits = []
    with model.perturbed() as move:
        for update in (first, second):
            move(update)
            logits.append(answer_distributions(model, items, batch_size))
    return forecasts.divergence(*logits)


def with_weights(found: Sequence[Result], spectra: Mapping[str, Result]) -> list[Result]:
    """Forecasts together with what needs trace and largest eigenvalue in the merged weights, where those were measured.

    They belong to the task that was learnt last at the checkpoint, so only its entries get them.
    """
    told = []
    for entry in found:
        spectrum = spectra.get(entry["from"])
        bound = None
        if spectrum is not None and spectrum["weights"] is not None:
            weights, distance = spectrum["weights"], entry["update_norm"]
            trace, n = Trace(**weights["trace"]), weights["dimension"]
            *_, task = entry["tasks"]
            learnt = next(found for found in entry["tasks"][task].values() if found["items"] == spectrum["items"])
            along = Along(learnt["loss"], learnt["first_order"], learnt["curvature"])
            relative = entry["relative_critical"]
            bound = {
                "task": task,
                "quadratic_bound": forecasts.quadratic_bound(weights["largest"]["value"], distance),
                "average_rise": dataclasses.asdict(forecasts.average_rise(trace, n, distance)),
                "alignment": forecasts.alignment(along, distance, trace, n),
                "relative_critical_sharpness": None if relative is None else relative["value"],
            }
        told.append({**entry, "rivals": bound})
    return told


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
    base = {name: module.factors for name, module in canonicalise(model.adapter_factors()).items()}
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
    products: Products, base: Update, top: Direction, config: CurvatureConfig, advance: Callable[[], None]
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


def largest_eigenvalue(
    product: Callable[[Weights], Weights], x: Weights, steps: int, advance: Callable[[], None] = lambda: None
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric operator, from below, by `steps` products.

    Steepest ascent of the Rayleigh quotient: from x to the top of the plane that x and H x span, whose image needs no product
    of its own. Three vectors are kept at a time.
    """
    x = _combined((1 / _norm(x), x))
    image = product(x)
    advance()
    for _ in range(steps - 1):
        alpha = _inner(x, image)
        q = _combined((1.0, image), (-alpha, x))
        beta = _norm(q)
        if not beta:
            break
        q = _combined((1 / beta, q))
        of_q = product(q)
        advance()
        _, vectors = np.linalg.eigh([[alpha, beta], [beta, _inner(q, of_q)]])
        c, s = map(float, vectors[:, 1])
        x, image = _combined((c, x), (s, q)), _combined((c, image), (s, of_q))
    value = _inner(x, image)
    return Eigenvalue(value, _norm(_combined((1.0, image), (-value, x))))


def _combined(*terms: tuple[float, Weights]) -> Weights:
    (first, x), *others = terms
    found = {name: first * part for name, part in x.items()}
    for c, y in others:
        for name, part in found.items():
            part.add_(y[name], alpha=c)
    return found


def _inner(x: Weights, y: Weights) -> float:
    return sum(float((part * y[name]).sum(dtype=torch.float64)) for name, part in x.items())


def _norm(x: Weights) -> float:
    return math.sqrt(_inner(x, x))


def _sharpness(  # noqa: PLR0917 -- one call, above
    model: LanguageModel,
    items: Items,
    base: Update,
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


def _relative_critical(  # noqa: PLR0917 -- one call, above
    model: LanguageModel, update: Update, items: Items, new: Items, config: CurvatureConfig, batch_size: int
) -> Result:
    """Critical sharpness of the loss of `items` along the gradient of that of `new`, in canonical factors at `update`."""
    base = {name: module.factors for name, module in canonicalise(update).items()}
    coordinates = Coordinates(base)
    with products_at(model, new, base, micro_batch=config.micro_batch, method=config.products) as products:
        other = coordinates.vector(products.gradient())
    with products_at(model, items, base, micro_batch=config.micro_batch, method=config.products) as products:
        gradient = coordinates.vector(products.gradient())
        image = coordinates.vector(products.hessian(coordinates.step(other)))
    loss_at = _loss_at(model, items, base, batch_size)
    return dataclasses.asdict(critical_sharpness(loss_at, other, _dot(gradient, other), _dot(other, image)))


def _loss_at(model: LanguageModel, items: Items, base: Update, batch_size: int) -> Callable[[torch.Tensor], float]:
    """The mean loss of `items` at an offset from the factors `base`."""
    coordinates = Coordinates(base)

    def loss_at(offset: torch.Tensor) -> float:
        with model.perturbed() as move:
            move(moved(base, coordinates.step(offset)))
            return float(score(model, items, batch_size).losses.mean())

    return loss_at


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() * y.double()).sum())
