"""Inputs of a run by checksum: what it reads must be what it was begun with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.files.manifest import digest, file_digest, require_inputs
from llm_forgetting.forgetting.harness_logs import Sample
from llm_forgetting.models.language.backbones import backbone_folder
from llm_forgetting.models.language.text_loss import Passage
from llm_forgetting.tasks.task import AnyItem, Task

_SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")


def require_same_rows(folder: Path, tasks: Sequence[Task]) -> None:
    """Raise UserError where rows or few-shot rows are not, to the letter, those that the run in `folder` was begun with."""
    require_inputs(folder, "rows", {task.name: _digest((*task.train, *task.test)) for task in tasks})
    shots = {task.name: _digest(item for items in task.shots.values() for item in items) for task in tasks}
    require_inputs(folder, "shots", shots)


def _digest(items: Iterable[AnyItem]) -> str:
    return digest(json.dumps([asdict(item) for item in items]).encode())


def require_same_probes(folder: Path, probes: Sequence[Task]) -> None:
    """Raise UserError where items or few-shot rows of probes are not those that the run in `folder` was begun with."""
    shots = [item for task in probes for items in task.shots.values() for item in items]
    require_inputs(folder, "probes", {task.name: _digest((*task.test, *shots)) for task in probes})


def require_same_documents(folder: Path, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Raise UserError where the harness' documents, by task, are not those that an earlier checkpoint was scored on."""
    documents = {name: [(one.task, one.id, one.hash) for one in found] for name, found in samples.items()}
    require_inputs(folder, "samples", {name: digest(json.dumps(found).encode()) for name, found in documents.items()})


def require_same_text(folder: Path, passages: Sequence[Passage]) -> None:
    """Raise UserError where the control text is not, token by token, that which the run in `folder` was begun with."""
    tokens = json.dumps([asdict(passage) for passage in passages])
    require_inputs(folder, "text", {"evaluation.text": digest(tokens.encode())})


def require_same_backbone(folder: Path, config: ModelConfig) -> None:
    """Raise UserError where a file of the backbone is not what it was when the run in `folder` was begun.

    Files are weights, configuration and tokenizer, on this machine: of a folder, or of the snapshot of a hub's model.
    """
    place = backbone_folder(config)
    if place is not None:
        weights = sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
        files = [*weights, *(path for pattern in _SETTINGS for path in sorted(place.glob(pattern)))]
        require_inputs(folder, "backbone", {path.name: file_digest(path) or "" for path in files})
