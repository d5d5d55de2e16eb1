"""Figure of the losses along the straight path from one checkpoint to the next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm_forgetting.report.figures.layout import PER_LINE, lay_out, text_width, wrapped
from llm_forgetting.report.figures.style import (
    COLUMN,
    DASHES,
    LEGEND,
    LINE_COLOURS,
    MARKERS,
    PAGE,
    QUIET,
    SMALL,
    Style,
    direction_ticks,
    even_ticks,
)
from llm_forgetting.report.tables.words import profiled_name
from llm_forgetting.report.views.captions import Caption
from llm_forgetting.report.views.paths import PathView, ProfileView

# Inches that a legend's line, its gaps and margins take beside the text.
_HANDLE = 0.75


def paths_figure(paths: Sequence[PathView]) -> Figure:
    """A column per path (of many: lines of `PER_LINE` paths): every task's loss, and below it its accuracy."""
    places = [(2 * (n // PER_LINE), n % PER_LINE) for n in range(len(paths))]
    captions = {
        (upper + row, column): Caption("") if row else path.caption
        for path, (upper, column) in zip(paths, places, strict=True)
        for row in (0, 1)
    }
    name = profiled_name([view.profile for path in paths for view in path.profiles])
    roles = {view.number: view.role for path in paths for view in path.profiles}
    tasks = [roles[number] for number in sorted(roles)]
    looks = ["dots: measured", *(["thin: quadratic forecast"] if any(path.forecast for path in paths) else [])]
    key = _Key.of([*tasks, *looks], COLUMN if len(paths) == 1 else PAGE)
    panels = lay_out(
        captions,
        aspect=0.62,
        x_label="fraction of the path, t",
        y_labels=["loss (nats)", name] * (1 + places[-1][0] // 2),
        right=0.1,
        below=0.1 + 0.15 * key.lines,
    )
    for path, (row, column) in zip(paths, places, strict=True):
        upper, lower = panels.axes[row, column], panels.axes[row + 1, column]
        for view in path.profiles:
            _profile_lines(upper, lower, path, view, view.number)
        for axes in (upper, lower):
            axes.axvline(path.scan.repair.t, color="black", linewidth=0.8, linestyle=(0, (1.2, 1.6)), zorder=1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(-0.02, 1.02)
            direction_ticks(axes.xaxis)
            even_ticks(axes.yaxis, 5)
        lower.set_ylim(-0.04, 1.04)
        _name_repair(upper, path.scan.repair.t)
    panels.level(range(0, 2 + places[-1][0], 2))
    key.draw(panels.figure, len(tasks))
    return panels.figure


def _profile_lines(upper: Axes, lower: Axes, path: PathView, view: ProfileView, number: int) -> None:
    """Lines for the fit, dots where it was measured, the barrier as an arrow up from the straight line between the ends."""
    look, profile, steps, nodes = line_look(number), view.profile, path.scan.steps, path.scan.nodes[path.between]
    dots = {"linestyle": "none", "marker": MARKERS[number % len(MARKERS)], "color": look["color"], "markersize": 3.2}
    upper.plot(steps, profile.loss, **look)
    upper.plot(nodes, profile.at_nodes.loss[path.between], **dots)
    if view.quadratic is not None:
        shown = np.where(view.quadratic <= 1.1 * profile.loss.max(), view.quadratic, np.nan)
        upper.plot(steps, shown, color=look["color"], linewidth=0.7, scaley=False)
    lower.plot(steps, profile.accuracy, drawstyle="steps-mid", **look)
    lower.plot(nodes, profile.at_nodes.accuracy[path.between], **dots)
    if view.has_barrier:
        upper.plot([0, 1], profile.loss[[0, -1]], color=look["color"], linewidth=0.6, linestyle=":")
        t, top = profile.barrier.at, float(np.interp(profile.barrier.at, steps, profile.loss))
        arrow = {"arrowstyle": "<->", "color": look["color"], "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
        upper.annotate("", (t, top), (t, top - profile.barrier.value), arrowprops=arrow)


def line_look(number: int) -> Style:
    """Colour and dashes of line `number`."""
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.4,
    }


def _name_repair(axes: Axes, t: float) -> None:
    side = "left" if t < 0.2 else "right" if t > 0.8 else "center"
    place: Style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": side, "va": "bottom"}
    axes.annotate(f"t* = {t:.2f}", (t, 1), (0, 2), fontsize=SMALL, **place)


@dataclass(frozen=True)
class _Key:
    """Names for a legend `wide` inches wide: in two columns if they fit, else one below the other, in lines."""

    names: tuple[str, ...]
    columns: int
    lines: int

    @classmethod
    def of(cls, names: Sequence[str], wide: float) -> "_Key":
        columns = 2 if all(text_width(name, LEGEND) < wide / 2 - _HANDLE for name in names) else 1
        broken = tuple("\n".join(wrapped(name, wide - _HANDLE, LEGEND)) for name in names)
        return cls(broken, columns, -(-sum(1 + name.count("\n") for name in broken) // columns))

    def draw(self, figure: Figure, tasks: int) -> None:
        """A line with its mark for each of the `tasks`, then a dot and a thin line for the other names."""
        handles = [
            *(Line2D([], [], marker=MARKERS[n % len(MARKERS)], markersize=3.2, **line_look(n)) for n in range(tasks)),
            Line2D([], [], marker="o", markersize=3.2, color=QUIET, linestyle="none"),
            Line2D([], [], color=QUIET, linewidth=0.7),
        ][: len(self.names)]
        figure.legend(handles, self.names, loc="lower center", ncols=self.columns, handlelength=3)
