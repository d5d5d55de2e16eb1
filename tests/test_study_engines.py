"""Studies in real processes: killed and gone on with, a worker that dies, and Ray."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llm_forgetting.study.cell import RECORD
from llm_forgetting.study.engines import LocalEngine, RayEngine
from llm_forgetting.study.plan import Plan, read_plan
from llm_forgetting.study.run import StudyFolder, run_study

KILLS = 10
SMALL: dict[str, Any] = {
    "name": "small",
    "base": "smoke",
    "set": {
        "data": {"train_items": 8, "test_items": 2},
        "training": {"num_epochs": 1},
        "evaluation": {"rotations": False, "recovery_items": 0},
        "landscape": {
            "tasks": "learnt", "num_items": 4, "directions": 2, "max_evaluations": 23, "tolerance": 1.0,
            "paths": False, "checkpoint_plane": False, "self_test_items": 1,
        },
        "output": {"figures": False},
    },
    "vary": {"data.tasks": [["synthetic_1", "synthetic_2"], ["synthetic_1", "synthetic_3"]]},
    "arms": {"adamw": {}, "rescaled": {"interventions.rescale": 2.0}},
    "analysis": {"controls": ["rescaled"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    return path


def study(file: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llm_forgetting", "study", str(file), "--folder", str(folder), "--workers", "1"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def table(folder: Path) -> dict[str, Any]:
    """What the study concludes, and every cell's numbers; not how long they took, nor who learnt a shared half."""
    found: dict[str, Any] = json.loads((folder / "study.json").read_text())
    numbers = [json.loads(path.read_text()) for path in sorted(folder.glob(f"cells/*/{RECORD}"))]
    return {**found, "cells": [{k: r[k] for k in ("cell", "measures", "outcomes", "stderrs")} for r in numbers]}


@pytest.fixture(scope="module")
def uninterrupted(file: Path) -> dict[str, Any]:
    process = study(file, file.parent / "whole")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return table(file.parent / "whole")


def test_a_study_killed_at_ten_random_moments_ends_with_the_same_table(
    file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    moments = random.Random(0)
    for _ in range(KILLS):
        process = study(file, tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(1.0, 10.0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = study(file, tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert table(tmp_path) == uninterrupted
    assert len(uninterrupted["cells"]) == 4


@contextlib.contextmanager
def one_worker_killed() -> Iterator[list[int]]:
    """The first process that a study starts is killed as soon as it is there."""
    killed: list[int] = []
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def kill() -> None:
        while not killed:
            for child in psutil.Process().children():
                if child.pid not in before and "spawn_main" in " ".join(child.cmdline()):
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


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: record[k] for k in ("cell", "measures", "outcomes", "stderrs")}
        for record in (json.loads(path.read_text()) for path in sorted(folder.glob(f"cells/*/{RECORD}")))
    ]


def test_the_cell_of_a_worker_that_dies_is_begun_again(
    file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    plan, folder, engine, said = plan_of(file, 1), StudyFolder(tmp_path), LocalEngine(1, 1), list[str]()
    with one_worker_killed() as killed:
        run_study(plan, folder, engine, threads=1, tell=said.append)
        engine.close()
    assert len(killed) == 1
    assert any("begun again" in line for line in said)
    assert numbers(tmp_path)[0] in uninterrupted["cells"]


def test_a_worker_that_died_while_it_was_idle_is_replaced(file: Path, tmp_path: Path) -> None:
    plan, folder, engine = read_plan(file), StudyFolder(tmp_path), LocalEngine(1, 1)
    try:
        run_study(plan_of(file, 1), folder, engine, threads=1)
        (worker,) = engine._idle
        worker.process.kill()
        worker.process.join()
        run_study(plan_of(file, 2), folder, engine, threads=1)
    finally:
        engine.close()
    assert [cell.id for cell in folder.missing(plan)] == [cell.id for cell in plan.cells[2:]]


def test_ray_computes_the_same(file: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plan, folder, engine = plan_of(file, 2), StudyFolder(tmp_path), RayEngine(2, 1)
    try:
        run_study(plan, folder, engine, threads=1)
    finally:
        engine.close()
    assert folder.missing(plan) == []
    assert all(found in uninterrupted["cells"] for found in numbers(tmp_path))
