"""The landscape of anyone's saved adapter: the same phases as an experiment's, without the experiment."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from llm_forgetting.config.sections import ScanConfig, to_dict
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.landscape import analyse_landscape, evaluations
from llm_forgetting.experiment.analysis.paths import analyse_between, no_update
from llm_forgetting.experiment.artifacts import provenance as results
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.session import choose_landscape_items
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.files import encode_json
from llm_forgetting.models.language.batches import EncodedItem, encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Progress
from llm_forgetting.report.figures.run import draw_landscapes

Result = dict[str, Any]
NAMES = ("adapter", "other")
IDENTITY = "scan.json"


def scan_adapter(config: ScanConfig, adapters: list[Path], folder: RunFolder, progress: Progress) -> Result:
    """Surfaces of every task around each adapter (one or two), and for two the path and the plane with the backbone.

    Every scan is kept in `folder` when it is done, every evaluation when it is made. Returns what landscape.json holds.
    """
    settings = config.landscape
    if not (folder.path / IDENTITY).exists():
        folder.write(IDENTITY, encode_json(_identity(config, adapters)))
    model = LanguageModel.open_adapter(adapters[0], config.model)
    items = _items(config, model, progress)
    updates = {name: model.update_of(adapter) for name, adapter in zip(NAMES, adapters, strict=False)}
    landscapes: dict[str, Result] = {}
    warnings: list[str] = []
    for name, adapter in zip(NAMES, adapters, strict=False):
        try:
            model.load_adapter_weights(adapter)
        except UserError as error:  # another rank: the way to it can be measured, its own surroundings not
            warnings.append(f"no landscape of its own: {error}")
            continue
        landscapes[name] = folder.once(
            f"landscape_{name}", partial(_around, model, items, config, name, landscapes, folder, progress)
        )
    between = folder.once(
        "between_checkpoints",
        lambda: analyse_between(
            model,
            items,
            {"backbone": no_update(updates[NAMES[0]]), **updates},
            settings,
            progress=progress,
            journal=lambda name: folder.phases / f"{name}.journal",
        ),
    )
    content = {
        "schema_version": results.SCHEMA_VERSION,
        "config": to_dict(config),
        "versions": results.versions(),
        "environment": results.environment(),
        "model": model.description(),
        "adapters": dict(zip(NAMES, map(str, adapters), strict=False)),
        "landscapes": landscapes,
        **between,
        "warnings": warnings + between["between_notes"],
    }
    return dict(results.without_raw_logits(content))


def refuse_other_scan(config: ScanConfig, adapters: list[Path], folder: RunFolder) -> None:
    """UserError where `folder` holds a scan of other adapters or of another configuration (its output aside)."""
    path = folder.path / IDENTITY
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != _identity(config, adapters):
        raise UserError(
            f"--resume must be given the adapters and options that the scan in {folder.path} was started with ({IDENTITY}), "
            f"they differ; give the same ones, or leave --resume out"
        )


def _identity(config: ScanConfig, adapters: list[Path]) -> Result:
    """What decides a scan's numbers: the configuration, and the bytes of task definitions and adapters."""
    content = to_dict(config)
    del content["output"]
    definitions = content["data"].pop("definitions")
    weights = [adapter / "adapter_model.safetensors" for adapter in adapters]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in weights]
    identity: Result = json.loads(json.dumps({"config": content, "adapters": hashes}))
    if definitions is not None:
        identity["definitions"] = {"path": definitions, "sha256": config.data.definitions_sha256}
    return identity


def _around(  # noqa: PLR0917 -- one call, above
    model: LanguageModel,
    items: list[tuple[str, list[EncodedItem]]],
    config: ScanConfig,
    name: str,
    before: dict[str, Result],
    folder: RunFolder,
    progress: Progress,
) -> Result:
    """The landscape of the live adapter, in units of the first one's norm."""
    reference = next(iter(before.values()))["reference_norm"] if before else None
    with progress.bar(f"landscape of {name}", evaluations(config.landscape)) as advance:
        return analyse_landscape(
            model,
            items,
            config.landscape,
            reference_norm=reference,
            advance=advance,
            journal=folder.phases / f"landscape_{name}.journal",
        )


def _items(config: ScanConfig, model: LanguageModel, progress: Progress) -> list[tuple[str, list[EncodedItem]]]:
    tasks = tasks_of(config.data, source_of(config.data, progress.note))
    chosen = []
    for task in tasks:
        split = task.split(config.landscape.items)
        encoded = encode(model.tokenizer, split, task.shots, config.data.max_tokens)
        chosen.append((task.name, choose_landscape_items(encoded, task.name, config.landscape)))
    return chosen


def save_scan(content: Result, folder: RunFolder, *, dpi: int) -> None:
    """landscape.json and the figures; the numbers first, which no failure to draw may lose."""
    content |= {"figures": [], "timings": folder.timings()}
    folder.write("landscape.json", encode_json(content))
    content["figures"] = draw_landscapes(content, folder.path, dpi=dpi)
    folder.write("landscape.json", encode_json(content))
