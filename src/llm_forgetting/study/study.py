"""Study from plan to report: missing cells are computed, by as many workers as fit here, and everything is written."""

from collections.abc import Callable

from llm_forgetting.engines.start import EngineChoice, visible_gpus
from llm_forgetting.experiment.workers import described, share_machine
from llm_forgetting.files import Json
from llm_forgetting.study.plan import Plan
from llm_forgetting.study.report import write_study
from llm_forgetting.study.scheduler import StudyFolder, run_study
from llm_forgetting.study.statistics.clusters import MINIMUM_PAIRS


def complete_study(
    plan: Plan,
    folder: StudyFolder,
    *,
    engine: EngineChoice | None = None,
    workers: int | None = None,
    threads: int | None = None,
    report: Callable[[str], None],
) -> dict[str, Json]:
    """Compute every cell of `plan` that is missing, and write the study's report.

    What an interrupt leaves is kept in `folder`.

    Args:
        plan: The study.
        folder: Where cells and report go; held for this process meanwhile.
        engine: Who computes; by default processes on this machine.
        workers: Cells at a time; by default one per GPU, or else per two cores.
        threads: CPU threads of each; by default its share of this machine's cores.
        report: Gets a line per finished cell.

    Returns:
        The content of study.json, once every cell has a record or has failed.

    Raises:
        UserError: For an engine that is not there, a folder that cannot be written or that another study holds.
    """
    engine = engine or EngineChoice()
    gpus = visible_gpus() if engine.name == "local" else []
    configs = [cell.config for cell in plan.cells]
    workers, threads = share_machine(workers, threads, configs, len(gpus))
    with folder.locked():
        folder.remove_damaged(plan, report)
        missing = len(folder.missing(plan))
        report(f"{plan.name}: {len(plan.cells)} cells, {len(plan.cells) - missing} done; writing to {folder.path}")
        for line in too_few_first_tasks(plan):
            report(line)
        if missing:
            cell_engine = engine.start(workers, threads, gpus, folder.path)
            report(described(engine, workers, threads, len(gpus)))
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
