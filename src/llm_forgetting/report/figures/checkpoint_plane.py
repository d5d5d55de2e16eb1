"""Figure of the plane through three checkpoints: every task's loss inside their triangle, and the training's path."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from matplotlib.patheffects import withStroke

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.contours import (
    HATCH,
    colour_bar,
    draw_contours,
    own_levels,
    shared_norm,
    step_between_lines,
)
from llm_forgetting.report.figures.layout import BAR, axis_label, lay_out, panel_width
from llm_forgetting.report.figures.style import CHECKPOINT, SMALL, Style, ticks_between
from llm_forgetting.report.tables.run import display_name, measured
from llm_forgetting.report.views.captions import Caption, together
from llm_forgetting.report.views.checkpoint_plane import PlaneView

_HALO = withStroke(linewidth=2.2, foreground="white")
_EDGE = withStroke(linewidth=1.8, foreground="black")
_COLUMNS, _LEFT = 3, 0.6
# Inches that the checkpoints' names take beside the outermost of them, and beyond the outline.
_NAMES = np.array([0.42, 0.36])
_TALLEST, _FLATTEST = 1.35, 0.45
_ARROWS = "arrows: from each checkpoint to the next"
_CUT = "left out: the corner at the base model, where the loss is too steep to be fitted"


def plane_figure(planes: Sequence[PlaneView]) -> Figure:
    """All tasks side by side on one colour scale, which is the plane's own."""
    norm = shared_norm([view.surface.loss for view in planes])
    columns = min(len(planes), _COLUMNS)
    width = panel_width(columns, _LEFT + BAR)
    low, high = _window(planes[0], width)
    across, up = high - low
    first, second, *_ = planes[0].plane.checkpoints
    panels = lay_out(
        {divmod(number, columns): _with_step(view) for number, view in enumerate(planes)},
        aspect=float(up / across),
        x_label=axis_label(f"{display_name(first)} to {display_name(second)}", "Frobenius norm of ΔW", width),
        y_labels=[axis_label("across", "Frobenius norm of ΔW", width * up / across)] * -(-len(planes) // columns),
        left=_LEFT,
    )
    for axes, view in zip(panels.axes.values(), planes, strict=True):
        _panel(axes, view, norm)
        _names(axes, view, close=0.8 * across / width)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    colour_bar(panels.figure, norm, panels.bar_axes())
    return panels.figure


def _with_step(view: PlaneView) -> Caption:
    step = step_between_lines(view.surface.loss[view.plane.inside])
    cut = len(view.plane.outline) > len(view.corners)
    return replace(view.caption, facts=(*view.caption.facts, *map(together, step), _ARROWS, *([_CUT] if cut else [])))


def _window(view: PlaneView, width: float) -> tuple[Floats, Floats]:
    """Corners of a panel `width` inches wide that holds the outline and the names, neither tall nor flat."""
    corners = view.corners
    low, high = view.plane.outline.min(axis=0), view.plane.outline.max(axis=0)
    inch = 0.0
    for _ in range(20):  # names have a size in inches, and so need the more room the more an inch stands for
        beside, beyond = inch * _NAMES
        low = np.array([min(low[0], corners[:, 0].min() - beside), view.plane.outline[:, 1].min() - beyond])
        high = np.array([max(high[0], corners[:, 0].max() + beside), view.plane.outline[:, 1].max() + beyond])
        inch = float(((high - low) / (width, _TALLEST * width)).max())
    across, up = high - low
    missing = np.maximum([up / _TALLEST - across, _FLATTEST * across - up], 0) / 2
    return low - missing, high + missing


def _panel(axes: Axes, view: PlaneView, norm: Normalize) -> None:
    """The surface inside its outline and nowhere else, the checkpoints by name, and the way between them."""
    _fill(axes, view, norm)
    # What is cut off has jagged edges.
    axes.add_patch(Polygon(view.plane.outline, closed=True, fill=False, edgecolor="white", linewidth=1.0, zorder=3))
    corners = view.corners
    for start, end in pairwise(corners):
        arrow = FancyArrowPatch(
            tuple(start), tuple(end), arrowstyle="-|>", mutation_scale=9, shrinkA=3, shrinkB=4, linewidth=1.1, zorder=4
        )
        arrow.set(color="black", path_effects=[_HALO])
        axes.add_patch(arrow)
    if len(view.trajectory):
        axes.plot(*view.trajectory.T, color="white", linewidth=0.8, zorder=5, path_effects=[_EDGE])
        dots: Style = {"color": "white", "markersize": 2.6, "markeredgecolor": "black", "markeredgewidth": 0.5}
        axes.plot(*view.trajectory.T, "o", zorder=5, **dots)
    for place in corners:
        axes.plot(*place, zorder=6, **CHECKPOINT)
    axes.spines[["top", "right"]].set_visible(False)
    reach = np.concatenate([view.plane.outline, corners])
    ticks_between(axes.xaxis, reach[:, 0].min(), reach[:, 0].max())
    ticks_between(axes.yaxis, reach[:, 1].min(), reach[:, 1].max())


def _names(axes: Axes, view: PlaneView, *, close: float) -> None:
    """Every checkpoint's name and measured loss outside of the outline; two that are `close` stand back to back."""
    middle = float(np.mean(view.corners, axis=0)[1])
    for name, (a, b) in view.plane.checkpoints.items():
        upwards = b > middle
        gaps = [p[0] - a for n, p in view.plane.checkpoints.items() if n != name and (p[1] > middle) == upwards]
        nearest = min(gaps, key=abs, default=np.inf)
        axes.annotate(
            f"{display_name(name)}\n{measured(view.surface.at_checkpoints[name])}",
            (a, float(view.plane.outline[:, 1].max() if upwards else view.plane.outline[:, 1].min())),
            (0, 2 if upwards else -2),
            textcoords="offset points",
            ha="center" if abs(nearest) > close else "right" if nearest > 0 else "left",
            va="bottom" if upwards else "top",
            linespacing=1.1,
            fontsize=SMALL,
            zorder=7,
        )


def _fill(axes: Axes, view: PlaneView, norm: Normalize) -> None:
    """Filled contours and lines, cut along the outline; what is not finite is hatched."""
    cut = Polygon(view.plane.outline, closed=True, facecolor="0.9", edgecolor="0.5", hatch=HATCH, linewidth=0)
    cut.set_visible(not np.isfinite(view.surface.loss[view.plane.inside]).all())
    axes.add_patch(cut)
    corners = view.corners
    draw_contours(
        axes,
        view.plane.alphas,
        view.plane.betas,
        view.continued(),
        norm,
        levels=own_levels(view.surface.loss[view.plane.inside]),
        within=0.85 * corners + 0.15 * corners.mean(axis=0),
        avoid=np.concatenate([np.linspace(start, end, 30) for start, end in pairwise(corners)]),
        cut=cut,
    )
