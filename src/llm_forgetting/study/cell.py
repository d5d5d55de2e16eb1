"""Computation of one cell of a study: an experiment in a folder of its own, and the record that the study keeps of it."""

import logging
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from llm_forgetting.config.files import parse_config
from llm_forgetting.engines.engine import Job
from llm_forgetting.errors import UserError, is_broken_device, is_out_of_memory
from llm_forgetting.experiment.artifacts.logs import log_file, quiet_libraries
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import decode, encode, write_text
from llm_forgetting.study.measures import frontiers_of, numbers_of
from llm_forgetting.study.plan import CellPlace
from llm_forgetting.study.records import FAILURE, RECORD, CellFailure, CellRecord
from llm_forgetting.study.shared_first_task import copy_base_scores, copy_first_scores, copy_first_task


@dataclass(frozen=True)
class CellJob:
    """What a worker receives of one cell: the cell in `folder` (with its config.yaml), computed on `threads` threads.

    source_cell: folder of the cell whose training on the first task is copied; base_scores, first_scores: folders of cells
    whose scores of the base model, and after the first task, are copied; None where this cell computes them itself.
    """

    place: CellPlace
    folder: Path
    source_cell: Path | None
    base_scores: Path | None
    first_scores: Path | None
    threads: int


def cell_job(work: CellJob) -> Job:
    """The engine's job that computes a cell. A cluster's workers have a working directory of their own, so paths are whole."""
    whole = replace(
        work,
        folder=work.folder.absolute(),
        source_cell=work.source_cell and work.source_cell.absolute(),
        base_scores=work.base_scores and work.base_scores.absolute(),
        first_scores=work.first_scores and work.first_scores.absolute(),
    )
    return Job(work.place.cell, f"{__name__}:compute_cell", encode(whole))


def compute_cell(argument: str) -> str:
    """In a worker: `run_cell` on a `CellJob` in JSON; what came of it is in the cell's folder."""
    quiet_libraries()
    run_cell(decode(CellJob, argument))
    return ""


def run_cell(job: CellJob) -> None:
    """Compute the cell and write its record; or, where it fails, why. Only what ends the process is raised.

    After an error that leaves the GPU unusable the process ends, for every later cell would fail in it; the study begins the
    cell again in a new one.
    """
    started = time.perf_counter()
    (job.folder / FAILURE).unlink(missing_ok=True)
    try:
        _run(job, started)
    except UserError as error:
        _fail(job, str(error))
    except Exception as error:  # one cell's fault is not the study's
        if is_broken_device(error):
            raise SystemExit(f"cell {job.place.cell}: {' '.join(str(error).split())[:200]}") from error
        logging.getLogger(__name__).exception("cell %s failed", job.place.cell)
        memory = "memory ran out: " if is_out_of_memory(error) else ""
        _fail(job, f"{memory}{type(error).__name__}: {' '.join(str(error).split())[:400]}", traceback.format_exc())


def _run(job: CellJob, started: float) -> None:
    import torch

    from llm_forgetting.experiment.experiment import run_experiment

    torch.set_num_threads(job.threads)
    config = parse_config(str(job.folder / "config.yaml"), [], resumed=True)
    folder = RunFolder.open(job.folder)
    with folder.locked(), log_file(folder.path / "run.log"):
        if job.source_cell is not None:
            copy_first_task(job.folder, job.source_cell, config)
        if job.base_scores is not None:
            copy_base_scores(job.folder, job.base_scores)
        if job.first_scores is not None:
            copy_first_scores(job.folder, job.first_scores)
        results = run_experiment(config, folder)
        numbers = numbers_of(results)
        record = CellRecord(
            **vars(job.place),
            fingerprint=results.config_fingerprint,
            measures=numbers.measures,
            outcomes=numbers.outcomes,
            stderrs=numbers.stderrs,
            frontiers=frontiers_of(results) or None,
            answer=results.answer,
            versions=results.versions,
            wall_seconds=time.perf_counter() - started,
            shared_half=job.source_cell is not None,
        )
        folder.write(RECORD, encode(record))


def _fail(job: CellJob, reason: str, trace: str = "") -> None:
    write_text(job.folder / FAILURE, encode(CellFailure(**vars(job.place), reason=reason, trace=trace)))
