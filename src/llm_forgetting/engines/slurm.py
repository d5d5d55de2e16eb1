"""The engine of a Slurm cluster, through submitit; its local executor stands in for one."""

import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forgetting.engines.engine import Job, JobResult, environment, worker_environment
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json

FOLDER = ".submitit"
"""Where submitit keeps its pickled calls and logs while the engine is there; removed at the end."""
BEAT = 5.0
"""Seconds between signs of life of the process that submits."""
PATIENCE = 120.0
"""Seconds without a sign of life after which a job ends itself."""


class SlurmEngine:
    """Engine that submits a Slurm job for every job of ours, `workers` at a time; Slurm queues and places them.

    A job that Slurm takes the node from, or whose time is over, is queued again and goes on from what it had finished. A
    job ends itself when the process that submitted it is gone, or was started again, so that nobody writes for one that was
    killed.

    Args:
        workers: Jobs at a time, those in Slurm's queue included.
        threads: CPU threads of each.
        options: What submitit's `AutoExecutor.update_parameters` takes; also `cluster` (`local`: processes on this machine).
        folder: A folder that all nodes see; submitit's files are in a folder of their own in there.
        patience: Seconds without a sign of life of this process after which a job ends itself.
    """

    def __init__(
        self, workers: int, threads: int, options: Mapping[str, Json], folder: Path, patience: float = PATIENCE
    ) -> None:
        self.slots = workers
        self._threads = threads
        self._patience = patience
        self._folder = folder.absolute() / FOLDER
        self._busy: dict[Job, Any] = {}
        shutil.rmtree(self._folder, ignore_errors=True)  # a killed process left it; its jobs end themselves
        self._executor = _executor(self._folder, threads, dict(options))
        self._sign = _Sign(self._folder / "alive", secrets.token_hex(8))
        self._closed = threading.Event()
        self._sign.give(0)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        count = 0
        while not self._closed.wait(min(BEAT, self._patience / 4)):
            count += 1
            self._sign.give(count)

    def submit(self, job: Job) -> None:
        """See `Engine`."""
        with environment(worker_environment(self._threads)):
            self._busy[job] = self._executor.submit(_Call(job, self._sign, self._patience))

    def finished(self, seconds: float) -> list[JobResult]:
        """See `Engine`."""
        until = time.monotonic() + seconds
        while not (done := [job for job, submitted in self._busy.items() if submitted.done()]):
            if time.monotonic() > until:
                return []
            time.sleep(0.1)
        return [_result(job, self._busy.pop(job)) for job in done]

    def close(self) -> None:
        """See `Engine`."""
        self._closed.set()
        for submitted in self._busy.values():
            submitted.cancel(check=False)
        until = time.monotonic() + 5
        while time.monotonic() < until and not all(submitted.done() for submitted in self._busy.values()):
            time.sleep(0.1)
        self._busy = {}
        shutil.rmtree(self._folder, ignore_errors=True)


def _executor(folder: Path, threads: int, options: dict[str, Json]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--engine slurm needs submitit: pip install 'llm-forgetting[cluster]', or use --engine local"
        ) from error
    given = {"name": "llm-forgetting", "cpus_per_task": threads, "timeout_min": 480, **options}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `partition` means slurm_partition, and submitit would rather see that
            executor = submitit.AutoExecutor(folder, cluster=str(given.pop("cluster", "slurm")))
            executor.update_parameters(nodes=1, tasks_per_node=1, **given)
    except RuntimeError as error:
        raise UserError(f"--engine slurm needs Slurm's commands on this machine, there are none: {error}") from error
    except (AssertionError, NameError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"--slurm must hold options of submitit's AutoExecutor, {dict(options)} are not: {said}"
        ) from error
    return executor


@dataclass(frozen=True)
class _Sign:
    """Sign of life: a file that a process writes anew, with what tells it from one that was started later."""

    path: Path
    process: str

    def give(self, count: int) -> None:
        """Write it."""
        partial = self.path.with_name(f".{self.path.name}.{self.process}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(f"{self.process} {count}", encoding="utf-8")
            os.replace(partial, self.path)
        except OSError:  # the next one may be written
            return

    def read(self) -> str:
        """What was written last, by whatever process; "" where there is none."""
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError:
            return ""


@dataclass(frozen=True)
class _Call:
    """Call that submitit pickles, and queues again as it is where the node is taken away."""

    job: Job
    sign: _Sign
    patience: float

    def __call__(self) -> str:
        threading.Thread(target=self._end_without_sign, daemon=True).start()
        return self.job()

    def checkpoint(self) -> Any:
        """What submitit queues instead of a call that was interrupted: the same, which goes on from its artifacts."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _end_without_sign(self) -> None:
        last, since = "", time.monotonic()
        while time.monotonic() - since < self.patience:
            time.sleep(0.5)
            now = self.sign.read()
            if now and not now.startswith(self.sign.process):  # it was started again, and has jobs of its own
                break
            if now and now != last:
                last, since = now, time.monotonic()
        os._exit(1)


def _result(job: Job, submitted: Any) -> JobResult:
    import submitit

    try:
        return JobResult(job, str(submitted.result()))
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError, OSError):
        return JobResult(job, died=True)
