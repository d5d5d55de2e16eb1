"""What the landscape at one saved checkpoint forecasts of another: the forecast phase, for anyone's pair A B."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llm_forgetting.config.sections import ForecastConfig
from llm_forgetting.experiment.adapter_landscape import begin, landscape_items
from llm_forgetting.experiment.analysis.forecast import analyse_forecast, forecast_evaluations
from llm_forgetting.experiment.artifacts import provenance
from llm_forgetting.experiment.artifacts.phase_artifacts import pair_forecast_phase
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.inputs import require_same_backbone
from llm_forgetting.experiment.pairs import NAMES, Pair, described, open_one, require_pair
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.progress import Advance, Progress
from llm_forgetting.results import ForecastResults, ModelDescription, PairForecast


def forecast_pair(config: ForecastConfig, pair: Pair, folder: RunFolder, progress: Progress) -> ForecastResults:
    """Per task slope and curvature at A along D = delta W_B - delta W_A, beside what was observed at B.

    Each task is kept in `folder` when it is done. The checkpoints may be of different ranks. Returns what forecast.json
    holds; UserError for what the user can mend.
    """
    require_pair(pair, config.model)
    begin(config, pair, folder, progress, names=NAMES)
    model = open_one(pair, config.model, progress.note)
    model.arithmetic = config.landscape.arithmetic
    require_same_backbone(folder.path, replace(config.model, name=model.source))
    items = landscape_items(config, model, folder, progress)
    updates = {name: model.update_of(checkpoint) for name, checkpoint in zip(NAMES, pair, strict=True)}
    tasks: dict[str, PairForecast] = {}
    for k, (task, chosen) in enumerate(items, start=1):

        def forecast(task: str = task, chosen: Sequence[EncodedItem] = chosen) -> PairForecast:
            with progress.bar(f"forecast of {task}", forecast_evaluations(1)) as advance:
                return _forecast(model, updates, task, chosen, config=config, advance=advance)

        tasks[task] = folder.once(pair_forecast_phase(k), forecast)
    first, second = updates.values()
    description = from_plain(ModelDescription, model.description())
    return ForecastResults(
        schema_version=provenance.SCHEMA_VERSION,
        config=config,
        versions=provenance.versions(description.quantization),
        environment=provenance.environment(),
        model=description,
        checkpoints={name: described(checkpoint) for name, checkpoint in zip(NAMES, pair, strict=True)},
        norms={name: update.norm() for name, update in updates.items()},
        update_norm=WeightUpdate.combine([(1.0, second), (-1.0, first)]).norm(),
        tasks=tasks,
        warnings=tuple(model.fallbacks),
        timings=folder.timings(),
    )


def _forecast(
    model: LanguageModel,
    updates: Mapping[str, WeightUpdate],
    task: str,
    items: Sequence[EncodedItem],
    *,
    config: ForecastConfig,
    advance: Advance,
) -> PairForecast:
    first, second = updates.items()
    batch_size, split = config.landscape.batch_size, config.landscape.items
    phase = analyse_forecast(
        model,
        first,
        second,
        old={task: {split: items}},
        new=items,
        path=None,
        config=replace(config.curvature, spectrum=False),
        tau=config.landscape.tau,
        batch_size=batch_size,
        advance=advance,
    )
    losses = []
    with model.perturbed() as move:
        for update in updates.values():
            move(update)
            losses.append(score(model, items, batch_size).weighted_losses)
    before, after = losses
    change = paired_mean_change(
        before, after, seed=config.landscape.seed, clusters=[item.item.subject for item in items]
    )
    return PairForecast(phase.tasks[task][split], change, phase.divergence)
