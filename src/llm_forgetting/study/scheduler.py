"""Running a study: which cells are missing, which may begin, and what is done where a worker dies."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llm_forgetting.config.sections import to_dict
from llm_forgetting.errors import UserError
from llm_forgetting.files import encode_json, write_text
from llm_forgetting.progress import duration
from llm_forgetting.study.cell import FAILURE, RECORD, Job, Record, read_failure, read_record
from llm_forgetting.study.engines import Engine
from llm_forgetting.study.plan import Cell, Plan
from llm_forgetting.study.shared_first_task import Tasks, base_key, half_key, has_base, has_half

ATTEMPTS = 3
"""How often a cell is begun whose worker dies, before it counts as failed."""


@dataclass(frozen=True)
class StudyFolder:
    """`cells/ID/` for every cell, whichever study file asked for it: a cell that is there is not computed again."""

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
            write_text(config, yaml.safe_dump(to_dict(cell.config), sort_keys=False, allow_unicode=True))
        return folder

    def records(self, plan: Plan) -> list[Record]:
        """The records of the plan's finished cells, in its order, with this plan's names for what was varied."""
        found = ((cell, read_record(self.cell(cell))) for cell in plan.cells)
        return [{**record, **label_of(cell)} for cell, record in found if record is not None]

    def take_over(self, plan: Plan, records: Sequence[Record]) -> None:
        """Write stored records of the plan's cells into their folders; cells that have one keep it."""
        stored = {record["cell"]: record for record in records}
        for cell in self.missing(plan):
            if cell.id in stored:
                write_text(self.prepare(cell) / RECORD, encode_json(stored[cell.id]))

    def failures(self, plan: Plan) -> dict[str, str]:
        """Why cells of the plan failed, by their labels."""
        found = ((cell.label, read_failure(self.cell(cell))) for cell in plan.cells)
        return {label: reason for label, reason in found if reason is not None}

    def missing(self, plan: Plan) -> list[Cell]:
        """The plan's cells that have no record: never begun, stopped, or failed."""
        return [cell for cell in plan.cells if not (self.cell(cell) / RECORD).exists()]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the study's folder must be writable, {self.path} is not ({error.strerror})") from error
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path} is being written by another study; wait for it or end it first") from error
        try:
            yield
        finally:
            lock.release()


def label_of(cell: Cell) -> dict[str, Any]:
    """What a record says of its place in the study."""
    return {"pair": cell.pair, "tasks": list(cell.config.data.tasks), "factors": dict(cell.factors), "arm": cell.arm}


@dataclass
class Tally:
    """How far a study is, for whoever watches."""

    total: int
    done: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)


def run_study(
    plan: Plan,
    folder: StudyFolder,
    engine: Engine,
    *,
    threads: int,
    tell: Callable[[str], None] = lambda line: None,
    tasks: Tasks | None = None,
) -> None:
    """Compute every cell of `plan` that has no record; a cell that fails leaves its reason, and the others go on.

    Of cells that share the training on their first task one begins, and the others wait until it has that behind it. A cell
    whose worker dies is begun again, at most `ATTEMPTS` times in all.
    """
    missing = folder.missing(plan)
    halves = _Halves(plan, folder, tasks or Tasks())
    attempts: dict[str, int] = {}
    waiting, running = list(missing), dict[str, Cell]()
    tally = Tally(len(missing))
    started = time.perf_counter()
    while waiting or running:
        while len(running) < engine.slots:
            cell = next((cell for cell in waiting if halves.may_begin(cell, running.values())), None)
            if cell is None:
                break
            waiting.remove(cell)
            attempts[cell.id] = attempts.get(cell.id, 0) + 1
            running[cell.id] = cell
            donor, base = halves.donor(cell), halves.base(cell)
            engine.submit(Job(cell.id, folder.prepare(cell), donor, base, label_of(cell), threads))
        for ended in engine.ended(1.0):
            cell = running.pop(ended.job.cell)
            record, reason = read_record(folder.cell(cell)), read_failure(folder.cell(cell))
            if record is None and reason is None and attempts[cell.id] < ATTEMPTS:
                tell(f"{cell.label}: its worker died; begun again")
                waiting.insert(0, cell)
                continue
            if record is None and reason is None:
                reason = f"its worker died {ATTEMPTS} times (memory?)"
                write_text(folder.cell(cell) / FAILURE, f'{{"cell": "{cell.id}", "reason": "{reason}"}}\n')
            tally.done += 1
            tally.failed += record is None
            left = (time.perf_counter() - started) / tally.done * (tally.total - tally.done)
            tell(_line(tally, cell, record, reason, left))


def _line(tally: Tally, cell: Cell, record: Record | None, reason: str | None, left: float) -> str:
    head = f"[{tally.done}/{tally.total}] {cell.label}"
    if record is None:
        return f"{head}: failed: {reason}"
    lost = record["outcomes"].get("forgetting_loss")
    forgot = "" if lost is None else f"forgot {float(lost):+.2f} nats, "
    return f"{head}: {forgot}{record['wall_seconds']:.0f} s; about {duration(left, rough=True)} left"


class _Halves:
    """Which cells share the training on their first task, and who has it."""

    def __init__(self, plan: Plan, folder: StudyFolder, tasks: Tasks) -> None:
        self._folder = folder
        self._key = {cell.id: half_key(cell.config, tasks) for cell in plan.cells}
        self._base = {cell.id: base_key(cell.config, tasks) for cell in plan.cells}
        self._cells: dict[str, list[Cell]] = {}
        for cell in plan.cells:
            for key in (self._key[cell.id], self._base[cell.id]):
                self._cells.setdefault(key, []).append(cell)

    def donor(self, cell: Cell) -> Path | None:
        """The folder of another cell that has the half which `cell` needs; None where there is none, or `cell` has it."""
        if has_half(self._folder.cell(cell), cell.config):
            return None
        return next((f for f in self._others(cell, self._key) if has_half(f, cell.config)), None)

    def base(self, cell: Cell) -> Path | None:
        """The folder of another cell that has the base model's scores which `cell` needs."""
        if has_base(self._folder.cell(cell)):
            return None
        return next((folder for folder in self._others(cell, self._base) if has_base(folder)), None)

    def _others(self, cell: Cell, key: Mapping[str, str]) -> Iterator[Path]:
        return (self._folder.cell(other) for other in self._cells[key[cell.id]] if other.id != cell.id)

    def may_begin(self, cell: Cell, running: Any) -> bool:
        """Whether nobody who runs is about to have the half that `cell` needs."""
        if has_half(self._folder.cell(cell), cell.config) or self.donor(cell) is not None:
            return True
        return all(self._key[other.id] != self._key[cell.id] for other in running)
