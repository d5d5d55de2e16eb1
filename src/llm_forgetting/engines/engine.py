"""What an engine is: it takes jobs, which are small descriptions, and reports those that have ended."""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """Job of a worker: a call by name, so that no live object travels.

    Attributes:
        name: Unique name, chosen by the caller.
        function: `package.module:function`, from a text to a text.
        argument: What the function gets: a record in JSON that names paths.
    """

    name: str
    function: str
    argument: str

    def __call__(self) -> str:
        """Compute it in this process; what the function answers."""
        module, _, function = self.function.partition(":")
        answer: str = getattr(importlib.import_module(module), function)(self.argument)
        return answer


@dataclass(frozen=True)
class JobResult:
    """Result of a job that has ended: what its function answered. `died`: its worker is gone, and left no answer."""

    job: Job
    answer: str = ""
    died: bool = False


class Engine(Protocol):
    """Engine that takes jobs while it has a free slot, and reports those that have ended."""

    slots: int

    def submit(self, job: Job) -> None:
        """Begin `job`; only where fewer than `slots` are under way."""

    def finished(self, seconds: float) -> Sequence[JobResult]:
        """The jobs that have ended since, waiting at most `seconds` for the first."""

    def close(self) -> None:
        """End everything at once; whatever a job had finished stays in its folder."""


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker of so many threads."""
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
