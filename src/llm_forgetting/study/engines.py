"""Engines that compute cells: processes on this machine, or Ray."""

import contextlib
import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from llm_forgetting.errors import UserError
from llm_forgetting.study.cell import CellJob, run_cell


@dataclass(frozen=True)
class JobResult:
    """Result of a job that has ended. `died`: its worker is gone, and left no reason."""

    job: CellJob
    died: bool = False


class Engine(Protocol):
    """Engine that takes jobs while it has a free slot, and reports those that have ended."""

    slots: int

    def submit(self, job: CellJob) -> None:
        """Begin `job`; only where fewer than `slots` are under way."""

    def finished(self, seconds: float) -> Sequence[JobResult]:
        """The jobs that have ended since, waiting at most `seconds` for the first."""

    def close(self) -> None:
        """End everything at once; whatever a job had finished stays in its folder."""


class LocalEngine:
    """Engine of worker processes on this machine, each of which imports everything once and computes one cell after the other.

    A worker ends itself when the study's process is gone, so that a killed study leaves nobody writing. Each sees one of
    `gpus` (values for CUDA_VISIBLE_DEVICES), which are dealt out evenly.
    """

    def __init__(self, workers: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.slots = workers
        self._threads = threads
        self._gpus = gpus
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, CellJob]] = {}

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        while True:
            worker = self._idle.pop() if self._idle else self._start()
            try:
                worker.pipe.send(job)
            except OSError:  # it died while it was idle
                worker.end()
                continue
            self._busy[worker.pipe] = worker, job
            return

    def finished(self, seconds: float) -> list[JobResult]:
        """See `Engine`."""
        results = []
        for pipe in wait(list(self._busy), seconds):
            assert isinstance(pipe, Connection)
            worker, job = self._busy.pop(pipe)
            try:
                pipe.recv()
                self._idle.append(worker)
                results.append(JobResult(job))
            except (EOFError, OSError):
                worker.end()
                results.append(JobResult(job, died=True))
        return results

    def close(self) -> None:
        """See `Engine`."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.end()
        self._idle, self._busy = [], {}

    def _start(self) -> "_Worker":
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        environment = {"OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false"}
        taken = [worker.gpu for worker in (*self._idle, *(worker for worker, _ in self._busy.values()))]
        gpu = min(self._gpus, key=taken.count, default=None)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with _environment(environment):
            process.start()
        theirs.close()
        return _Worker(process, ours, gpu)


@dataclass(frozen=True)
class _Worker:
    process: Any
    pipe: Connection
    gpu: str | None = None

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(n) for n in range(count)]


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
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


def _serve(pipe: Connection, parent: int) -> None:
    """Compute the jobs that come through `pipe`, until it is closed or the parent process is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    from llm_forgetting.experiment.artifacts.logs import quiet_libraries

    quiet_libraries()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        run_cell(job)
        pipe.send(job.place.cell)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class RayEngine:
    """Engine of a Ray cluster: an existing one (`address`), or one that is started here; a GPU for each task where it has any.

    Folders must be seen by all nodes.
    """

    def __init__(self, workers: int, threads: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--engine ray needs Ray: pip install 'llm-forgetting[ray]', or use --engine local"
            ) from error
        self._ray: Any = ray
        self.slots = workers
        self._started = not ray.is_initialized()
        if self._started:
            own = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
            except (ConnectionError, ValueError) as error:
                raise UserError(
                    f"--address must be that of a running Ray cluster, {address} is not: {error}"
                ) from error
        # A task that asks for no GPU sees none.
        self.gpus = 1 if ray.cluster_resources().get("GPU") else 0
        # The study retries what died, and knows how often it did.
        self._run = ray.remote(num_cpus=threads, num_gpus=self.gpus, max_retries=0)(_run_quietly)
        self._busy: dict[Any, CellJob] = {}

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        # A cluster's workers have a working directory of their own.
        absolute = dataclasses.replace(
            job,
            folder=job.folder.absolute(),
            source_cell=job.source_cell and job.source_cell.absolute(),
            base_scores=job.base_scores and job.base_scores.absolute(),
        )
        self._busy[self._run.remote(absolute)] = job

    def finished(self, seconds: float) -> list[JobResult]:
        """See `Engine`."""
        done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=seconds)
        results = []
        for reference in done:
            job = self._busy.pop(reference)
            try:
                self._ray.get(reference)
                results.append(JobResult(job))
            except self._ray.exceptions.RayError:
                results.append(JobResult(job, died=True))
        return results

    def close(self) -> None:
        """See `Engine`."""
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        self._busy = {}
        if self._started:
            self._ray.shutdown()


def _run_quietly(job: CellJob) -> None:
    from llm_forgetting.experiment.artifacts.logs import quiet_libraries

    quiet_libraries()
    run_cell(job)
