"""The page of several runs side by side: numbers, landscapes, and where their configurations differ."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from llm_forgetting.report.html.blocks import Block, Code, Figures, Numbers, Page, Plot, Prose, Section
from llm_forgetting.report.html.lines import ensemble_plots
from llm_forgetting.report.html.paths import losses_plot
from llm_forgetting.report.html.surfaces import surface_blocks
from llm_forgetting.report.tables.compare import Compared, compare_tables, identity_table
from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.views.lines import LineEnsemble, line_ensembles
from llm_forgetting.report.views.paths import path_views
from llm_forgetting.report.views.surfaces import SurfaceView, surface_views
from llm_forgetting.results import Results

View = TypeVar("View", SurfaceView, LineEnsemble)


def compare_page(runs: Sequence[Compared], command: str) -> Page:
    """The tables, with every run's own answer first, and the same figures of all runs beside each other."""
    forgetting, accuracy, loss, measures, differences = compare_tables(runs)
    alike = Prose("The configurations are the same.", quiet=True)
    config: list[Block] = [Numbers(differences)] if differences.rows else [alike]
    columns = min(len(runs), 3)
    rows = "A row per task and checkpoint, a column per run."
    surfaces = surface_blocks(_beside(runs, surface_views), columns)
    lines = Figures(ensemble_plots(_beside(runs, line_ensembles)), columns)
    paths = [_titled(run, losses_plot(path)) for run in runs for path in path_views(run.results)]
    return Page(
        title=f"{len(runs)} runs side by side",
        kicker="llm-forgetting compare",
        answers=[(f"{run.letter}: {run.folder}", [run.results.answer]) for run in runs],
        sections=[
            Section("forgetting", "Forgetting", [Numbers(forgetting)]),
            Section("scores", f"{accuracy.title} and loss", [Numbers(accuracy), Numbers(loss)]),
            Section("landscape", "Landscape, curvature and forecasts", [Numbers(measures)]),
            Section("surfaces", "Loss surfaces", [Prose(rows), *surfaces]),
            Section("directions", "Along random directions", [Prose(rows), lines]),
            *([Section("between", "Between the checkpoints", [Figures(paths, columns)])] if paths else []),
            Section("configuration", "Configuration", config),
            Section("again", "How to reproduce", [Code(command), Numbers(identity_table(runs))]),
        ],
        warnings=[f"{run.letter}: {warning}" for run in runs for warning in run.results.warnings],
    )


def harness_page(tables: Sequence[Table], named: Sequence[str], command: str) -> Page:
    """Two logs of lm-evaluation-harness: what changed, paired by document."""
    return Page(
        title="Two logs of lm-evaluation-harness",
        kicker="llm-forgetting compare",
        answers=[("", list(named))],
        sections=[
            Section("change", "What changed", [Numbers(table) for table in tables if table.rows]),
            Section("again", "How to reproduce", [Code(command)]),
        ],
    )


def _beside(runs: Sequence[Compared], views: Callable[[Results], Iterable[View]]) -> list[View]:
    """The views of all runs, titled with the run's letter: by task and checkpoint, and there run by run."""
    placed = [
        (run.results.task_names.index(view.task), list(run.results.landscapes).index(view.checkpoint), number, view)
        for number, run in enumerate(runs)
        for view in views(run.results)
    ]
    return [
        replace(view, caption=replace(view.caption, heading=f"{runs[number].letter}, {view.caption.heading}"))
        for _, _, number, view in sorted(placed, key=lambda place: place[:3])
    ]


def _titled(run: Compared, plot: Plot) -> Plot:
    return replace(plot, heading=f"{run.letter}, {plot.heading}")
