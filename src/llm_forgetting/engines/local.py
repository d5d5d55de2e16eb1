"""The engine of worker processes on this machine."""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from llm_forgetting.engines.engine import Job, JobResult, environment, worker_environment


class LocalEngine:
    """Engine of worker processes on this machine, each of which imports everything once and computes one job after the other.

    A worker ends itself when the process that started it is gone, so that nobody writes for one that was killed.
    Each sees one of `gpus` (values for CUDA_VISIBLE_DEVICES), which are dealt out evenly.
    """

    def __init__(self, workers: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.slots = workers
        self._threads = threads
        self._gpus = gpus
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def submit(self, job: Job) -> None:
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
                answer = pipe.recv()
                self._idle.append(worker)
                results.append(JobResult(job, answer))
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
        variables = worker_environment(self._threads)
        taken = [worker.gpu for worker in (*self._idle, *(worker for worker, _ in self._busy.values()))]
        gpu = min(self._gpus, key=taken.count, default=None)
        if gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = gpu
        with environment(variables):
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


def _serve(pipe: Connection, parent: int) -> None:
    """Compute the jobs that come through `pipe`, until it is closed or the parent process is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(job())


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
