"""One cell of a study: an experiment in a folder of its own, and the record that the study keeps of it."""

import json
import logging
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forgetting.config.files import parse_config
from llm_forgetting.errors import UserError, is_out_of_memory
from llm_forgetting.experiment.artifacts.logs import log_file
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import encode_json, to_plain, write_text
from llm_forgetting.study.measures import numbers_of
from llm_forgetting.study.shared_first_task import take_base, take_half

RECORD, FAILURE = "record.json", "failure.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a worker is asked for: the cell in `folder` (with its config.yaml), its first task's training from `donor`, if any,
    and the base model's scores from the folder `base`, if any.

    `threads`: of the worker's share of the machine.
    """

    cell: str
    folder: Path
    donor: Path | None
    base: Path | None
    label: Mapping[str, Any]
    threads: int


def run_cell(job: Job) -> None:
    """Compute the cell and write its record; or, where it fails, why. Only what ends the process is raised."""
    started = time.perf_counter()
    (job.folder / FAILURE).unlink(missing_ok=True)
    try:
        _run(job, started)
    except UserError as error:
        _fail(job, str(error))
    except Exception as error:  # one cell's fault is not the study's
        logging.getLogger(__name__).exception("cell %s failed", job.cell)
        memory = "memory ran out: " if is_out_of_memory(error) else ""
        _fail(job, f"{memory}{type(error).__name__}: {' '.join(str(error).split())[:400]}", traceback.format_exc())


def _run(job: Job, started: float) -> None:
    import torch

    from llm_forgetting.experiment.experiment import run_experiment

    torch.set_num_threads(job.threads)
    config = parse_config(str(job.folder / "config.yaml"), [], resumed=True)
    folder = RunFolder.open(job.folder)
    with folder.locked(), log_file(folder.path / "run.log"):
        if job.donor is not None:
            take_half(job.folder, job.donor, config)
        if job.base is not None:
            take_base(job.folder, job.base)
        results = run_experiment(config, folder)
    record = {
        "cell": job.cell,
        **job.label,
        "fingerprint": results.config_fingerprint,
        **numbers_of(to_plain(results)),
        "answer": results.answer,
        "versions": results.versions,
        "wall_seconds": time.perf_counter() - started,
        "shared_half": job.donor is not None,
    }
    write_text(job.folder / RECORD, encode_json(record))


def _fail(job: Job, reason: str, trace: str = "") -> None:
    write_text(job.folder / FAILURE, encode_json({"cell": job.cell, **job.label, "reason": reason, "trace": trace}))


def read_record(folder: Path) -> Record | None:
    """The record of a finished cell."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_failure(folder: Path) -> str | None:
    """Why a cell failed, where it did."""
    path = folder / FAILURE
    return str(json.loads(path.read_text(encoding="utf-8"))["reason"]) if path.is_file() else None


def prune(folder: Path) -> None:
    """Delete what a finished cell's record does not need: checkpoints and phases; results.json and items.jsonl stay."""
    for path in [*folder.glob("checkpoint_*"), folder / "phases"]:
        shutil.rmtree(path, ignore_errors=True)
