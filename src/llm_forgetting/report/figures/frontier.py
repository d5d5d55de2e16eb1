"""Figure of learning curves, and of what was forgotten against what was learnt."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_forgetting.forgetting.frontier import ScoresDuring
from llm_forgetting.report.figures.layout import PER_LINE, wrapped
from llm_forgetting.report.figures.paths import line_look
from llm_forgetting.report.figures.style import HEADING, MARKERS, even_ticks
from llm_forgetting.report.tables.run import display_name
from llm_forgetting.report.views.frontier import FrontierView, LearningCurve, learning_curves

_PANEL = (3.1, 2.5)
"""Inches of a panel with its labels."""


def frontier_figure(trainings: Sequence[ScoresDuring], frontiers: Sequence[FrontierView]) -> Figure:
    """Learning curves, a panel per training, and below them the frontiers of the first task in the last training.

    Of many trainings the first and the last are drawn.
    """
    shown = trainings if len(trainings) <= PER_LINE else [*trainings[: PER_LINE - 1], trainings[-1]]
    last, first = trainings[-1].tasks[-1].task, trainings[-1].tasks[0].task
    below = [view for view in frontiers if (view.learnt, view.forgotten) == (last, first)]
    columns, rows = max(len(shown), len(below)), 2 if below else 1
    figure = Figure(figsize=(columns * _PANEL[0], rows * _PANEL[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for n in range(columns):
        for row, panels in ((0, shown), *([(1, below)] if below else [])):
            axes[row, n].set_visible(n < len(panels))
    for panel, during in zip(axes[0], shown, strict=False):
        _curves(panel, learning_curves(during))
    for panel, view in zip(axes[-1], below, strict=False):
        _frontier(panel, view)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: what is saved is cut to what is drawn
    return figure


def _curves(axes: Axes, curves: Sequence[LearningCurve]) -> None:
    for n, curve in enumerate(curves):
        look = {**line_look(n), "marker": MARKERS[n % len(MARKERS)], "markersize": 3.2}
        axes.errorbar(
            curve.fractions, curve.loss, yerr=curve.stderr, elinewidth=0.6, label=display_name(curve.task), **look
        )
    _label(axes, f"Learning {display_name(curves[-1].task)}", "fraction of the training", "loss (nats)")
    if len(curves) > 1:
        axes.legend()


def _frontier(axes: Axes, view: FrontierView) -> None:
    look = {**line_look(0), "marker": MARKERS[0], "markersize": 3.2}
    axes.errorbar(
        view.learning, view.forgetting, xerr=view.learning_stderr, yerr=view.forgetting_stderr, elinewidth=0.6, **look
    )
    if view.moved:
        axes.plot(
            *view.end, marker="*", markersize=8, linestyle="none", color=look["color"], label="end, after a method"
        )
        axes.legend()
    axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
    unit = "" if view.measure == "accuracy" else " (nats)"
    learnt, forgotten = display_name(view.learnt), display_name(view.forgotten)
    _label(axes, f"Frontier in {view.named}", f"learnt of {learnt}{unit}", f"forgotten of {forgotten}{unit}")


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    wide, high = _PANEL
    axes.set_title("\n".join(wrapped(title, 0.9 * wide, HEADING)), loc="left", fontsize=HEADING)
    axes.set_xlabel("\n".join(wrapped(x, 0.75 * wide, HEADING)))
    axes.set_ylabel("\n".join(wrapped(y, 0.75 * high, HEADING)))
    axes.spines[["top", "right"]].set_visible(False)
    even_ticks(axes.yaxis, 5)
