"""Contours of losses in the plane: filled in shared colours, with labelled lines of their own, hatched where unknown."""

from collections.abc import Sequence

import contourpy
import numpy as np
from matplotlib.path import Path as Outline

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.contours import label_places, own_levels
from llm_forgetting.report.html.blocks import Spec, rounded
from llm_forgetting.report.html.colour_scale import Scale

CHECKPOINT: Spec = {"color": "#ffffff", "size": 9, "line": {"color": "#000000", "width": 1.5}}


def contours(
    alphas: Floats,
    betas: Floats,
    values: Floats,
    scale: Scale,
    *,
    border: Floats,
    avoid: Floats,
    frame: Floats | None = None,
) -> tuple[list[Spec], list[Spec]]:
    """Traces of values[i, j] at (alphas[i], betas[j]) inside the polygon `border`, and its lines' labels as annotations.

    With a `frame` (low, high corner) what lies between it and the border is covered: values there are only a continuation.
    """
    finite = bool(np.isfinite(values).all())
    levels = own_levels(values)
    pieces = _lines(alphas, betas, values, levels)
    traces: list[Spec] = [] if finite else [_hatched(border)]
    traces.append(
        {
            "type": "heatmap",
            "x": rounded(alphas),
            "y": rounded(betas),
            "z": rounded(scale.numbers(values).T),
            "customdata": rounded(values.T, 4),
            "zsmooth": "best" if finite else False,
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
        annotations += [
            _label(float(level), place, scale) for place in label_places([lines], Outline(inner), avoid, gap)[:1]
        ]
        avoid = np.concatenate([avoid, *([[(annotations[-1]["x"], annotations[-1]["y"])]] if annotations else [])])
    if frame is not None:
        traces.append(_cut(border, frame))
    return traces, annotations


def _heat(scale: Scale) -> Spec:
    axis = scale.axis(bar=True)
    return {"zmin": axis["cmin"], "zmax": axis["cmax"], **{k: axis[k] for k in ("colorscale", "showscale", "colorbar")}}


def _lines(alphas: Floats, betas: Floats, values: Floats, levels: Floats) -> list[list[Floats]]:
    """Per level its lines (n, 2), where the values are finite."""
    generator = contourpy.contour_generator(alphas, betas, np.ma.masked_invalid(values).T)
    return [[np.asarray(line) for line in generator.lines(float(level))] for level in levels]


def _level(lines: Sequence[Floats], colour: str) -> Spec:
    broken = [np.concatenate([line, [[np.nan, np.nan]]]) for line in lines]
    path = np.concatenate(broken) if broken else np.empty((0, 2))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(path[:, 0], 4),
        "y": rounded(path[:, 1], 4),
        "line": {"color": colour, "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _label(level: float, place: tuple[float, float], scale: Scale) -> Spec:
    return {
        "x": place[0],
        "y": place[1],
        "text": f"{level:g}",
        "showarrow": False,
        "bgcolor": scale.colour(level),
        "borderpad": 0,
        "font": {"size": 11, "color": scale.ink(level)},
    }


def _hatched(border: Floats) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(border[:, 0]),
        "y": rounded(border[:, 1]),
        "fill": "toself",
        "line": {"width": 0},
        "fillcolor": "rgba(0,0,0,0)",
        "hoverinfo": "skip",
        "showlegend": False,
        "fillpattern": {"shape": "/", "fgcolor": "#808080", "fgopacity": 0.7, "size": 8},
    }


def _cut(border: Floats, frame: Floats) -> Spec:
    """The ground's colour from the frame inwards to the border, as one way there and back."""
    (left, bottom), (right, top) = frame
    around = np.array([(left, bottom), (left, top), (right, top), (right, bottom), (left, bottom)])
    hole = border if _turns_left(border) else border[::-1]
    ring = np.concatenate([around, hole, around[:1]])
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(ring[:, 0]),
        "y": rounded(ring[:, 1]),
        "fill": "toself",
        "fillcolor": "@ground",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _turns_left(ring: Floats) -> bool:
    x, y = ring[:-1].T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) > 0


def dots(places: Floats, marker: Spec) -> Spec:
    """Points that are only looked at."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(places[:, 0], 4),
        "y": rounded(places[:, 1], 4),
        "marker": marker,
        "hoverinfo": "skip",
        "showlegend": False,
    }
