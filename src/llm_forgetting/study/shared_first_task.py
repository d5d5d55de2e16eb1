"""First task shared between cells: runs that learn the same first task in the same way learn it once."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.config.methods import acting
from llm_forgetting.config.paths import to_dict
from llm_forgetting.config.sections import DataConfig, ExperimentConfig
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    EVALUATE_INITIAL,
    GUARDS,
    Phase,
    curvature_phase,
    evaluation_phase,
    landscape_phase,
    train_phase,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.files.manifest import recorded_folder, take_inputs
from llm_forgetting.study.measures import FIRST
from llm_forgetting.tasks.sources import Source
from llm_forgetting.tasks.task import Item, Task

CHECKPOINT = f"checkpoint_{FIRST}"
BASE_PHASES: tuple[Phase[Any], ...] = (GUARDS, EVALUATE_INITIAL)
FIRST_SCORES = evaluation_phase(1)
ON_LATER_TASKS = ("sam_on", "replay_items", "anchor", "rescale")
SAM = ("sam_rho", "sam_adaptive")


class Tasks:
    """The split tasks of data configurations, each loaded once."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[Task]] = {}
        self._sources: dict[str, Source] = {}

    def of(self, data: DataConfig) -> list[Task]:
        """The tasks of `data`, split."""
        where = json.dumps([data.source, data.path, data.hub_config, data.columns, data.definitions], sort_keys=True)
        if where not in self._sources:
            self._sources[where] = source_of(data, lambda message: None)
        key = json.dumps(data.__dict__, sort_keys=True)
        if key not in self._tasks:
            self._tasks[key] = tasks_of(data, self._sources[where])
        return self._tasks[key]


def first_task_key(config: ExperimentConfig, tasks: Tasks) -> str:
    """A hash of all that training on the first task, and what is measured around the checkpoint after it, depend on."""
    content = to_dict(config)
    first = tasks.of(config.data)[0]
    del content["output"], content["evaluation"]
    content["data"] = {"few_shot": config.data.few_shot, "max_tokens": config.data.max_tokens}
    # An intervention that nobody said to act on later tasks alone is taken to act on the first, too.
    others = {name: value for name, value in content["interventions"].items() if name not in (*ON_LATER_TASKS, *SAM)}
    rho = config.interventions.sam_rho
    content["interventions"] = {"sam_rho": rho, "adaptive": rho > 0 and config.interventions.sam_adaptive, **others}
    content["training"]["methods"] = acting(config.training.methods, 1)
    content["items"] = {split: [item.sha256 for item in first.split(split)] for split in ("train", "test")}
    content["prompts"] = [str(item.format) for item in first.train if isinstance(item, Item)]
    content["shots"] = {subject: [item.sha256 for item in items] for subject, items in first.shots.items()}
    content["name"] = first.name  # streams of random numbers bear it
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def base_scores_key(config: ExperimentConfig, tasks: Tasks) -> str:
    """A hash of all that the base model's checks and scores on the tasks depend on."""
    content = to_dict(config)
    items = [
        [item.sha256 for item in task.split(split)] for task in tasks.of(config.data) for split in ("train", "test")
    ]
    shots = [[item.id for items in task.shots.values() for item in items] for task in tasks.of(config.data)]
    parts = [content["model"], content["data"], content["evaluation"], items, shots]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def first_task_phases(config: ExperimentConfig) -> Iterator[Phase[Any]]:
    """The phases of a cell that other cells with the same first task may take over.

    Around the checkpoint only what does not look at the second task: with `landscape.tasks` `learnt` or `first` the
    surfaces are of the first task alone.
    """
    yield train_phase(1)
    if config.landscape.tasks in ("learnt", "first"):
        yield landscape_phase(FIRST)
    if config.curvature.spectrum:
        yield curvature_phase(FIRST)


def has_first_task(cell: Path, config: ExperimentConfig) -> bool:
    """Whether the cell's folder holds the first task's checkpoint and all its phases."""
    return (cell / CHECKPOINT).is_dir() and all(map(RunFolder(cell).has, first_task_phases(config)))


def has_base_scores(cell: Path) -> bool:
    """Whether the cell's folder holds the base model's checks and scores."""
    return all(map(RunFolder(cell).has, BASE_PHASES))


def has_first_scores(cell: Path) -> bool:
    """Whether the cell's folder holds the scores after the first task."""
    return RunFolder(cell).has(FIRST_SCORES)


def copy_base_scores(cell: Path, source_cell: Path) -> None:
    """Copy the base model's checks and scores into the folder of a cell on the same tasks; what it has stays.

    UserError where they are damaged.
    """
    take_inputs(cell, source_cell, ("backbone", "rows", "shots", "text"))
    _copy_phases(cell, source_cell, BASE_PHASES)


def copy_first_task(cell: Path, source_cell: Path, config: ExperimentConfig) -> None:
    """Copy the first task's checkpoint and phases into the folder of a cell with the same first task; what it has stays.

    UserError where they are damaged.
    """
    source = RunFolder(source_cell)
    source.require_checkpoint("task1")
    if training := source.read(train_phase(1)):
        take_inputs(cell, source_cell, ("backbone", "rows", "shots"), task=training.task)
    if not (cell / CHECKPOINT).exists():
        with recorded_folder(cell, CHECKPOINT) as scratch:
            card = shutil.ignore_patterns("README.md")  # the finished cell writes its own
            shutil.copytree(source_cell / CHECKPOINT, scratch, ignore=card, dirs_exist_ok=True)
            (scratch / "experiment_config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    _copy_phases(cell, source_cell, first_task_phases(config))


def copy_first_scores(cell: Path, source_cell: Path) -> None:
    """Copy the scores after the first task into the folder of a cell on the same tasks; what it has stays."""
    _copy_phases(cell, source_cell, (FIRST_SCORES,))


def _copy_phases(cell: Path, source_cell: Path, phases: Iterable[Phase[Any]]) -> None:
    (cell / "phases").mkdir(exist_ok=True)
    folder, source = RunFolder(cell), RunFolder(source_cell)
    for phase in phases:
        if not folder.has(phase):
            folder.take(phase, source)
