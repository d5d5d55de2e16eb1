"""The forecast phase: the losses at a checkpoint from slope and curvature at the one before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llm_forgetting.arrays import Floats, mean_stderr
from llm_forgetting.config.measurements import CurvatureConfig
from llm_forgetting.curvature import forecast as forecasts
from llm_forgetting.curvature.operators import DirectionalDerivatives, dot
from llm_forgetting.curvature.records import (
    CriticalSharpness,
    Divergence,
    ForecastPhase,
    ForecastRecord,
    PathForecast,
    RivalPredictors,
    SpectrumRecord,
    TaskForecast,
)
from llm_forgetting.curvature.sharpness import critical_sharpness
from llm_forgetting.experiment.analysis.spectrum import AdapterLoss, Items
from llm_forgetting.landscape.between_records import PathScan
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.nodes import Journal
from llm_forgetting.models.hessian.products import AdapterHessian, products_at
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import answer_distributions, score
from llm_forgetting.progress import Advance

DIVERGENCE = "KL divergence"
"""Its key in the journal, which no task and split have."""
EXACT = -1.0
"""In the journal: the error of a curvature that has none."""


def forecast_evaluations(old_tasks: int) -> int:
    """Steps of the progress bar of `analyse_forecast`: two splits per old task, and the divergence."""
    return 2 * old_tasks + 1


def analyse_forecast(
    model: LanguageModel,
    first: tuple[str, WeightUpdate],
    second: tuple[str, WeightUpdate],
    *,
    old: Mapping[str, Mapping[str, Items]],
    new: Items,
    path: PathScan | None,
    config: CurvatureConfig,
    tau: float,
    batch_size: int,
    advance: Advance,
    journal: Path | None = None,
) -> ForecastPhase:
    """Forecasts at the checkpoint `first` (name, delta W_1) of the losses of the `old` tasks (name, split, items) at `second`.

    Exact slope and curvature along D = delta W_2 - delta W_1 in the merged weights, per task and split, beside the change of
    loss of the same items; for the items whose `path` was measured also the path's own derivatives, and how far along it the
    quadratic holds within `tau` nats. `new` are items of the task that was learnt in between; with `config.spectrum` their
    gradient is what the relative critical sharpness of the last old task's first split goes against. The numbers of every
    task and split are written to `journal` when they are made, and those that stand there are not made again.
    """
    kept = Journal(journal)
    (start, before), (to, after) = first, second
    difference = WeightUpdate.combine([(1.0, after), (-1.0, before)])
    distance = difference.norm()
    tasks: dict[str, dict[str, TaskForecast]] = {}
    for task, splits in old.items():
        tasks[task] = {}
        for split, items in splits.items():
            key = f"{task} {split}"
            if (found := kept.get(key)) is None:
                with products_at(
                    model, items, before, micro_batch=config.micro_batch, method=config.products
                ) as products:
                    along = products.along_update(difference)
                found = np.array([*_numbers(along), _loss_at(model, after, items, batch_size)])
                kept.put(key, found)
            *numbers, loss = map(float, found)
            derivatives = _derivatives(numbers)
            tasks[task][split] = TaskForecast(
                items=_ids(items),
                loss=derivatives.loss,
                first_order=derivatives.slope,
                curvature=derivatives.curvature,
                second_order=derivatives.second_order,
                observed=loss - derivatives.loss,
                path=_on_the_path(path, task, items, derivatives, tau),
                curvature_error=derivatives.curvature_error,
            )
            advance(1, "")
    kl = kept.get(DIVERGENCE)
    if kl is None:
        kl = _divergence(model, (before, after), new, batch_size)
        kept.put(DIVERGENCE, kl)
    advance(1, "")
    relative = None
    if config.spectrum:
        own, *_ = list(old.values())[-1].values()
        relative = _relative_critical(model, before, own, new, config=config, batch_size=batch_size)
    return ForecastPhase(start, to, distance, relative, Divergence(*mean_stderr(kl), len(kl)), tasks)


def _numbers(along: DirectionalDerivatives) -> list[float]:
    error = EXACT if along.curvature_error is None else along.curvature_error
    return [along.loss, along.slope, along.curvature, error]


def _derivatives(numbers: Sequence[float]) -> DirectionalDerivatives:
    loss, slope, curvature, error = numbers
    return DirectionalDerivatives(loss, slope, curvature, None if error == EXACT else error)


def _loss_at(model: LanguageModel, update: WeightUpdate, items: Items, batch_size: int) -> float:
    with model.perturbed() as move:
        move(update)
        return float(score(model, items, batch_size).mean_loss)


def _ids(items: Items) -> tuple[str, ...]:
    return tuple(item.item.id for item in items)


def _on_the_path(
    path: PathScan | None, task: str, items: Items, derivatives: DirectionalDerivatives, tau: float
) -> PathForecast | None:
    """The path's derivatives at its start and the quadratic beside it, where it is the path of the same items."""
    profile = None if path is None else path.tasks.get(task)
    if path is None or profile is None or profile.items != _ids(items):
        return None
    start = profile.at_start
    return PathForecast(
        slope=start.slope,
        curvature=start.curvature,
        curvature_error=start.curvature_error,
        disagreement=abs(start.curvature - derivatives.curvature) / max(abs(derivatives.curvature), 1e-12),
        quadratic=forecasts.quadratic(derivatives, path.steps),
        validity=forecasts.validity(path.steps, profile.loss, derivatives, tau),
    )


def _divergence(
    model: LanguageModel, updates: tuple[WeightUpdate, WeightUpdate], items: Items, batch_size: int
) -> Floats:
    logits = []
    with model.perturbed() as move:
        for update in updates:
            move(update)
            logits.append(answer_distributions(model, items, batch_size))
    return forecasts.divergence(*logits)


def compare_with_rival_predictors(
    phases: Sequence[ForecastPhase], spectra: Mapping[str, SpectrumRecord]
) -> tuple[ForecastRecord, ...]:
    """Forecasts beside the predictors that need trace and largest eigenvalue in the merged weights, where those were measured.

    They belong to the task that was learnt last at the checkpoint, so only its entries get them.
    """
    return tuple(ForecastRecord(**vars(phase), rivals=_rivals(phase, spectra.get(phase.start))) for phase in phases)


def _rivals(phase: ForecastPhase, spectrum: SpectrumRecord | None) -> RivalPredictors | None:
    if spectrum is None or spectrum.weights is None:
        return None
    weights, distance, relative = spectrum.weights, phase.update_norm, phase.relative_critical
    *_, task = phase.tasks
    learnt = next(forecast for forecast in phase.tasks[task].values() if forecast.items == spectrum.items)
    derivatives = DirectionalDerivatives(learnt.loss, learnt.first_order, learnt.curvature)
    return RivalPredictors(
        task=task,
        quadratic_bound=forecasts.quadratic_bound(weights.largest.value, distance),
        average_rise=forecasts.average_rise(weights.trace, weights.dimension, distance),
        alignment=forecasts.alignment(derivatives, distance, weights.trace, weights.dimension),
        relative_critical_sharpness=None if relative is None else relative.value,
    )


def _relative_critical(
    model: LanguageModel, update: WeightUpdate, items: Items, new: Items, *, config: CurvatureConfig, batch_size: int
) -> CriticalSharpness:
    """Critical sharpness of the loss of `items` along the gradient of that of `new`, in canonical factors at `update`."""
    base = WeightUpdate.canonical(canonicalise(update))
    with products_at(model, new, base, micro_batch=config.micro_batch, method=config.products) as products:
        other = AdapterHessian(products).gradient()
    with products_at(model, items, base, micro_batch=config.micro_batch, method=config.products) as products:
        hessian = AdapterHessian(products)
        gradient, image = hessian.gradient(), hessian @ other
    loss = AdapterLoss(model, items, base, config, batch_size)
    return critical_sharpness(loss, other, dot(gradient, other), dot(other, image))
