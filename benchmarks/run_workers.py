"""Speed-up of one run whose phases are computed side by side.

    python benchmarks/run_workers.py                     two tasks, without workers and with two, interleaved
    python benchmarks/run_workers.py --tasks 10 --clock  every phase measured one after the other, then 1, 2, 4 and 8
                                                         workers by the scheduler's order on a simulated clock

Runs are of the preset `smoke`; with `--clock` on the questions and with the settings of growth.py. Printed are wall seconds,
CPU seconds of all processes, and the critical path: the longest chain of phases that need one another.
"""

import argparse
import heapq
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from growth import SETTINGS, write_questions

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.engines.engine import Job, JobResult
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import save_config
from llm_forgetting.experiment.jobs import PhaseJob, Step, compute_phase, run_steps, steps_of
from llm_forgetting.files import encode
from llm_forgetting.models.language.backbones import synthetic_backbone
from llm_forgetting.progress import say


class Clock:
    """Engine on a simulated clock: a job takes the seconds that were measured."""

    def __init__(self, slots: int, seconds: Mapping[str, float]) -> None:
        self.slots = slots
        self.now = 0.0
        self._seconds = seconds
        self._running: list[tuple[float, str, Job]] = []

    def submit(self, job: Job) -> None:
        """See `Engine`."""
        heapq.heappush(self._running, (self.now + self._seconds[job.name], job.name, job))

    def finished(self, seconds: float) -> Sequence[JobResult]:
        """See `Engine`."""
        self.now, _, job = heapq.heappop(self._running)
        return [JobResult(job)]

    def close(self) -> None:
        """See `Engine`."""


class Here:
    """Engine that computes one job after the other in this process, and keeps what each took."""

    slots = 1

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        """See `Engine`."""
        self._jobs.append(job)

    def finished(self, seconds: float) -> Sequence[JobResult]:
        """See `Engine`."""
        job, started = self._jobs.pop(), time.perf_counter()
        answer = job()
        self.seconds[job.name] = time.perf_counter() - started
        return [JobResult(job, answer)]

    def close(self) -> None:
        """See `Engine`."""


def measured(config: ExperimentConfig, folder: RunFolder) -> dict[str, float]:
    """Seconds of every step, computed in this process."""
    save_config(config, folder)
    engine = Here()

    def job(step: Step) -> Job:
        work = PhaseJob(folder.path.absolute(), step.phase.name, 1)
        return Job(step.phase.name, f"{compute_phase.__module__}:compute_phase", encode(work))

    run_steps(steps_of(config), engine, has=folder.has, job=job)
    return engine.seconds


def critical_path(steps: Sequence[Step], seconds: Mapping[str, float]) -> float:
    """Seconds of the longest chain of steps that need one another."""
    ends: dict[str, float] = {}
    waiting = list(steps)
    while waiting:
        for step in [step for step in waiting if all(phase.name in ends for phase in step.after)]:
            waiting.remove(step)
            name = step.phase.name
            ends[name] = seconds[name] + max((ends[phase.name] for phase in step.after), default=0.0)
    return max(ends.values())


def show_clock(config: ExperimentConfig, folder: Path) -> None:
    """What workers would take, by measured phases."""
    quiet_libraries()
    steps, seconds = steps_of(config), measured(config, RunFolder.create(folder))
    total = sum(seconds.values())
    say(f"{len(steps)} phases of {len(config.data.tasks)} tasks: {total:.1f} s one after the other")
    for kind in ("setup", "train", "evaluate", "landscape", "path", "checkpoint_plane", "forecast", "recovery"):
        of_kind = [taken for name, taken in seconds.items() if name.startswith(kind)]
        say(f"  {kind}: {len(of_kind)} of {sum(of_kind) / max(1, len(of_kind)):.1f} s")
    say(f"critical path {critical_path(steps, seconds):.1f} s")
    for workers in (1, 2, 4, 8):
        clock = Clock(workers, seconds)
        run_steps(steps, clock, has=lambda phase: False, job=lambda step: Job(step.phase.name, "", ""))
        say(f"{workers} workers: {clock.now:.1f} s, {total / clock.now:.2f} times as fast")


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and its processes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "llm_forgetting", "run", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", action="store_true", help="measure phases here, and simulate the workers")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    options = parser.parse_args()
    settings = ["--output.figures=false", *(f"--{given}" for given in options.set)]
    with tempfile.TemporaryDirectory() as folder:
        if options.clock:
            questions = Path(folder) / "questions"
            write_questions(questions, options.tasks)
            given = {"data.source": "local", "data.path": questions, "model.name": synthetic_backbone(say), **SETTINGS}
            own = [f"--{path}={value}" for path, value in given.items()]
            tasks = [f"subject_{n:02}" for n in range(1, options.tasks + 1)]
            show_clock(parse_config("smoke", [*own, *settings], tasks=tasks), Path(folder))
            return
        tasks = [f"synthetic_{n}" for n in range(1, options.tasks + 1)]
        common = ["--config", "smoke", "--tasks", ",".join(tasks), "--output_dir", folder, *settings]
        for repeat in range(options.repeats):
            for workers in ([], ["--workers", "1"], ["--workers", "2"]):
                wall, cpu = timed([*common, *workers])
                say(f"{repeat + 1}: {' '.join(workers) or 'no workers':<12} {wall:6.1f} s wall, {cpu:6.1f} s CPU")


if __name__ == "__main__":
    main()
