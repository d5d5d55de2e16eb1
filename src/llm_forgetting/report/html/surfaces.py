"""Loss surfaces around every checkpoint: turned together in three dimensions, and as contours, on one colour scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import contourpy
import numpy as np
from matplotlib.path import Path as Outline

from llm_forgetting.objective import Floats
from llm_forgetting.report.contours import label_places, own_levels, shared_norm
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.scales import NATS, Scale
from llm_forgetting.report.style import step_unit
from llm_forgetting.report.surfaces import Surface, surfaces_of
from llm_forgetting.report.tables import flatness_table, landscape_table, number, spoken

# Every three-dimensional plot takes one of the some sixteen WebGL contexts that a browser allows a page.
MOST_IN_3D = 9
CHECKPOINT: Spec = {"color": "#ffffff", "size": 9, "line": {"color": "#000000", "width": 1.5}}


def landscape_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Every surface twice, and the tables behind them."""
    surfaces = _task_by_task(surfaces_of(results))
    scale = Scale(shared_norm(surface.values for surface in surfaces))
    columns = min(len({surface.checkpoint for surface in surfaces}), 3)
    shown = surfaces[:MOST_IN_3D]
    numbers = [landscape_table(results), flatness_table(results)]
    blocks: list[Block] = [
        Prose(
            "The loss around each checkpoint (a column each) of each task (a row each), on a plane of two random directions. "
            "Height and colour are the same in all of them. Turn one and all turn; with the keyboard, focus a surface "
            "and use the arrow keys, or the buttons."
        ),
        Figures([_relief(surface, scale, surfaces) for surface in shown], columns, turn="surfaces", note=_left_out(surfaces)),
        Figures(
            [contour_plot(surface, scale) for surface in surfaces],
            columns,
            note="Colour is shared by all surfaces, the labelled lines are each surface's own; black dots are the points that "
            "were evaluated for the fit, the white one is the checkpoint.",
            numbers=numbers,
        ),
    ]
    return blocks


def _task_by_task(surfaces: Sequence[Surface]) -> list[Surface]:
    tasks = list(dict.fromkeys(surface.task for surface in surfaces))
    return sorted(surfaces, key=lambda surface: tasks.index(surface.task))


def _left_out(surfaces: Sequence[Surface]) -> str:
    if len(surfaces) <= MOST_IN_3D:
        return ""
    return f"{len(surfaces) - MOST_IN_3D} more surfaces are shown as contours only: a page cannot hold so many in three dimensions."


def _relief(surface: Surface, scale: Scale, others: Sequence[Surface]) -> Plot:
    low, high = _range(others)
    title = {"font": {"size": 11}}
    axis: Spec = {"nticks": 5, "tickfont": {"size": 10}}
    centre = surface.values[len(surface.alphas) // 2, len(surface.betas) // 2]
    data: list[Spec] = [
        {
            "type": "surface",
            "x": rounded(surface.alphas),
            "y": rounded(surface.betas),
            "z": rounded(surface.values.T),
            "surfacecolor": rounded(scale.numbers(surface.values).T),
            **scale.axis(bar=False),
            "contours": {"z": {"show": True, "color": "#ffffff", "width": 1, "start": low, "end": high, "size": (high - low) / 12}},
            "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
            "hovertemplate": "%{x:.2f}, %{y:.2f}<br>loss %{z:.3g} nats<extra></extra>",
        },
        {
            "type": "scatter3d",
            "x": [0], "y": [0], "z": rounded(np.array([centre])),
            "mode": "markers",
            "marker": {**CHECKPOINT, "size": 4},
            "hovertemplate": "checkpoint<br>loss %{z:.3g} nats<extra></extra>",
        },
    ]  # fmt: skip
    layout = {
        "scene": {
            "xaxis": {**axis, "title": {"text": "direction 1", **title}},
            "yaxis": {**axis, "title": {"text": "direction 2", **title}},
            "zaxis": {**axis, "title": {"text": NATS, **title}, "range": [low - 0.02 * (high - low), high]},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.75},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
    }
    return Plot(
        surface.caption.heading, f"{_seen(surface)} Arrow keys turn it.", data, layout, _said(surface.caption.facts),
        _said(surface.caption.alarms), link="surfaces", aspect=0.85,
    )  # fmt: skip


def _range(surfaces: Sequence[Surface]) -> tuple[float, float]:
    """Lowest and highest loss of all, apart."""
    values = np.concatenate([surface.values[np.isfinite(surface.values)] for surface in surfaces])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _said(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.replace("\N{NO-BREAK SPACE}", " ") for line in lines if line)


def _seen(surface: Surface) -> str:
    """What a surface looks like, in words."""
    finite = surface.values[np.isfinite(surface.values)]
    if not finite.size:
        return f"{surface.caption.heading}: no value is finite."
    centre = number(float(surface.values[len(surface.alphas) // 2, len(surface.betas) // 2]))
    low, high = number(float(finite.min())), number(float(finite.max()))
    return f"{surface.caption.heading}: {centre} nats at the checkpoint, {low} to {high} over the plane."


def contour_plot(surface: Surface, scale: Scale) -> Plot:
    """Filled contours with first direction to the right and second upwards; cells that are not finite are hatched."""
    alphas, betas = surface.alphas, surface.betas
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)], dtype=float) * (alphas[-1], betas[-1])
    unit = step_unit(surface.space)
    data, labels = field(alphas, betas, surface.values, scale, border=corners, avoid=np.zeros((1, 2)))
    if len(surface.points):
        data.append(dots(surface.points, {"color": "#000000", "size": 4, "line": {"color": "#ffffff", "width": 0.7}}))
    data.append(dots(np.zeros((1, 2)), CHECKPOINT))
    layout = {
        "xaxis": {"title": {"text": f"direction 1 ({plain(unit)})"}, "range": rounded(alphas[[0, -1]]), **_FRAME},
        "yaxis": {
            "title": {"text": "direction 2"}, "range": rounded(betas[[0, -1]]), "scaleanchor": "x", "constrain": "domain",
            **_FRAME,
        },
        "annotations": labels,
        "showlegend": False,
        "margin": {"l": 44, "r": 8, "t": 6, "b": 40},
    }  # fmt: skip
    return Plot(
        surface.caption.heading, _seen(surface), data, layout, _said(surface.caption.facts), _said(surface.caption.alarms),
        aspect=0.86,
    )  # fmt: skip


_FRAME: Spec = {"showgrid": False, "zeroline": False, "nticks": 5, "constrain": "domain"}


def field(
    alphas: Floats, betas: Floats, values: Floats, scale: Scale, *, border: Floats, avoid: Floats
) -> tuple[list[Spec], list[Spec]]:
    """Traces of values[i, j] at (alphas[i], betas[j]) inside the polygon `border`, and its lines' labels as annotations."""
    whole = bool(np.isfinite(values).all())
    levels = own_levels(values)
    pieces = _lines(alphas, betas, values, levels)
    traces: list[Spec] = [] if whole else [_hatched(border)]
    traces.append(
        {
            "type": "heatmap",
            "x": rounded(alphas),
            "y": rounded(betas),
            "z": rounded(scale.numbers(values).T),
            "customdata": rounded(values.T, 4),
            "zsmooth": "best" if whole else False,
            "connectgaps": False,
            "hovertemplate": "%{x:.2f}, %{y:.2f}<br>loss %{customdata:.3g} nats<extra></extra>",
            **_heat(scale),
        }
    )
    inner = 0.82 * border + 0.18 * border[:-1].mean(axis=0)
    gap = 0.17 * float(np.sqrt(np.ptp(border, axis=0).prod()))
    annotations = []
    for level, lines in zip(levels, pieces, strict=True):
        traces.append(_level(lines, scale.ink(float(level))))
        annotations += [_label(float(level), place, scale) for place in label_places([lines], Outline(inner), avoid, gap)[:1]]
        avoid = np.concatenate([avoid, *([[(annotations[-1]["x"], annotations[-1]["y"])]] if annotations else [])])
    return traces, annotations


def _heat(scale: Scale) -> Spec:
    axis = scale.axis(bar=True)
    return {"zmin": axis["cmin"], "zmax": axis["cmax"], **{k: axis[k] for k in ("colorscale", "showscale", "colorbar")}}


def _lines(alphas: Floats, betas: Floats, values: Floats, levels: Floats) -> list[list[Floats]]:
    """Per level its lines (n, 2), where the values are finite."""
    generator = contourpy.contour_generator(alphas, betas, np.ma.masked_invalid(values).T)
    found: list[Any] = [generator.lines(float(level)) for level in levels]
    return [[np.asarray(line) for line in lines] for lines in found]


def _level(lines: Sequence[Floats], colour: str) -> Spec:
    broken = [np.concatenate([line, [[np.nan, np.nan]]]) for line in lines]
    path = np.concatenate(broken) if broken else np.empty((0, 2))
    return {
        "type": "scatter", "mode": "lines", "x": rounded(path[:, 0], 4), "y": rounded(path[:, 1], 4),
        "line": {"color": colour, "width": 1}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def _label(level: float, place: tuple[float, float], scale: Scale) -> Spec:
    return {
        "x": place[0], "y": place[1], "text": f"{level:g}", "showarrow": False, "bgcolor": scale.colour(level),
        "borderpad": 0, "font": {"size": 11, "color": scale.ink(level)},
    }  # fmt: skip


def _hatched(border: Floats) -> Spec:
    return {
        "type": "scatter", "mode": "lines", "x": rounded(border[:, 0]), "y": rounded(border[:, 1]), "fill": "toself",
        "line": {"width": 0}, "fillcolor": "rgba(0,0,0,0)", "hoverinfo": "skip", "showlegend": False,
        "fillpattern": {"shape": "/", "fgcolor": "#808080", "fgopacity": 0.7, "size": 8},
    }  # fmt: skip


def dots(places: Floats, marker: Spec) -> Spec:
    """Points that are only looked at."""
    return {
        "type": "scatter", "mode": "markers", "x": rounded(places[:, 0], 4), "y": rounded(places[:, 1], 4), "marker": marker,
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


__all__ = ["contour_plot", "dots", "field", "landscape_blocks", "spoken"]
