"""Scheduler of a study: which cells are missing, which may begin, and what happens where a worker dies."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from llm_forgetting.config.paths import to_dict
from llm_forgetting.engines.engine import Engine
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.run_folder import holding
from llm_forgetting.files import encode, remove_temporary, write_text
from llm_forgetting.files.manifest import write
from llm_forgetting.progress import duration
from llm_forgetting.study.cell import CellJob, cell_job
from llm_forgetting.study.plan import Cell, Plan
from llm_forgetting.study.records import FAILURE, RECORD, CellFailure, CellRecord, read_failure, read_record
from llm_forgetting.study.shared_first_task import (
    Tasks,
    base_scores_key,
    first_task_key,
    has_base_scores,
    has_first_scores,
    has_first_task,
)

ATTEMPTS = 3
"""How often a cell is begun whose worker dies, before it counts as failed."""


@dataclass(frozen=True)
class StudyFolder:
    """Folder of a study, `cells/ID/` for every cell of whichever study file: a cell that is there is not computed again."""

    path: Path

    def cell(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.path / "cells" / cell.id

    def prepare(self, cell: Cell) -> Path:
        """The cell's run folder, with its config.yaml."""
        folder = self.cell(cell)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yaml"
        if not config.exists():
            text = yaml.safe_dump(to_dict(cell.config), sort_keys=False, allow_unicode=True)
            write(folder, config.name, text.encode())
        return folder

    def records(self, plan: Plan) -> list[CellRecord]:
        """The records of the plan's finished cells, in its order, with this plan's names for what was varied."""
        records = ((cell, read_record(self.cell(cell))) for cell in plan.cells)
        return [replace(record, **vars(cell.place)) for cell, record in records if record is not None]

    def take_over(self, plan: Plan, records: Sequence[CellRecord]) -> None:
        """Write stored records of the plan's cells into their folders; cells that have one keep it."""
        by_cell = {record.cell: record for record in records}
        for cell in self.missing(plan):
            if cell.id in by_cell:
                write(self.prepare(cell), RECORD, encode(by_cell[cell.id]).encode())

    def failures(self, plan: Plan) -> dict[str, str]:
        """Why cells of the plan failed, by their labels."""
        failures = ((cell.label, read_failure(self.cell(cell))) for cell in plan.cells)
        return {label: failure.reason for label, failure in failures if failure is not None}

    def missing(self, plan: Plan) -> list[Cell]:
        """The plan's cells that have no record: never begun, stopped, or failed."""
        return [cell for cell in plan.cells if not (self.cell(cell) / RECORD).exists()]

    def remove_damaged(self, plan: Plan, report: Callable[[str], None]) -> None:
        """Remove records and failures that are not as they were written: those cells are computed again, as `report` hears."""
        for cell in plan.cells:
            for name, read in ((RECORD, read_record), (FAILURE, read_failure)):
                try:
                    read(self.cell(cell))
                except UserError:
                    (self.cell(cell) / name).unlink()
                    report(f"{cell.label}: its {name} is damaged, and the cell is computed again")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the study's folder must be writable, {self.path} is not ({error.strerror})") from error
        busy = f"{self.path} is being written by another study; wait for it or end it first"
        with holding(self.path / ".lock", busy):
            remove_temporary(self.path)
            yield


@dataclass
class Tally:
    """Progress of a study: cells to compute, and those that are done or failed."""

    total: int
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    failed: int = 0

    @property
    def seconds_left(self) -> float:
        """Time for the rest, by the mean of those that are done."""
        return (time.perf_counter() - self.started) / self.done * (self.total - self.done)


def run_study(
    plan: Plan,
    folder: StudyFolder,
    engine: Engine,
    *,
    threads: int,
    report: Callable[[str], None] = lambda line: None,
    tasks: Tasks | None = None,
) -> None:
    """Compute every cell of `plan` that has no record; a cell that fails leaves its reason, and the others go on.

    Of cells that share the training on their first task one begins, and the others wait until it has that behind it. A cell
    whose worker dies is begun again, at most `ATTEMPTS` times in all.

    Args:
        plan: The study.
        folder: Where cells are.
        engine: Computes them.
        threads: CPU threads of each.
        report: Gets a line per finished cell.
        tasks: Tasks that are loaded already.
    """
    waiting, running = folder.missing(plan), dict[str, Cell]()
    shared = _SharedTraining(plan, folder, tasks or Tasks())
    attempts: dict[str, int] = {}
    tally = Tally(len(waiting))
    while waiting or running:
        while len(running) < engine.slots:
            cell = next((cell for cell in waiting if shared.may_begin(cell, running.values())), None)
            if cell is None:
                break
            waiting.remove(cell)
            attempts[cell.id] = attempts.get(cell.id, 0) + 1
            running[cell.id] = cell
            sources = shared.source_cell(cell), shared.base_scores(cell), shared.first_scores(cell)
            engine.submit(cell_job(CellJob(cell.place, folder.prepare(cell), *sources, threads)))
        for result in engine.finished(1.0):
            cell = running.pop(result.job.name)
            record, failure = read_record(folder.cell(cell)), read_failure(folder.cell(cell))
            if record is None and failure is None and attempts[cell.id] < ATTEMPTS:
                report(f"{cell.label}: its worker died; begun again")
                waiting.insert(0, cell)
                continue
            if record is None and failure is None:
                failure = CellFailure(cell=cell.id, reason=f"its worker died {ATTEMPTS} times (memory?)")
                write_text(folder.cell(cell) / FAILURE, encode(failure))
            tally.done += 1
            tally.failed += record is None
            report(_line(tally, cell, record, failure))


def _line(tally: Tally, cell: Cell, record: CellRecord | None, failure: CellFailure | None) -> str:
    head = f"[{tally.done}/{tally.total}] {cell.label}"
    if record is None:
        return f"{head}: failed: {failure.reason if failure else None}"
    lost = record.outcomes.get("forgetting_loss")
    forgot = "" if lost is None else f"forgot {lost:+.2f} nats, "
    return f"{head}: {forgot}{record.wall_seconds or 0:.0f} s; about {duration(tally.seconds_left, rough=True)} left"


class _SharedTraining:
    """Cells that share the training on their first task, the base model's scores, or those after the first task (which need
    both), and the folders that hold them.
    """

    def __init__(self, plan: Plan, folder: StudyFolder, tasks: Tasks) -> None:
        self._folder = folder
        self._first_task = {cell.id: first_task_key(cell.config, tasks) for cell in plan.cells}
        self._base = {cell.id: base_scores_key(cell.config, tasks) for cell in plan.cells}
        self._both = {cell.id: f"{self._first_task[cell.id]} {self._base[cell.id]}" for cell in plan.cells}
        self._cells: dict[str, list[Cell]] = {}
        for cell in plan.cells:
            for key in (self._first_task[cell.id], self._base[cell.id], self._both[cell.id]):
                self._cells.setdefault(key, []).append(cell)

    def source_cell(self, cell: Cell) -> Path | None:
        """The folder of another cell that has the first task which `cell` needs; None if none has, or `cell` has it."""
        if has_first_task(self._folder.cell(cell), cell.config):
            return None
        return next((f for f in self._others(cell, self._first_task) if has_first_task(f, cell.config)), None)

    def base_scores(self, cell: Cell) -> Path | None:
        """The folder of another cell that has the base model's scores which `cell` needs."""
        if has_base_scores(self._folder.cell(cell)):
            return None
        return next((folder for folder in self._others(cell, self._base) if has_base_scores(folder)), None)

    def first_scores(self, cell: Cell) -> Path | None:
        """The folder of another cell that has the scores after the first task which `cell` needs."""
        if has_first_scores(self._folder.cell(cell)):
            return None
        return next((folder for folder in self._others(cell, self._both) if has_first_scores(folder)), None)

    def _others(self, cell: Cell, key: Mapping[str, str]) -> Iterator[Path]:
        return (self._folder.cell(other) for other in self._cells[key[cell.id]] if other.id != cell.id)

    def may_begin(self, cell: Cell, running: Iterable[Cell]) -> bool:
        """Whether no running cell is about to have the first task that `cell` needs."""
        if has_first_task(self._folder.cell(cell), cell.config) or self.source_cell(cell) is not None:
            return True
        return all(self._first_task[other.id] != self._first_task[cell.id] for other in running)
