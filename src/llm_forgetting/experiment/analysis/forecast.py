"""The forecast phase: what slope and curvature at a checkpoint say about the next."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forgetting.config.sections import CurvatureConfig
from llm_forgetting.curvature import forecast as forecasts
from llm_forgetting.curvature.operators import Along
from llm_forgetting.curvature.results import Trace
from llm_forgetting.curvature.sharpness import critical_sharpness
from llm_forgetting.experiment.analysis.spectrum import Items, Result, _dot, _loss_at
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.models.hessian.coordinates import Coordinates
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import answer_distributions, score
from llm_forgetting.progress import Advance


def forecast_evaluations(old_tasks: int) -> int:
    """Steps of the progress bar of `analyse_forecast`: two splits per old task, and the divergence."""
    return 2 * old_tasks + 1


def analyse_forecast(  # noqa: PLR0917 -- named at its one call
    model: LanguageModel,
    first: WeightUpdate,
    second: WeightUpdate,
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
    difference = WeightUpdate.combine([(1.0, second), (-1.0, first)])
    distance = difference.norm()
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


def _divergence(
    model: LanguageModel, first: WeightUpdate, second: WeightUpdate, items: Items, batch_size: int
) -> np.ndarray:
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


def _relative_critical(  # noqa: PLR0917 -- one call, above
    model: LanguageModel, update: WeightUpdate, items: Items, new: Items, config: CurvatureConfig, batch_size: int
) -> Result:
    """Critical sharpness of the loss of `items` along the gradient of that of `new`, in canonical factors at `update`."""
    base = WeightUpdate.canonical(canonicalise(update))
    coordinates = Coordinates(base)
    with products_at(model, new, base, micro_batch=config.micro_batch, method=config.products) as products:
        other = coordinates.vector(products.gradient())
    with products_at(model, items, base, micro_batch=config.micro_batch, method=config.products) as products:
        gradient = coordinates.vector(products.gradient())
        image = coordinates.vector(products.hessian(coordinates.step(other)))
    loss_at = _loss_at(model, items, base, batch_size)
    return dataclasses.asdict(critical_sharpness(loss_at, other, _dot(gradient, other), _dot(other, image)))
