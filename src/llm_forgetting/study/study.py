"""Study from plan to report: missing cells are computed, by as many workers as fit here, and everything is written."""

import os
from collections.abc import Callable, Sequence

import psutil

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.devices import own_device, this_cpu
from llm_forgetting.experiment.cost.fit import host_bytes, worker_bytes
from llm_forgetting.files import Json
from llm_forgetting.study.engines import Engine, LocalEngine, RayEngine, visible_gpus
from llm_forgetting.study.plan import Plan
from llm_forgetting.study.report import write_study
from llm_forgetting.study.scheduler import StudyFolder, run_study
from llm_forgetting.study.statistics.clusters import MINIMUM_PAIRS


def complete_study(
    plan: Plan,
    folder: StudyFolder,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    report: Callable[[str], None],
) -> dict[str, Json]:
    """Compute every cell of `plan` that is missing, and write the study's report.

    What an interrupt leaves is kept in `folder`.

    Args:
        plan: The study.
        folder: Where cells and report go; held for this process meanwhile.
        engine: `local` (processes) or `ray` (the cluster at `address`, or one started here).
        workers: Cells at a time; by default one per GPU, or else per two cores.
        threads: CPU threads of each; by default its share of this machine's cores.
        address: Of a running Ray cluster.
        report: Gets a line per finished cell.

    Returns:
        The content of study.json, once every cell has a record or has failed.

    Raises:
        UserError: For an unknown engine, a folder that cannot be written or that another study holds.
    """
    gpus = visible_gpus() if engine == "local" else []
    workers, threads = share_machine(workers, threads, plan, len(gpus))
    with folder.locked():
        folder.remove_damaged(plan, report)
        missing = len(folder.missing(plan))
        report(f"{plan.name}: {len(plan.cells)} cells, {len(plan.cells) - missing} done; writing to {folder.path}")
        for line in too_few_first_tasks(plan):
            report(line)
        if missing:
            cell_engine = _engine(engine, workers, threads, address, gpus)
            where = f"{engine}, {len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else engine
            where += ", which they share" if workers > len(gpus) > 0 else ""
            report(f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)} ({where})")
            try:
                run_study(plan, folder, cell_engine, threads=threads, report=report)
            finally:
                cell_engine.close()
        return write_study(plan, folder, report)


def too_few_first_tasks(plan: Plan) -> list[str]:
    """A sentence that says what the first tasks of `plan` are too few for; none where they suffice."""
    n = len({cell.config.data.tasks[0] for cell in plan.cells})
    if n >= MINIMUM_PAIRS:
        return []
    return [
        f"At least {MINIMUM_PAIRS} first tasks are needed for intervals and p-values of what an arm changes, and the cells "
        f"have {n}: task pairs that share one count as one. Correlations within task pairs need fewer."
    ]


def share_machine(workers: int | None, threads: int | None, plan: Plan, gpus: int = 0) -> tuple[int, int]:
    """Workers and threads of each: by default a worker per GPU, or else per two cores, and no more than memory holds.

    UserError for more workers than the memory of the GPUs holds.
    """
    cores = os.cpu_count() or 1
    configs = [cell.config for cell in plan.cells]
    if workers is None:
        workers = max(1, min(gpus or cores // (threads or 2), _fitting(configs, gpus), len(configs)))
    elif workers > gpus > 0:
        device = own_device("auto")
        needed = worker_bytes(configs, device)
        most = gpus * max(1, int(device.memory / needed)) if needed else gpus
        if workers > most:
            raise UserError(
                f"--workers must be at most {most}, was {workers}: a worker needs {needed / 1e9:.1f} GB, and {gpus} "
                f"GPU{'s have' if gpus > 1 else ' has'} {device.memory / 1e9:.1f} GB{' each' if gpus > 1 else ''}"
            )
    return workers, threads or max(1, cores // workers)


def _fitting(configs: Sequence[ExperimentConfig], gpus: int) -> int:
    """How many workers the free memory of the host holds; on GPUs they keep what they load there, and not the weights."""
    each = host_bytes(configs) if gpus else worker_bytes(configs, this_cpu())
    return max(1, int(0.8 * psutil.virtual_memory().available / each)) if each else os.cpu_count() or 1


def _engine(name: str, workers: int, threads: int, address: str | None, gpus: Sequence[str]) -> Engine:
    if name not in ("local", "ray"):
        raise UserError(f"engine must be local or ray, was {name!r}")
    return RayEngine(workers, threads, address) if name == "ray" else LocalEngine(workers, threads, gpus)
