"""A whole study: what is missing is computed, by as many workers as fit here, and everything is written."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost import memory_bytes
from llm_forgetting.study.engines import Engine, LocalEngine, RayEngine, visible_gpus
from llm_forgetting.study.plan import Plan
from llm_forgetting.study.report import write_study
from llm_forgetting.study.scheduler import StudyFolder, run_study


def carry_out(
    plan: Plan,
    folder: StudyFolder,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """What study.json holds, once every cell of `plan` has a record or has failed.

    `engine` is `local` (processes) or `ray` (the cluster at `address`, or one started here); `workers` cells are computed at a
    time, by default one per GPU, or else per two cores, each by `threads`, by default its share of this machine's cores. `tell`
    gets a line per finished cell. What an interrupt leaves is kept in `folder`.
    """
    gpus = visible_gpus() if engine == "local" else []
    workers, threads = _share(workers, threads, plan, len(gpus))
    with folder.locked():
        missing = len(folder.missing(plan))
        tell(f"{plan.name}: {len(plan.cells)} cells, {len(plan.cells) - missing} done; writing to {folder.path}")
        if missing:
            computing = _engine(engine, workers, threads, address, gpus)
            where = f"{engine}, {len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else engine
            tell(f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)} ({where})")
            try:
                run_study(plan, folder, computing, threads=threads, tell=tell)
            finally:
                computing.close()
        return write_study(plan, folder, tell)


def _share(workers: int | None, threads: int | None, plan: Plan, gpus: int = 0) -> tuple[int, int]:
    """Workers and threads of each: by default a worker per GPU, or else per two cores, and no more than there is memory for."""
    cores = os.cpu_count() or 1
    if workers is None:
        workers = max(1, min(gpus or cores // (threads or 2), _fitting(plan), len(plan.cells)))
    return workers, threads or max(1, cores // workers)


def _fitting(plan: Plan) -> int:
    """How many workers the memory that is free now holds, by the estimate of the largest cell."""
    largest = max((memory_bytes(cell.config) for cell in plan.cells), default=0.0)
    return max(1, int(0.8 * psutil.virtual_memory().available / largest)) if largest else os.cpu_count() or 1


def _engine(name: str, workers: int, threads: int, address: str | None, gpus: Sequence[str]) -> Engine:
    if name not in ("local", "ray"):
        raise UserError(f"engine must be local or ray, was {name!r}")
    return RayEngine(workers, threads, address) if name == "ray" else LocalEngine(workers, threads, gpus)
