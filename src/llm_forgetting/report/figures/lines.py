"""Figure of the losses along random lines through every checkpoint."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llm_forgetting.report.figures.layout import axis_label, lay_out, panel_width, table_of
from llm_forgetting.report.figures.style import CHECKPOINT, DASHES, LINE_COLOURS, QUIET, direction_ticks, even_ticks
from llm_forgetting.report.views.captions import step_unit
from llm_forgetting.report.views.lines import LineEnsemble


def lines_figure(ensembles: Sequence[LineEnsemble]) -> Figure:
    """All bundles side by side, a row per task and a column per checkpoint, on one axis of rises."""
    places = table_of([(ensemble.task, ensemble.checkpoint) for ensemble in ensembles])
    rows, columns = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    panels = lay_out(
        {places[ensemble.task, ensemble.checkpoint]: ensemble.caption for ensemble in ensembles},
        aspect=0.62,
        x_label=axis_label("step along a random direction", step_unit(ensembles[0].space), panel_width(columns, 0.65)),
        y_labels=["rise of the loss (nats)"] * rows,
        right=0.1,
        below=0.24 if columns > 1 else 0.38,
    )
    for ensemble in ensembles:
        _bundle(panels.axes[places[ensemble.task, ensemble.checkpoint]], ensemble)
    panels.level(range(rows))
    handles = [
        Line2D([], [], color=QUIET, linewidth=0.6),
        Line2D([], [], color=LINE_COLOURS[0], linewidth=1.8),
        Patch(color=LINE_COLOURS[0], alpha=0.25, linewidth=0),
    ]
    names = ["one direction", "mean", "± one standard error"]
    if any(ensemble.radius is not None for ensemble in ensembles):
        handles.append(Line2D([], [], color=LINE_COLOURS[1], linewidth=0.9, linestyle=DASHES[1]))
        names.append(f"basin: mean rise ≤ {ensembles[0].tau:g} nats")
    panels.figure.legend(handles, names, loc="lower center", ncols=4 if columns > 1 else 2, handlelength=2.2)
    return panels.figure


def _bundle(axes: Axes, ensemble: LineEnsemble) -> None:
    """Every line thin, their mean bold, one standard error around it as a band; the basin between dashed lines."""
    mean = ensemble.mean
    axes.plot(ensemble.steps, ensemble.rises.T, color=QUIET, linewidth=0.5, alpha=0.8, zorder=2)
    axes.fill_between(
        ensemble.steps, mean - ensemble.stderr, mean + ensemble.stderr, color=LINE_COLOURS[0], alpha=0.25, linewidth=0
    )
    axes.plot(ensemble.steps, mean, color=LINE_COLOURS[0], linewidth=1.8, zorder=3)
    axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
    axes.plot(0, 0, zorder=4, **CHECKPOINT)
    if ensemble.radius is not None:
        for side in (-ensemble.radius, ensemble.radius):
            axes.axvline(side, color=LINE_COLOURS[1], linewidth=0.9, linestyle=DASHES[1], zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(ensemble.steps[0], ensemble.steps[-1])
    direction_ticks(axes.xaxis)
    even_ticks(axes.yaxis, 5)
