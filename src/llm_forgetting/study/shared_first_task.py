"""What cells have in common: runs that learn the same first task in the same way learn it once."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.config.sections import DataConfig, ExperimentConfig, to_dict
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.files import whole_folder, write_text
from llm_forgetting.tasks.task import Task

CHECKPOINT = "checkpoint_after_task1"
BASE = ("guards", "evaluate_initial")
TRAINING = "train_task1"


class Tasks:
    """The split tasks of data configurations, each loaded once."""

    def __init__(self) -> None:
        self._found: dict[str, list[Task]] = {}
        self._sources: dict[str, Any] = {}

    def of(self, data: DataConfig) -> list[Task]:
        """The tasks of `data`, split."""
        where = json.dumps([data.source, data.path, data.hub_config, data.columns, data.definitions], sort_keys=True)
        if where not in self._sources:
            self._sources[where] = source_of(data, lambda message: None)
        key = json.dumps(data.__dict__, sort_keys=True)
        if key not in self._found:
            self._found[key] = tasks_of(data, self._sources[where])
        return self._found[key]


def half_key(config: ExperimentConfig, tasks: Tasks) -> str:
    """A hash of all that training on the first task, and what is measured around the checkpoint after it, depend on."""
    content = to_dict(config)
    first = tasks.of(config.data)[0]
    del content["output"], content["evaluation"]
    content["data"] = {"few_shot": config.data.few_shot, "max_tokens": config.data.max_tokens}
    # Of the interventions only SAM acts on the first task.
    rho = config.interventions.sam_rho
    content["interventions"] = {"sam_rho": rho, "adaptive": rho > 0 and config.interventions.sam_adaptive}
    content["items"] = {split: [item.sha256 for item in first.split(split)] for split in ("train", "test")}
    content["prompts"] = [str(item.format) for item in first.train]
    content["shots"] = {subject: [item.sha256 for item in items] for subject, items in first.shots.items()}
    content["name"] = first.name  # streams of random numbers bear it
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def base_key(config: ExperimentConfig, tasks: Tasks) -> str:
    """A hash of all that the base model's checks and scores on the tasks depend on."""
    content = to_dict(config)
    items = [
        [item.sha256 for item in task.split(split)] for task in tasks.of(config.data) for split in ("train", "test")
    ]
    shots = [[item.id for items in task.shots.values() for item in items] for task in tasks.of(config.data)]
    parts = [content["model"], content["data"], content["evaluation"], items, shots]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def half_artifacts(config: ExperimentConfig) -> Iterator[str]:
    """The phases of a cell that other cells of the same half may take over.

    Around the checkpoint only what does not look at the second task: with `landscape.tasks` `learnt` or `first` the
    surfaces are of the first task alone.
    """
    yield TRAINING
    if config.landscape.tasks != "all":
        yield "landscape_after_task1"
    if config.curvature.spectrum:
        yield "curvature_after_task1"


def has_half(cell: Path, config: ExperimentConfig) -> bool:
    """Whether the cell's folder holds its half whole."""
    return (cell / CHECKPOINT).is_dir() and all(
        (cell / "phases" / f"{name}.json").exists() for name in half_artifacts(config)
    )


def has_base(cell: Path) -> bool:
    """Whether the cell's folder holds the base model's checks and scores."""
    return all((cell / "phases" / f"{name}.json").exists() for name in BASE)


def take_base(cell: Path, donor: Path) -> None:
    """Copy the base model's checks and scores of `donor` into the folder of a cell on the same tasks; what it has stays."""
    (cell / "phases").mkdir(exist_ok=True)
    for name in BASE:
        _take_phase(cell, donor, name)


def take_half(cell: Path, donor: Path, config: ExperimentConfig) -> None:
    """Copy the half of `donor` into the folder of a cell of the same half; what the cell has already stays."""
    if not (cell / CHECKPOINT).exists():
        with whole_folder(cell / CHECKPOINT) as scratch:
            shutil.copytree(donor / CHECKPOINT, scratch, dirs_exist_ok=True)
            (scratch / "experiment_config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    (cell / "phases").mkdir(exist_ok=True)
    for name in half_artifacts(config):
        _take_phase(cell, donor, name)


def _take_phase(cell: Path, donor: Path, name: str) -> None:
    if (cell / "phases" / f"{name}.json").exists():
        return
    found: Mapping[str, Any] = json.loads((donor / "phases" / f"{name}.json").read_text(encoding="utf-8"))
    text = json.dumps({**found, "taken_from": donor.name}, ensure_ascii=False)
    write_text(cell / "phases" / f"{name}.json", text + "\n")
