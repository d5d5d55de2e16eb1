"""Phases of one run as jobs: the results of a run without workers, in the order that keeps them busy."""

import contextlib
import heapq
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from runs import Shell, read_results, same_results
from test_artifact_integrity import SMALLEST
from test_crash_points import DIFFERENT, comparable, contents
from tiny_models import load, make_encoded

from llm_forgetting.cli.main import main
from llm_forgetting.config.files import parse_config
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.engines.engine import Job, JobResult
from llm_forgetting.engines.start import EngineChoice
from llm_forgetting.errors import UserError
from llm_forgetting.experiment import jobs
from llm_forgetting.experiment.analysis.landscape import analyse_landscape
from llm_forgetting.experiment.artifacts.phase_artifacts import BETWEEN, FORGETTING, PLANE, path_phase
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import run_in
from llm_forgetting.experiment.jobs import PhaseFailure, Step, Workers, run_steps, steps_of
from llm_forgetting.experiment.phases import reference_norm
from llm_forgetting.files import encode, manifest
from llm_forgetting.landscape.between_records import BetweenCheckpoints
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Silent

pytestmark = pytest.mark.usefixtures("one_thread")
TASKS = ["synthetic_1", "synthetic_2", "synthetic_3"]


def config_of(tmp_path: Path, tasks: Sequence[str] = TASKS) -> ExperimentConfig:
    file = tmp_path / "smallest.yaml"
    file.write_text(yaml.safe_dump({**SMALLEST, "data": {**SMALLEST["data"], "tasks": list(tasks)}}))
    return parse_config(str(file), [])


class Here:
    """Engine that computes in this process, the first landscape as late as it can be, each job with a model of its own."""

    slots = 3

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.order: list[str] = []
        self.computing = False

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def finished(self, seconds: float) -> list[JobResult]:
        names = [job.name for job in self.jobs]
        job = self.jobs.pop(max(range(len(names)), key=lambda n: (names[n] != "landscape_after_task1", names[n][-1])))
        self.order.append(job.name)
        jobs._SESSIONS.clear()
        self.computing = True
        answer = job()
        self.computing = False
        return [JobResult(job, answer)]

    def close(self) -> None:
        self.order.append("closed")


class Said(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def created(folder: Path) -> RunFolder:
    return RunFolder.create(folder)


@pytest.mark.process
def test_a_run_side_by_side_is_the_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In every byte but times."""
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    config, engine, said = config_of(tmp_path), Here(), Said()
    one, other = created(tmp_path / "one"), created(tmp_path / "other")
    run_in(one, config, Silent())
    monkeypatch.setattr(EngineChoice, "start", lambda *_: engine)
    load, by_a_job = LanguageModel.load, list[bool]()
    monkeypatch.setattr(LanguageModel, "load", lambda *a, **k: by_a_job.append(engine.computing) or load(*a, **k))
    run_in(other, config, said, Workers(workers=3, threads=1))
    assert len(engine.order) == len(steps_of(config)) + 1
    assert by_a_job == [True] * len(steps_of(config))  # nothing is left for the main process
    assert engine.order[-2:] == ["landscape_after_task1", "closed"]
    assert sum("begins" in line for line in said.notes) == len(steps_of(config))
    assert max(map(len, said.notes)) < 72
    found, expected = contents(other.path), contents(one.path)
    assert set(found) == set(expected)
    for name in sorted(set(found) - set(DIFFERENT)):
        assert comparable(found[name], other.path) == comparable(expected[name], one.path), name
    before = other.timings()
    monkeypatch.setattr(Here, "submit", lambda *_: pytest.fail("everything is there"))
    run_in(other, config, Silent(), Workers(workers=3, threads=1))
    assert other.timings() == before


# The order of steps, with engines that compute nothing


@dataclass
class Clock:
    """Engine on a simulated clock, whose jobs take the seconds that `takes` says by the beginnings of their names."""

    slots: int
    takes: dict[str, float]
    now: float = 0.0
    running: list[tuple[float, int, Job]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def submit(self, job: Job) -> None:
        assert len(self.running) < self.slots
        seconds = next(seconds for name, seconds in self.takes.items() if job.name.startswith(name))
        heapq.heappush(self.running, (self.now + seconds, len(self.ended) + len(self.running), job))

    def finished(self, seconds: float) -> list[JobResult]:
        self.now, _, job = heapq.heappop(self.running)
        self.ended.append(job.name)
        return [JobResult(job)]

    def close(self) -> None:
        """Nothing."""


def job_of(step: Step) -> Job:
    return Job(step.phase.name, "no:function", "")


# As in a run of the preset smoke, seconds.
TAKES = {
    "setup": 2.0, "train": 2.0, "evaluate": 1.0, "recovery": 4.0, "landscape": 6.0, "path": 3.0, "checkpoint_plane": 5.0,
    "forecast": 3.0,
}  # fmt: skip


def test_ten_tasks_on_four_workers_are_three_times_as_fast(tmp_path: Path) -> None:
    steps = steps_of(config_of(tmp_path, [f"synthetic_{n}" for n in range(1, 11)]))
    seconds = []
    for slots in (1, 4):
        clock = Clock(slots, TAKES)
        run_steps(steps, clock, has=lambda phase: False, job=job_of)
        seconds.append(clock.now)
        assert sorted(clock.ended) == sorted(step.phase.name for step in steps)
        place = {name: n for n, name in enumerate(clock.ended)}
        assert all(place[before.name] < place[step.phase.name] for step in steps for before in step.after)
    assert seconds[0] > 3.5 * seconds[1]


def test_what_is_there_is_not_computed_and_parts_of_what_is_there_neither(tmp_path: Path) -> None:
    steps, clock = steps_of(config_of(tmp_path)), Clock(2, TAKES)
    there = {"setup", "train_task1", "landscape_after_task1", BETWEEN.name}
    run_steps(steps, clock, has=lambda phase: phase.name in there, job=job_of)
    names = {step.phase.name for step in steps}
    assert set(clock.ended) == names - there - {PLANE.name, "path_to_after_task2", "path_to_after_task3"}


class Fails(Clock):
    """Jobs end as `answers` says, one after the other."""

    answers: Iterator[dict[str, Any]]

    def finished(self, seconds: float) -> list[JobResult]:
        return [JobResult(result.job, **next(self.answers, {})) for result in super().finished(seconds)]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"died": True}] * 2, None),
        ([{"died": True}] * 3, "the worker of setup died 3 times (memory?); take fewer workers"),
        ([{"answer": encode(PhaseFailure("the data were changed"))}], "the data were changed"),
    ],
)
def test_a_phase_whose_worker_dies_is_begun_again_and_one_that_fails_ends_the_run(
    tmp_path: Path, answers: list[dict[str, Any]], said: str | None
) -> None:
    engine, told = Fails(1, TAKES), list[str]()
    engine.answers = iter(answers)
    with contextlib.nullcontext() if said is None else pytest.raises(UserError, match=re.escape(said)):
        run_steps(steps_of(config_of(tmp_path)), engine, has=lambda phase: False, job=job_of, tell=told.append)
    assert told.count("setup: its worker died; begun again") == min(2, sum("died" in answer for answer in answers))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "lora"), [("adapter", {}), ("raw", {}), ("weight", {}), ("adapter", {"use_dora": True})]
)
def test_the_unit_of_distances_is_that_of_the_first_landscape(llama_folder: Path, space: Any, lora: Any) -> None:
    model = load(llama_folder, target_modules=("q_proj",), **lora)
    settings = LandscapeConfig(space=space, max_evaluations=23, tolerance=1.0, directions=2, self_test_items=1)
    items = [("trees", make_encoded(model, 1))]
    first = analyse_landscape(model, items, settings, reference_norm=None, advance=lambda n, text: None)
    session: Any = SimpleNamespace(at={1: model}.__getitem__, config=SimpleNamespace(landscape=settings))
    assert reference_norm(session) == first.reference_norm


# What a worker may and may not do to the folder


def test_a_phase_takes_its_own_journal_away_and_no_other(tmp_path: Path) -> None:
    folder = created(tmp_path)
    for name in ("path_to_after_task2", "path_to_after_task3", "landscape_after_task1"):
        (folder.phases / f"{name}.journal").touch()
    (folder.phases / "curvature_after_task1.journal").mkdir()
    empty = BetweenCheckpoints((), None, ())
    folder.once(path_phase("after_task2"), lambda: empty)
    left = {"path_to_after_task3", "landscape_after_task1", "curvature_after_task1"}
    assert {path.stem for path in folder.phases.glob("*.journal")} == left
    folder.once(PLANE, lambda: BetweenCheckpoints((), None, ("no plane",)))
    folder.once(BETWEEN, lambda: empty)
    assert {path.stem for path in folder.phases.glob("*.journal")} == left - {"path_to_after_task3"}
    assert [path.name for path in folder.phases.glob("*.json")] == ["between_checkpoints.json"]
    assert manifest.damaged(folder.path) == []


def test_a_phase_takes_the_time_of_its_parts(tmp_path: Path) -> None:
    folder, empty = created(tmp_path), BetweenCheckpoints((), None, ())

    def slow() -> BetweenCheckpoints:
        time.sleep(0.05)
        return empty

    folder.once(path_phase("after_task2"), slow)
    folder.once(PLANE, slow)
    folder.once(BETWEEN, lambda: empty)
    assert 0.1 <= folder.seconds(BETWEEN) < 1.0
    assert folder.seconds(FORGETTING) == 0


def test_several_writers_lose_no_checksum(tmp_path: Path) -> None:
    folder = created(tmp_path)
    with folder.shared(), ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: manifest.write(folder.path, f"file_{n}", b"text"), range(40)):
            pass
    assert len(manifest.read_manifest(folder.path).artifacts) == 40
    assert not (folder.path / manifest.TURN).exists()


# Processes


def workers_of(main: psutil.Process) -> list[psutil.Process]:
    return [child for child in main.children() if "spawn_main" in " ".join(child.cmdline())]


def wait_for(found: Any) -> Any:
    until = time.monotonic() + 400
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError("it does not come")


def test_killed_workers_and_a_killed_main_process_change_nothing(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker is killed in the landscape, then the main process; then the run goes on without workers."""
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(shell.cache))
    config = config_of(tmp_path, TASKS[:2])
    whole = created(tmp_path / "whole")
    run_in(whole, config, Silent())
    options = ("--config", tmp_path / "smallest.yaml", "--output_dir", tmp_path / "killed", "--workers", 2)
    before = set(psutil.Process().children(recursive=True))
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(shell.run(*options, seconds=500)), daemon=True)
    thread.start()
    phases = wait_for(lambda: next((tmp_path / "killed").glob("*/phases"), None))

    def worker() -> psutil.Process | None:
        new = set(psutil.Process().children(recursive=True)) - before
        return next((process for process in new if "spawn_main" in " ".join(process.cmdline())), None)

    first = wait_for(worker)
    command = first.parent()
    wait_for((phases / "train_task1.json").exists)
    first.kill()
    wait_for(lambda: (phases / "train_task2.json").exists() and workers_of(command))
    left = workers_of(command)
    os.kill(command.pid, signal.SIGKILL)
    thread.join(60)
    assert ended[0].status == -signal.SIGKILL
    assert psutil.wait_procs(left, 10)[1] == []
    there = {path: path.read_bytes() for path in phases.glob("*.json")}
    folder = RunFolder.open(phases.parent)
    run_in(folder, config, Silent())
    assert same_results(read_results(folder.path), read_results(whole.path))
    assert set(contents(folder.path)) == set(contents(whole.path))
    assert all(path.read_bytes() == kept for path, kept in there.items() if path.exists())


def test_a_dry_run_with_workers_says_how_many_jobs_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_forgetting.experiment.cost.tables.estimate", lambda *_: [])
    assert main(["run", "--config", "smoke", "--dry_run", "--workers", "2", "--curvature.spectrum", "true"]) == 0
    assert "\n14 jobs, " in capsys.readouterr().out
