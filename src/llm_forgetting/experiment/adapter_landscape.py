"""The landscape of anyone's saved adapter or model: the same phases as an experiment's, without the experiment."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from llm_forgetting.config.paths import to_dict
from llm_forgetting.config.sections import ForecastConfig, ScanConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.landscape import analyse_landscape, evaluations, require_space
from llm_forgetting.experiment.analysis.paths import analyse_between, path_objective
from llm_forgetting.experiment.artifacts import provenance
from llm_forgetting.experiment.artifacts.phase_artifacts import BETWEEN, landscape_phase
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.inputs import require_same_backbone, require_same_rows
from llm_forgetting.experiment.session import choose_landscape_items
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.experiment.trained_items import require_whole_adapter
from llm_forgetting.files import OMITTED, decode, encode, from_plain
from llm_forgetting.files.manifest import file_digest, require_inputs
from llm_forgetting.landscape.between_records import BetweenCheckpoints
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.records import CheckpointLandscape
from llm_forgetting.models.adapter.full_updates import checkpoint_files, is_full_model
from llm_forgetting.models.language.backbones import require_same_tokens
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.encoding import encode as encode_items
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Progress
from llm_forgetting.report.figures.run import draw_landscapes
from llm_forgetting.results import ModelDescription, ScanResults

Items = list[tuple[str, list[EncodedItem]]]
log = logging.getLogger(__name__)
NAMES = ("adapter", "other")
IDENTITY = "scan.json"


@dataclass(frozen=True)
class DefinitionsHash:
    """Task definitions by path, with the SHA-256 of the file."""

    path: str
    sha256: str


@dataclass(frozen=True)
class ScanIdentity:
    """Identity of a scan, scan.json: the configuration without what changes no number, and the adapters' SHA-256 (None
    where an adapter has no safetensors file).
    """

    config: dict[str, object]
    adapters: tuple[str | None, ...]
    definitions: Annotated[DefinitionsHash | None, OMITTED] = None


def scan_adapter(config: ScanConfig, adapters: Sequence[Path], folder: RunFolder, progress: Progress) -> ScanResults:
    """Surfaces of every task around each adapter (one or two), and for two the path and the plane with the backbone.

    Every scan is kept in `folder` when it is done, every evaluation when it is made. Returns what landscape.json holds, before
    anything is drawn.
    """
    begin(config, adapters, folder, progress)
    model = LanguageModel.open_adapter(adapters[0], config.model)
    model.arithmetic = config.landscape.arithmetic
    require_same_backbone(folder.path, replace(config.model, name=model.source))
    items = landscape_items(config, model, folder, progress)
    require_same_tokens(model.tokenizer, adapters[1:])
    updates = {name: model.update_of(adapter) for name, adapter in zip(NAMES, adapters, strict=False)}
    landscapes: dict[str, CheckpointLandscape] = {}
    warnings: list[str] = []
    require_space(model, config.landscape, progress.note)
    for name, adapter in zip(NAMES, adapters, strict=False):
        try:
            if model.low_rank:
                model.load_adapter_weights(adapter)
        except UserError as error:  # another rank: the path to it can be measured, its own surroundings not
            warnings.append(f"no landscape of its own: {error}")
            continue
        unit = next(iter(landscapes.values())).reference_norm if landscapes else None
        journal = folder.phases / f"{landscape_phase(name).name}.journal"

        def scan(name: str = name, unit: float | None = unit, journal: Path = journal) -> CheckpointLandscape:
            with progress.bar(f"landscape of {name}", evaluations(config.landscape)) as advance:
                return analyse_landscape(
                    model,
                    items,
                    config.landscape,
                    reference_norm=unit,
                    advance=advance,
                    journal=journal,
                    update=None if model.low_rank else updates[name],
                )

        landscapes[name] = folder.once(landscape_phase(name), scan)

    settings = config.landscape
    if (
        len(adapters) > 1
        and is_full_model(adapters[0])
        and model.source == str(adapters[0])
        and settings.checkpoint_plane
    ):
        settings = replace(settings, checkpoint_plane=False)
        warnings.append(
            "no plane through the checkpoints: it needs the model that both were made of; give it as --model_name"
        )

    def scan_between() -> BetweenCheckpoints:
        return analyse_between(
            path_objective(model, items, config.landscape),
            {"backbone": WeightUpdate.zero(updates[NAMES[0]]), **updates},
            settings,
            progress=progress,
            journal=lambda name: folder.phases / f"{name}.journal",
        )

    between = provenance.profiles_alone(folder.once(BETWEEN, scan_between))
    description = from_plain(ModelDescription, model.description())
    return ScanResults(
        schema_version=provenance.SCHEMA_VERSION,
        config=config,
        versions=provenance.versions(description.quantization),
        environment=provenance.environment(),
        model=description,
        adapters=dict(zip(NAMES, map(str, adapters), strict=False)),
        landscapes={name: provenance.surfaces_alone(landscape) for name, landscape in landscapes.items()},
        **vars(between),
        warnings=(*warnings, *model.fallbacks, *between.between_notes),
        figures=(),
        timings=folder.timings(),
    )


def begin(
    config: ScanConfig | ForecastConfig,
    adapters: Sequence[Path | None],
    folder: RunFolder,
    progress: Progress,
    names: Sequence[str] = NAMES,
) -> None:
    """Check the folder of a scan or forecast, and write into a new one what decides its numbers; UserError where an adapter
    is not what it was.
    """
    folder.check(progress.note)
    if not (folder.path / IDENTITY).exists():
        folder.write(IDENTITY, encode(_identity(config, adapters)))
    checksums: dict[str, str] = {}
    for name, adapter in zip(names, adapters, strict=False):
        if adapter is None:
            continue
        require_whole_adapter(adapter)
        checksums |= {
            f"{file} of the adapter ({name})": file_digest(adapter / file) or "" for file in checkpoint_files(adapter)
        }
    require_inputs(folder.path, "adapter", checksums)


def refuse_other_scan(config: ScanConfig | ForecastConfig, adapters: Sequence[Path | None], folder: RunFolder) -> None:
    """UserError where `folder` holds a scan or forecast of other adapters or another configuration (its output aside)."""
    path = folder.path / IDENTITY
    if path.exists() and decode(ScanIdentity, path.read_bytes(), file=IDENTITY) != _identity(config, adapters):
        raise UserError(
            f"--resume must be given the adapters and options that the scan in {folder.path} was started with ({IDENTITY}), "
            f"they differ; give the same ones, or leave --resume out"
        )


def _identity(config: ScanConfig | ForecastConfig, adapters: Sequence[Path | None]) -> ScanIdentity:
    """What decides a scan's numbers: the configuration, and the bytes of task definitions and adapters."""
    content = to_dict(config)
    del content["output"]
    definitions = content["data"].pop("definitions")
    weights = [None if adapter is None else adapter / checkpoint_files(adapter)[-1] for adapter in adapters]
    identity = ScanIdentity(
        config=content,
        adapters=tuple(None if path is None else file_digest(path) for path in weights),
        definitions=None if definitions is None else DefinitionsHash(definitions, config.data.definitions_sha256 or ""),
    )
    return decode(ScanIdentity, encode(identity))  # lists and tuples are the same to JSON


def landscape_items(
    config: ScanConfig | ForecastConfig, model: LanguageModel, folder: RunFolder, progress: Progress
) -> Items:
    """Per task the items whose loss is measured, those that a run of this configuration takes; UserError for other rows."""
    chosen = []
    tasks = tasks_of(config.data, source_of(config.data, progress.note))
    require_same_rows(folder.path, tasks)
    for task in tasks:
        split = task.split(config.landscape.items)
        encoded = encode_items(model.tokenizer, split, task.shots, config.data.max_tokens, config.data.weighting)
        chosen.append((task.name, choose_landscape_items(encoded, task.name, config.landscape)))
    return chosen


def save_scan(results: ScanResults, folder: RunFolder, *, dpi: int) -> ScanResults:
    """Write landscape.json and the figures; the numbers first, which no failure to draw may lose."""
    results = replace(results, figures=())
    folder.write_record("landscape.json", results)
    try:
        results = replace(results, figures=tuple(draw_landscapes(results, folder.path, dpi=dpi)))
    except Exception as error:
        log.exception("figures could not be drawn")
        results = replace(results, warnings=(*results.warnings, f"figures could not be drawn ({error!r})"))
    folder.write_record("landscape.json", results)
    return results
