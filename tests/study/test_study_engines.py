"""Studies by real workers: one that dies, and Ray."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from small_study import file, numbers, uninterrupted

from llm_forgetting.engines.engine import Job
from llm_forgetting.engines.local import LocalEngine
from llm_forgetting.engines.ray import RayEngine
from llm_forgetting.engines.slurm import SlurmEngine
from llm_forgetting.engines.start import visible_gpus
from llm_forgetting.experiment.workers import share_machine
from llm_forgetting.study.plan import Plan, read_plan
from llm_forgetting.study.scheduler import StudyFolder, run_study

__all__ = ["file", "uninterrupted"]  # fixtures


def children() -> set[psutil.Process]:
    """The spawned processes of this one, as workers are."""
    return {child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())}


@contextlib.contextmanager
def one_worker_killed() -> Iterator[list[int]]:
    """The first process that a study starts is killed as soon as it is there."""
    killed: list[int] = []
    before = children()

    def kill() -> None:
        while not killed:
            for child in children() - before:
                time.sleep(1.0)
                child.kill()
                killed.append(child.pid)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    thread.join(30)


def plan_of(file: Path, cells: int) -> Plan:
    plan = read_plan(file)
    return Plan(plan.name, plan.cells[:cells], plan.arms, plan.analysis, plan.content)


@pytest.mark.study
def test_the_cell_of_a_worker_that_dies_is_begun_again(
    file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    plan, folder, engine, said = plan_of(file, 1), StudyFolder(tmp_path), LocalEngine(1, 1), list[str]()
    with one_worker_killed() as killed:
        run_study(plan, folder, engine, threads=1, report=said.append)
        engine.close()
    assert len(killed) == 1
    assert any("begun again" in line for line in said)
    assert numbers(tmp_path)[0] in uninterrupted["cells"]


@pytest.mark.study
def test_a_worker_that_died_while_it_was_idle_is_replaced(file: Path, tmp_path: Path) -> None:
    plan, folder, engine = read_plan(file), StudyFolder(tmp_path), LocalEngine(1, 1)
    before = children()
    try:
        run_study(plan_of(file, 1), folder, engine, threads=1)
        (worker,) = children() - before
        worker.kill()
        worker.wait()
        run_study(plan_of(file, 2), folder, engine, threads=1)
    finally:
        engine.close()
    assert [cell.id for cell in folder.missing(plan)] == [cell.id for cell in plan.cells[2:]]


# A spawned worker's first cell meets what CUDA says after a failed assertion.
BROKEN = """
import pathlib, torch
flag, whole = pathlib.Path({flag!r}), torch.set_num_threads
def once(threads):
    if not flag.exists():
        flag.touch()
        raise RuntimeError("CUDA error: device-side assert triggered")
    whole(threads)
torch.set_num_threads = once
"""


@pytest.mark.study
def test_the_cell_that_broke_its_gpu_is_begun_again_in_a_new_process(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, site = tmp_path / "broken", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BROKEN.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    plan, folder, engine, said = plan_of(file, 1), StudyFolder(tmp_path / "study"), LocalEngine(1, 1), list[str]()
    try:
        run_study(plan, folder, engine, threads=1, report=said.append)
    finally:
        engine.close()
    assert flag.exists()
    assert any("begun again" in line for line in said)
    assert not folder.missing(plan)


@pytest.mark.study
def test_every_worker_sees_one_gpu_and_its_successor_the_same() -> None:
    engine = LocalEngine(3, 1, gpus=("3", "5"))

    def begin(name: str) -> psutil.Process:
        before = children()
        engine.submit(Job(name, "subprocess:getoutput", "sleep 30"))
        (worker,) = children() - before
        return worker

    try:
        workers = [begin(name) for name in "abc"]
        assert [gpu_seen_by(worker) for worker in workers] == ["3", "5", "3"]
        workers[1].kill()
        (result,) = engine.finished(30.0)
        assert (result.job.name, result.died) == ("b", True)
        assert gpu_seen_by(begin("d")) == "5"
    finally:
        engine.close()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None


def gpu_seen_by(worker: psutil.Process) -> str | None:
    for _ in range(1000):  # at first it is a copy of this process
        if seen := worker.environ().get("CUDA_VISIBLE_DEVICES"):
            return str(seen)
        time.sleep(0.01)
    return None


def test_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8f")
    assert visible_gpus() == ["4", "GPU-8f"]


def test_workers_and_threads_share_the_machine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [cell.config for cell in read_plan(file).cells]
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert share_machine(None, None, configs) == (4, 2)
    assert share_machine(None, 4, configs) == (2, 4)
    assert share_machine(3, None, configs) == (3, 2)
    assert share_machine(16, 2, configs) == (16, 2)  # of a cluster
    assert share_machine(None, None, configs, gpus=2) == (2, 4)
    assert share_machine(None, None, configs[:1], gpus=2) == (1, 8)


@pytest.mark.study
def test_ray_computes_the_same(file: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plan, folder, engine = plan_of(file, 2), StudyFolder(tmp_path), RayEngine(2, 1)
    try:
        engine.submit(Job("broken", "sys:exit", "CUDA error"))  # as a worker ends whose GPU is broken
        (result,) = engine.finished(60.0)
        assert (result.job.name, result.died) == ("broken", True)
        run_study(plan, folder, engine, threads=1)
    finally:
        engine.close()
    assert engine.gpus == 0
    assert folder.missing(plan) == []
    assert all(found in uninterrupted["cells"] for found in numbers(tmp_path))


@pytest.mark.study
def test_slurm_computes_the_same_though_a_worker_is_killed(
    file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """By submitit's executor of processes on this machine."""
    pytest.importorskip("submitit")
    pytest.importorskip("cloudpickle")
    plan, folder, said = plan_of(file, 2), StudyFolder(tmp_path), list[str]()
    engine = SlurmEngine(2, 1, {"cluster": "local", "timeout_min": 30}, tmp_path)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "submitit.core._submit" in child.cmdline():
                        child.kill()
                        killed.append(child.pid)
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        run_study(plan, folder, engine, threads=1, report=said.append)
    finally:
        engine.close()
    assert len(killed) == sum("begun again" in line for line in said) == 1
    assert all(found in uninterrupted["cells"] for found in numbers(tmp_path))
    assert folder.missing(plan) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells"]


@pytest.mark.study
def test_a_running_cluster_gets_whole_paths_and_is_asked_for_its_gpus(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        plan, engine = plan_of(file, 1), RayEngine(1, 1)
        monkeypatch.chdir(tmp_path)  # not the directory of the cluster's workers
        folder = StudyFolder(Path("study"))
        run_study(plan, folder, engine, threads=1)
        engine.close()
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert engine.gpus == 1
    assert folder.missing(plan) == []
