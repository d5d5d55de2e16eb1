"""The Slurm engine on submitit's local executor, with functions of the standard library as jobs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llm_forgetting.cli.engines import add_engine_options, engine_of
from llm_forgetting.cli.parser import Parser
from llm_forgetting.engines.engine import Job, JobResult
from llm_forgetting.engines.slurm import FOLDER, SlurmEngine
from llm_forgetting.errors import UserError

pytest.importorskip("submitit")
pytest.importorskip("cloudpickle")
pytestmark = pytest.mark.process
LOCAL = {"cluster": "local", "timeout_min": 5, "slurm_partition": "gpu", "slurm_account": "me"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SlurmEngine]:
    made = SlurmEngine(2, 3, LOCAL, tmp_path)
    yield made
    made.close()
    assert not (tmp_path / FOLDER).exists()


def shell(name: str, command: str) -> Job:
    return Job(name, "subprocess:getoutput", command)


def ended(engine: SlurmEngine, seconds: float = 30) -> JobResult:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if results := engine.finished(1.0):
            (result,) = results
            return result
    raise AssertionError("no job has ended")


def worker_of(engine: SlurmEngine) -> psutil.Process:
    """The process that computes the engine's only job."""
    ((_, submitted),) = engine._busy.items()
    for _ in range(300):
        for child in psutil.Process(submitted._process.pid).children():
            if "submitit.core._submit" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("no worker")


def wait_for(file: Path) -> None:
    for _ in range(300):
        if file.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {file}")


def test_a_job_answers_and_knows_its_threads(engine: SlurmEngine) -> None:
    engine.submit(Job("threads", "os:getenv", "OMP_NUM_THREADS"))
    result = ended(engine)
    assert (result.job.name, result.answer, result.died) == ("threads", "3", False)


def test_a_worker_that_ends_itself_has_died(engine: SlurmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose GPU is broken. Its answer is waited for, as a disk of several nodes may be late."""
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0.5)
    engine.submit(Job("lost", "sys:exit", "CUDA error"))
    assert ended(engine).died


def test_a_job_whose_node_is_taken_away_is_queued_again(engine: SlurmEngine, tmp_path: Path) -> None:
    """Slurm says so by SIGUSR2."""
    begun = tmp_path / "begun"
    engine.submit(shell("preempted", f"if [ -e {begun} ]; then echo again; else touch {begun}; sleep 60; fi"))
    wait_for(begun)
    worker_of(engine).send_signal(signal.SIGUSR2)
    result = ended(engine)
    assert (result.answer, result.died) == ("again", False)


ALONE = """
import sys, time
from pathlib import Path
from llm_forgetting.engines.engine import Job
from llm_forgetting.engines.slurm import SlurmEngine
engine = SlurmEngine(1, 1, {"cluster": "local", "timeout_min": 5}, Path(sys.argv[1]), patience=float(sys.argv[2]))
engine.submit(Job("job", "subprocess:getoutput", f"echo $PPID > {sys.argv[1]}/begun; sleep 60"))
time.sleep(60)
"""


@pytest.mark.parametrize("again", [False, True])
def test_jobs_end_with_the_process_that_submitted_them(tmp_path: Path, again: bool) -> None:
    """Killed: after its last sign of life; started again: at once."""
    patience = "100" if again else "2"
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path), patience], env=dict(os.environ))
    wait_for(tmp_path / "begun")
    time.sleep(0.2)
    worker = psutil.Process(int((tmp_path / "begun").read_text()))
    process.kill()
    process.wait()
    assert worker.is_running()
    second = SlurmEngine(1, 1, LOCAL, tmp_path) if again else None
    worker.wait(10)
    if second:
        second.close()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("{partitions: gpu}", "--slurm must hold options of submitit's AutoExecutor"),
        ("{timeout_min: an hour}", "--slurm must hold options of submitit's AutoExecutor"),
        ("gpu", "--slurm must map options of submitit to values, was gpu"),
        ("{", "--slurm must be YAML"),
        ("nothing.yaml", "--slurm must be a YAML file; nothing.yaml cannot be read"),
    ],
)
def test_options_are_submitits(told: str, said: str, tmp_path: Path) -> None:
    parser = Parser("llm-forgetting study", description="")
    add_engine_options(parser, "cells")
    options = parser.parse_args(["--engine", "slurm", "--slurm", told])
    with pytest.raises(UserError) as refused:
        SlurmEngine(1, 1, {**engine_of(options).slurm, "cluster": "local"}, tmp_path)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_where_there_is_no_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--engine slurm needs Slurm's commands on this machine"):
        SlurmEngine(1, 1, {}, tmp_path)
    assert not (tmp_path / FOLDER).exists()
