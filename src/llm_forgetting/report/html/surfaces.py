"""Plots of the loss surfaces around every checkpoint: solid and as contours, each on its own scale or all on one."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llm_forgetting.report.figures.contours import shared_norm, step_between_lines
from llm_forgetting.report.html.blocks import Block, Figures, Numbers, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.colour_scale import Scale
from llm_forgetting.report.html.contours import CHECKPOINT, contours, dots
from llm_forgetting.report.tables.landscape import flatness_table, landscape_table
from llm_forgetting.report.tables.run import Scanned, number
from llm_forgetting.report.views.captions import breakable, step_unit
from llm_forgetting.report.views.surfaces import SurfaceView, left_out_sentence, surface_views

Drawing = Callable[[SurfaceView, Sequence[SurfaceView]], Plot]
# Every three-dimensional plot takes one of the some sixteen WebGL contexts that a browser allows a page.
MOST_IN_3D = 9


def landscape_blocks(results: Scanned) -> list[Block]:
    """Every surface twice, and their tables."""
    surfaces = _task_by_task(surface_views(results))
    columns = min(len({surface.checkpoint for surface in surfaces}), 3)
    left_out = left_out_sentence(results)
    where = "task by task" if left_out else "(a column each) of each task (a row each)"
    around = f"The loss around each checkpoint {where}, on a plane of two random directions."
    tables = [Numbers(make(results)) for make in (landscape_table, flatness_table)]
    said = [Prose(text) for text in (around, left_out) if text]
    return [*said, *surface_blocks(surfaces, columns), *tables]


def surface_blocks(surfaces: Sequence[SurfaceView], columns: int) -> list[Block]:
    """The surfaces in three dimensions and as contours, `columns` in a row."""
    return [
        Prose(
            "Each surface has its own scale of heights and colours, so that its shape shows; the switch puts all on "
            "one. Turn one and all turn: with the mouse, the buttons, or the arrow keys on a focused surface."
        ),
        Figures(
            [_both(surface_3d, surface, surfaces) for surface in surfaces[:MOST_IN_3D]],
            columns,
            turn="surfaces",
            note=_left_out(surfaces),
        ),
        Figures(
            [_both(contour_plot, surface, surfaces) for surface in surfaces],
            columns,
            note="Black dots are the points that were evaluated for the fit, the white one is the checkpoint.",
        ),
    ]


def _both(draw: Drawing, surface: SurfaceView, others: Sequence[SurfaceView]) -> Plot:
    """The plot on the surface's own scale, and as `alike` on that of all."""
    alike = draw(surface, others) if len(others) > 1 else None
    return replace(draw(surface, [surface]), alike=alike)


def _task_by_task(surfaces: Sequence[SurfaceView]) -> list[SurfaceView]:
    tasks = list(dict.fromkeys(surface.task for surface in surfaces))
    return sorted(surfaces, key=lambda surface: tasks.index(surface.task))


def _left_out(surfaces: Sequence[SurfaceView]) -> str:
    if len(surfaces) <= MOST_IN_3D:
        return ""
    return f"{len(surfaces) - MOST_IN_3D} more surfaces are shown as contours only: a page holds no more in three dimensions."


def surface_3d(surface: SurfaceView, others: Sequence[SurfaceView]) -> Plot:
    """One surface in three dimensions, on the scale that `others` need."""
    low, high = _range(others)
    scale = Scale(shared_norm(other.values for other in others))
    title = {"font": {"size": 12}}
    axis: Spec = {"nticks": 5, "tickfont": {"size": 11}}
    data: list[Spec] = [
        {
            "type": "surface",
            "x": rounded(surface.alphas),
            "y": rounded(surface.betas),
            "z": rounded(surface.values.T),
            "surfacecolor": rounded(scale.numbers(surface.values).T),
            **scale.axis(bar=False),
            "contours": {
                "z": {
                    "show": True,
                    "color": "#ffffff",
                    "width": 1,
                    "start": low,
                    "end": high,
                    "size": (high - low) / 12,
                }
            },
            "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
            "hovertemplate": "%{x:.2f}, %{y:.2f}<br>loss %{z:.3g} nats<extra></extra>",
        },
        _mark(surface.centre, surface.centre + 0.04 * (high - low)),  # else half sunk in the surface
    ]
    layout = {
        "scene": {
            "xaxis": {**axis, "title": {"text": "direction 1", **title}},
            "yaxis": {**axis, "title": {"text": "direction 2", **title}},
            "zaxis": {
                **axis,
                "title": {"text": "loss (nats)", **title},
                "range": [low - 0.02 * (high - low), high + 0.05 * (high - low)],
            },
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.75},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
    }
    return Plot(
        surface.caption.heading,
        f"{_describe(surface)} Arrow keys turn it.",
        data,
        layout,
        surface.caption.plain_facts,
        tuple(map(breakable, surface.caption.alarms)),
        link="surfaces",
        aspect=0.85,
    )


def _mark(loss: float, height: float) -> Spec:
    """The checkpoint, drawn at `height`."""
    return {
        "type": "scatter3d",
        "x": [0],
        "y": [0],
        "z": rounded(np.array([height])),
        "customdata": rounded(np.array([loss])),
        "mode": "markers",
        "marker": {**CHECKPOINT, "size": 5},
        "hovertemplate": "checkpoint<br>loss %{customdata:.3g} nats<extra></extra>",
    }


def _range(surfaces: Sequence[SurfaceView]) -> tuple[float, float]:
    """Lowest and highest loss of all, apart."""
    values = np.concatenate([surface.values[np.isfinite(surface.values)] for surface in surfaces])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _describe(surface: SurfaceView) -> str:
    """Description of a surface in words."""
    finite = surface.values[np.isfinite(surface.values)]
    if not finite.size:
        return f"{surface.caption.heading}: no value is finite."
    centre = number(surface.centre)
    low, high = number(float(finite.min())), number(float(finite.max()))
    return f"{surface.caption.heading}: {centre} nats at the checkpoint, {low} to {high} over the plane."


def contour_plot(surface: SurfaceView, others: Sequence[SurfaceView]) -> Plot:
    """Filled contours in the colours that `others` need: first direction to the right, second upwards; not finite: hatched."""
    scale = Scale(shared_norm(other.values for other in others))
    alphas, betas = surface.alphas, surface.betas
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)], dtype=float) * (alphas[-1], betas[-1])
    unit = step_unit(surface.space)
    data, labels = contours(alphas, betas, surface.values, scale, border=corners, avoid=np.zeros((1, 2)))
    if len(surface.points):
        data.append(dots(surface.points, {"color": "#000000", "size": 4, "line": {"color": "#ffffff", "width": 0.7}}))
    data.append(dots(np.zeros((1, 2)), CHECKPOINT))
    layout = {
        "xaxis": {"title": {"text": f"direction 1 ({plain(unit)})"}, "range": rounded(alphas[[0, -1]]), **_FRAME},
        "yaxis": {
            "title": {"text": "direction 2"},
            "range": rounded(betas[[0, -1]]),
            "scaleanchor": "x",
            "constrain": "domain",
            **_FRAME,
        },
        "annotations": labels,
        "showlegend": False,
        "margin": {"l": 44, "r": 8, "t": 6, "b": 40},
    }
    return Plot(
        surface.caption.heading,
        _describe(surface),
        data,
        layout,
        (*surface.caption.plain_facts, *step_between_lines(surface.values)),
        tuple(map(breakable, surface.caption.alarms)),
        aspect=0.86,
    )


_FRAME: Spec = {"showgrid": False, "zeroline": False, "nticks": 5, "constrain": "domain"}
