"""A study of four cells of the smoke preset, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import made_once

from llm_forgetting.study.records import RECORD

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
    command = [sys.executable, "-m", "llm_forgetting", "study", str(file), "--folder", str(folder)]
    command += ["--workers", "1", "--threads", "1"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: record[k] for k in ("cell", "measures", "outcomes", "stderrs")}
        for record in (json.loads(path.read_text()) for path in sorted(folder.glob(f"cells/*/{RECORD}")))
    ]


def table(folder: Path) -> dict[str, Any]:
    """What the study concludes, and every cell's numbers; not how long they took, nor who learnt a shared half."""
    found: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return {**found, "cells": numbers(folder)}


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The study's table; computed once for all of pytest-xdist's workers."""

    def make(folder: Path) -> None:
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
        process = study(folder / "small.yaml", folder)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed

    return table(made_once(tmp_path_factory, "uninterrupted", make))
