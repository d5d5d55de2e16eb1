"""The questions of a finished run, from data on this machine: by id, and only where they are still the run's. No torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.tasks import source_of
from llm_forgetting.results import Results
from llm_forgetting.tasks.task import AnyItem

OFFLINE = "HF_HUB_OFFLINE"


def earlier_questions(results: Results) -> dict[tuple[str, str], AnyItem]:
    """The items of every task but the last, trained on and held out, by name of the task and id.

    Nothing is downloaded: UserError where a source is not on this machine, and where an item is not there any more or has
    not the hash that the run froze.
    """
    data = results.config.data
    try:
        with offline():
            source = source_of(data, _refuse_download)
            resolved = source.resolve(data.tasks)
            pools = [source.pool(name, subjects) for name, subjects in resolved[:-1]]
    except UserError as error:
        raise UserError(f"--questions reads the run's data on this machine only, and cannot: {error}") from error
    items: dict[tuple[str, str], AnyItem] = {}
    for task, pool in zip(results.tasks, pools, strict=False):
        by_id = {item.id: item for item in (*pool.rows, *pool.held_out)}
        for frozen in (*task.splits.train, *task.splits.test):
            item = by_id.get(frozen.id)
            if item is None or item.sha256 != frozen.sha256:
                fault = "no more in them" if item is None else "another question now"
                raise UserError(
                    f"--questions needs the data that the run was made with; {frozen.id} of {task.name} is {fault}: "
                    f"undo the change, or leave --questions out"
                )
            items[task.name, frozen.id] = item
    return items


def _refuse_download(what: str) -> NoReturn:
    """Sources tell of a download before they begin it."""
    raise UserError(f"it would begin with {what}; `llm-forgetting tasks` fetches that")


@contextmanager
def offline() -> Iterator[None]:
    """No library of Hugging Face's asks the network in here: they read the variable once, when they are imported."""
    loaded = [module for name in ("huggingface_hub.constants", "datasets.config") if (module := sys.modules.get(name))]
    before = [getattr(module, OFFLINE) for module in loaded]
    variable = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"
    for module in loaded:
        setattr(module, OFFLINE, True)
    try:
        yield
    finally:
        for module, value in zip(loaded, before, strict=True):
            setattr(module, OFFLINE, value)
        os.environ.pop(OFFLINE)
        if variable is not None:
            os.environ[OFFLINE] = variable
