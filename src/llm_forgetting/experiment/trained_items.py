"""What a saved adapter was trained on, where its folder is that of a run. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from llm_forgetting.experiment.artifacts.phase_artifacts import SETUP
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.results import TaskSetup, read_results
from llm_forgetting.tasks.task import Item

_CHECKPOINT = re.compile(r"checkpoint_after_task([1-9]\d*)")
_REPAIRED = "repaired_adapter"


@dataclass(frozen=True)
class TrainedItems:
    """Trained items of an adapter by the hash of their content, which is the same from every source, and its run's folder."""

    run: Path
    sha256: frozenset[str]

    def __contains__(self, item: Item) -> bool:
        return item.sha256 in self.sha256


def trained_items(adapter: Path) -> TrainedItems | None:
    """The items that the adapter in a run's folder was trained on; None where the folder names no run.

    A checkpoint was trained on its task and all before it, a repaired adapter on all. UserError for a damaged results.json.
    """
    adapter = adapter.expanduser().absolute()
    if adapter.name != _REPAIRED and not (adapter / "experiment_config.yaml").is_file():
        return None
    tasks = _tasks_of(adapter.parent)
    if tasks is None:
        return None
    checkpoint = _CHECKPOINT.fullmatch(adapter.name)
    learnt = tasks[: int(checkpoint[1])] if checkpoint else tasks
    return TrainedItems(adapter.parent, frozenset(item.sha256 for task in learnt for item in task.splits.train))


def _tasks_of(run: Path) -> tuple[TaskSetup, ...] | None:
    """The tasks of a run, also of one that is not finished."""
    if (run / "results.json").is_file():
        return read_results(run).tasks
    setup = RunFolder(run).read(SETUP)
    return None if setup is None else setup.tasks
