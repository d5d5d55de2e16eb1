"""Loss surfaces around checkpoints as filled contours, alone and side by side, each on its own colour scale."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from llm_forgetting.report.figures.contours import (
    HATCH,
    colour_bar,
    draw_contours,
    own_levels,
    shared_norm,
    step_between_lines,
)
from llm_forgetting.report.figures.layout import BAR, NARROW_BAR, Panels, axis_label, lay_out, panel_width, table_of
from llm_forgetting.report.figures.style import CHECKPOINT, Style, direction_ticks
from llm_forgetting.report.views.captions import Caption, step_unit, together
from llm_forgetting.report.views.surfaces import SurfaceView

_LEFT = 0.55


def overview(surfaces: Sequence[SurfaceView]) -> Figure:
    """All surfaces side by side: a row per task, a column per checkpoint."""
    places = table_of([(surface.task, surface.checkpoint) for surface in surfaces])
    return _contours({places[surface.task, surface.checkpoint]: surface for surface in surfaces}).figure


def single_contour(surface: SurfaceView) -> Figure:
    """One surface as filled contours, with the points that were evaluated for its fit."""
    if not len(surface.points):
        return _contours({(0, 0): surface}).figure
    facts = tuple(fact.replace("evaluations", "evaluations (dots)") for fact in surface.caption.facts)
    panels = _contours({(0, 0): replace(surface, caption=replace(surface.caption, facts=facts))})
    dots: Style = {"color": "black", "markersize": 1.8, "markeredgecolor": "white", "markeredgewidth": 0.3}
    panels.axes[0, 0].plot(*surface.points.T, "o", clip_on=False, zorder=3, **dots)
    return panels.figure


def _contours(surfaces: Mapping[tuple[int, int], SurfaceView]) -> Panels:
    columns = 1 + max(column for _, column in surfaces)
    unit = step_unit(next(iter(surfaces.values())).space)
    panels = lay_out(
        {place: with_step(surface) for place, surface in surfaces.items()},
        aspect=1,
        x_label=axis_label("direction 1", unit, panel_width(columns, _LEFT + BAR, beside=NARROW_BAR)),
        y_labels=["direction 2"] * (1 + max(row for row, _ in surfaces)),
        left=_LEFT,
        beside=NARROW_BAR,
    )
    for (row, column), surface in surfaces.items():
        axes, norm = panels.axes[row, column], shared_norm([surface.values])
        _contour(axes, surface, norm)
        last = (row, column + 1) not in surfaces
        colour_bar(panels.figure, norm, panels.bar_axes([axes]), "loss (nats)" if last else "")
    return panels


def with_step(surface: SurfaceView) -> Caption:
    """The caption, with what lies between two contour lines."""
    return replace(surface.caption, facts=(*surface.caption.facts, *map(together, step_between_lines(surface.values))))


def _contour(axes: Axes, surface: SurfaceView, norm: Normalize) -> None:
    """Filled contours with first direction to the right and second upwards; non-finite cells hatched."""
    axes.set_facecolor("0.9")
    if not np.isfinite(surface.values).all():
        axes.patch.set_hatch(HATCH)
        axes.patch.set_edgecolor("0.5")
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * 0.82
    within, centre = corners * (surface.alphas[-1], surface.betas[-1]), np.zeros((1, 2))
    levels = own_levels(surface.values)
    draw_contours(axes, surface.alphas, surface.betas, surface.values, norm, levels=levels, within=within, avoid=centre)
    axes.plot(0, 0, zorder=4, **CHECKPOINT)
    axes.set(xlim=surface.alphas[[0, -1]], ylim=surface.betas[[0, -1]])
    direction_ticks(axes.xaxis)
    direction_ticks(axes.yaxis)
