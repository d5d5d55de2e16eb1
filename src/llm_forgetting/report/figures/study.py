"""Figures of a study: every measure's association, forecast against observed, and the learning-forgetting trade-off."""

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.layout import axis_label, lay_out
from llm_forgetting.report.figures.study_frontiers import frontiers_figure
from llm_forgetting.report.figures.style import (
    LEGEND,
    LINE_COLOURS,
    MARKERS,
    QUIET,
    SMALL,
    Style,
    even_ticks,
    house_style,
    save,
)
from llm_forgetting.report.tables.study import sizes_of
from llm_forgetting.report.views.axis_scale import AxisScale
from llm_forgetting.report.views.captions import Caption
from llm_forgetting.report.views.study import (
    StudyContent,
    axis_scales,
    by_arm,
    by_pair,
    columns,
    estimate_ends,
    primary_first,
    title,
    unit,
)


def draw_study(study: StudyContent, folder: Path, *, dpi: int) -> list[str]:
    """Write every figure into `folder` as PNG and PDF; the names of the PNGs."""
    names = []
    with house_style():
        for stem, figure in _figures(study):
            save(figure, folder / stem, dpi)
            names.append(f"{stem}.png")
    return names


def _figures(study: StudyContent) -> Iterator[tuple[str, Figure]]:
    if "associations" in study:
        yield "study_measures", measures_figure(study)
        analysis = study["analysis"]
        primary, outcome = analysis["primary"], analysis["outcome"]
        name = "flatness" if "questions" not in study else title(study, primary)
        yield "study_flatness", scatter_figure(study, primary, outcome, f"{name} and forgetting")
        if study["calibration"] is not None:
            yield (
                "study_forecast",
                scatter_figure(study, analysis["forecast"], "observed", "forecast and forgetting", same=True),
            )
        if len(study["arms"]) > 1 and not study.get("frontiers"):
            yield "study_trade_off", trade_off_figure(study, analysis["learning"], outcome)
    for found in study.get("frontiers") or []:
        yield f"study_frontiers_{found['measure']}", frontiers_figure(found)


def measures_figure(study: StudyContent) -> Figure:
    """A row per measure: rho with forgetting within task pairs and over all runs, each with its interval."""
    table, names = study["associations"], primary_first(study)
    caption = Caption(
        f"Spearman's rho with {title(study, table['outcome'])}",
        (f"{sizes_of(table)} runs of {study['pairs']} task pairs; bars: 95% intervals; bold: the primary measure",),
    )
    panels = lay_out(
        {(0, 0): caption},
        aspect=0.17 + 0.052 * len(names),
        x_label="rank correlation",
        y_labels=[""],
        left=2.0,
        right=0.1,
        below=0.24,
        total=5.2,
    )
    axes = panels.axes[0, 0]
    axes.axvline(0, color=QUIET, linewidth=0.6)
    for kind, (key, label) in enumerate((("within_pairs", "within task pairs"), ("over_runs", "over all runs"))):
        for row, name in enumerate(names):
            rho = table["measures"][name][f"spearman_{key}"]
            if rho is None:
                continue
            place = row + (0.16 if kind else -0.16)
            if rho["interval"] is not None:
                axes.plot(estimate_ends(rho), [place, place], color=LINE_COLOURS[kind], linewidth=1.0)
            axes.plot(float(rho["value"]), place, MARKERS[kind], color=LINE_COLOURS[kind], markersize=3.5, label=label)
    axes.set_yticks(range(len(names)), [title(study, name) for name in names], fontsize=SMALL)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1.05, 1.05)
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # every kind once
    middle = axes.get_position().x0 + axes.get_position().width / 2
    panels.figure.legend(
        named.values(), named, loc="lower center", bbox_to_anchor=(middle, 0.0), ncols=2, fontsize=LEGEND
    )
    return panels.figure


def scatter_figure(study: StudyContent, x: str, y: str, heading: str, *, same: bool = False) -> Figure:
    """Every run as a dot, coloured by its task pair; with `same` the line on which both are equal.

    Where a few runs lie far from the rest the axis is logarithmic, or asinh where values may be negative; with `same` both are.
    """
    figure, axes = _panel(study, f"{heading[0].upper()}{heading[1:]}", x, y)
    x_scale, y_scale = axis_scales(study, x, y, same=same)
    all_xs, all_ys = columns(study["points"], x, y)
    _set_scale(axes.set_xscale, axes.xaxis, x_scale, all_xs)
    _set_scale(axes.set_yscale, axes.yaxis, y_scale, all_ys)
    for n, (pair, points) in enumerate(by_pair(study).items()):
        xs, ys = columns(points, x, y)
        axes.plot(xs, ys, linestyle="", **_look(n), label=pair.replace("_", " "))
    if same:
        xlim, ylim = axes.get_xlim(), axes.get_ylim()
        low, high = max(xlim[0], ylim[0]), min(xlim[1], ylim[1])
        axes.plot([low, high], [low, high], color=QUIET, linewidth=0.7, linestyle=(0, (4, 2)))
    _legend(axes)
    return figure


def trade_off_figure(study: StudyContent, learning: str, outcome: str) -> Figure:
    """Learning of the last task against forgetting of the first, by arm: lower right is better."""
    figure, axes = _panel(study, "Learning and forgetting, by intervention", learning, outcome)
    for n, (arm, points) in enumerate(by_arm(study).items()):
        xs, ys = columns(points, learning, outcome)
        axes.plot(xs, ys, linestyle="", **_look(n), label=arm)
    _legend(axes)
    return figure


def _panel(study: StudyContent, heading: str, x: str, y: str) -> tuple[Figure, Axes]:
    count = columns(study["points"], x, y)[0].size
    panels = lay_out(
        {(0, 0): Caption(heading, (f"{count} runs of {study['pairs']} task pairs; a dot is one run, one seed",))},
        aspect=0.75,
        x_label=_axis(study, x),
        y_labels=[_axis(study, y)],
        left=0.7,
        right=2.0,
        total=5.6,
    )
    axes = panels.axes[0, 0]
    even_ticks(axes.xaxis, 6)
    even_ticks(axes.yaxis, 6)
    return panels.figure, axes


def _set_scale(set_scale: Callable[..., None], axis: Axis, scale: AxisScale, values: Floats) -> None:
    if scale.kind == "linear":
        return
    if scale.kind == "log":
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 3)))
    else:
        set_scale("asinh", linear_width=scale.width)
        axis.set_major_locator(FixedLocator(scale.ticks(values)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _axis(study: StudyContent, name: str) -> str:
    """Title of a number with its unit, in two lines where it is long."""
    words = unit(study, name)
    return axis_label(title(study, name), words, 2.1) if words else title(study, name)


def _look(n: int) -> Style:
    colour, marker = LINE_COLOURS[n % len(LINE_COLOURS)], MARKERS[n % len(MARKERS)]
    return {"marker": marker, "color": colour, "markersize": 3.6, "markeredgewidth": 0.3, "markeredgecolor": "white"}


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=SMALL, handletextpad=0.2, borderaxespad=0.3)
