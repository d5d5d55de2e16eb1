"""What a saved adapter was trained on, where its folder is that of a run. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from llm_forgetting.experiment.artifacts.phase_artifacts import SETUP
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files.manifest import require_whole
from llm_forgetting.results import TaskSetup, read_results
from llm_forgetting.tasks.task import AnyItem

_CHECKPOINT = re.compile(r"checkpoint_after_(task([1-9]\d*))")
REPAIRED = "repaired_adapter"


@dataclass(frozen=True)
class TrainedItems:
    """Trained items of an adapter by the hash of their content, which is the same from every source, and its run's folder."""

    run: Path
    sha256: frozenset[str]

    def __contains__(self, item: AnyItem) -> bool:
        return item.sha256 in self.sha256


def require_whole_adapter(adapter: Path) -> None:
    """Raise UserError where a file of the adapter is not as the run wrote it in whose folder it is."""
    adapter = adapter.expanduser().absolute()
    if checkpoint := _CHECKPOINT.fullmatch(adapter.name):
        RunFolder(adapter.parent).require_checkpoint(checkpoint[1])
    elif adapter.name == REPAIRED:
        require_whole(adapter.parent, REPAIRED, "put it back, or repair the run again")


def trained_items(adapter: Path) -> TrainedItems | None:
    """The items that the adapter in a run's folder was trained on; None where the folder names no run.

    A checkpoint was trained on its task and all before it, a repaired adapter on all. UserError for a damaged results.json.
    """
    adapter = adapter.expanduser().absolute()
    if adapter.name != REPAIRED and not (adapter / "experiment_config.yaml").is_file():
        return None
    tasks = _tasks_of(adapter.parent)
    if tasks is None:
        return None
    checkpoint = _CHECKPOINT.fullmatch(adapter.name)
    learnt = tasks[: int(checkpoint[2])] if checkpoint else tasks
    return TrainedItems(adapter.parent, frozenset(item.sha256 for task in learnt for item in task.splits.train))


def _tasks_of(run: Path) -> tuple[TaskSetup, ...] | None:
    """The tasks of a run, also of one that is not finished."""
    if (run / "results.json").is_file():
        return read_results(run).tasks
    setup = RunFolder(run).read(SETUP)
    return None if setup is None else setup.tasks
