"""Plots of the plane through three checkpoints: every task's loss inside their triangle."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.between_records import PathScan
from llm_forgetting.report.figures.contours import shared_norm
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Spec, plain, rounded
from llm_forgetting.report.html.colour_scale import Scale
from llm_forgetting.report.html.contours import CHECKPOINT, contours, dots
from llm_forgetting.report.html.paths import absent
from llm_forgetting.report.tables.run import Scanned, Table, display_name, measured
from llm_forgetting.report.views.checkpoint_plane import PlaneView, plane_views

HALO = "#ffffff"


def plane_blocks(results: Scanned) -> list[Block]:
    """The plane, a plot per task; a sentence where it was not measured."""
    planes = plane_views(results)
    return [_planes(planes, results.paths) if planes else absent("plane through the checkpoints", results)]


def _planes(planes: Sequence[PlaneView], paths: Sequence[PathScan]) -> Figures:
    scale = Scale(shared_norm([view.surface.loss for view in planes]))
    plots = [_plane_plot(view, scale, _compromises(view, paths)) for view in planes]
    names = [display_name(name) for name in planes[0].plane.checkpoints]
    rows = tuple((display_name(view.task), *map(measured, view.surface.at_checkpoints.values())) for view in planes)
    note = (
        f"The plane through {', '.join(names)}, in the Frobenius norm of ΔW. Arrows: from each of "
        "them to the next; star: t*, the point of the path with the lowest mean loss. Measured inside of the outline only: "
        "next to the base model the loss may be too steep to be fitted."
    )
    table = Table("Measured loss at the checkpoints (nats)", ("loss of", *names), rows)
    return Figures(plots, min(len(plots), 2), note, [table])


def _compromises(view: PlaneView, paths: Sequence[PathScan]) -> list[tuple[float, Floats]]:
    """t* and its place (2,), of every path between two corners of the plane."""
    corners = {name: np.array(place) for name, place in view.plane.checkpoints.items()}
    ends = [(path.repair.t, path.start, path.to) for path in paths]
    return [(t, (1 - t) * corners[a] + t * corners[b]) for t, a, b in ends if a in corners and b in corners]


def _plane_plot(view: PlaneView, scale: Scale, compromises: Sequence[tuple[float, Floats]]) -> Plot:
    plane, corners, caption = view.plane, view.corners, view.caption
    border = np.concatenate([plane.outline, plane.outline[:1]])
    way = np.concatenate([np.linspace(start, end, 30) for start, end in pairwise(corners)])
    frame = np.array([(_room(view, 0)[end], _room(view, 1)[end]) for end in (0, 1)])
    finite = np.isfinite(view.surface.loss[plane.inside]).all()
    values = view.continued() if finite else view.surface.loss
    data, labels = contours(plane.alphas, plane.betas, values, scale, border=border, avoid=way, frame=frame)
    data += _arrows(corners)
    if len(view.trajectory):
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": rounded(view.trajectory[:, 0]),
                "y": rounded(view.trajectory[:, 1]),
                "line": {"color": HALO, "width": 1.5},
                "marker": {**CHECKPOINT, "size": 5},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    data.append(dots(corners, CHECKPOINT))
    for t, place in compromises:
        star = {"symbol": "star", "size": 14, "color": "#E69F00", "line": {"color": "#000000", "width": 1}}
        data.append({**dots(place[None], star), "hoverinfo": "text", "text": [f"t* = {t:.2f}"]})
    layout = {
        "xaxis": {
            "title": {"text": _axis(view)},
            "showgrid": False,
            "zeroline": False,
            "nticks": 6,
            "range": _room(view, 0),
        },
        "yaxis": {
            "title": {"text": "across"},
            "showgrid": False,
            "zeroline": False,
            "nticks": 6,
            "scaleanchor": "x",
            "range": _room(view, 1),
        },
        "annotations": [*labels, *_names(view)],
        "showlegend": False,
        "margin": {"l": 44, "r": 8, "t": 10, "b": 40},
    }
    losses = ", ".join(
        f"{measured(loss)} at {display_name(name)}" for name, loss in view.surface.at_checkpoints.items()
    )
    facts = (*caption.plain_facts, *(f"t* = {t:.2f}" for t, _ in compromises))
    heading = caption.heading[0].upper() + caption.heading[1:]
    return Plot(heading, f"{heading} in nats: {losses}.", data, layout, facts, caption.alarms, aspect=0.95)


def _axis(view: PlaneView) -> str:
    first, second, *_ = view.plane.checkpoints
    return plain(f"{display_name(first)} to {display_name(second)}")


def _room(view: PlaneView, axis: int) -> list[float]:
    """Room for the outline, the checkpoints and their names."""
    points = np.concatenate([view.plane.outline, view.corners])
    spare = 0.14 * float(np.ptp(points, axis=0).max())
    return [float(points[:, axis].min()) - spare, float(points[:, axis].max()) + spare]


def _arrows(corners: Floats) -> list[Spec]:
    """From each checkpoint to the next, white below and black above, to be seen on every colour."""
    places: Spec = {"type": "scatter", "hoverinfo": "skip", "showlegend": False}
    looks = ((HALO, 4.5, 16.0), ("#000000", 1.8, 12.0))
    return [
        {
            **places,
            "x": rounded(np.array([start[0], end[0]])),
            "y": rounded(np.array([start[1], end[1]])),
            "mode": "lines+markers",
            "line": {"color": colour, "width": width},
            "marker": {
                "symbol": "arrow",
                "angleref": "previous",
                "size": [0, size],
                "standoff": 4,
                "color": colour,
                "opacity": 1,
            },
        }
        for colour, width, size in looks
        for start, end in pairwise(corners)
    ]


def _names(view: PlaneView) -> list[Spec]:
    middle = float(np.mean(view.corners, axis=0)[1])
    top, bottom = float(view.plane.outline[:, 1].max()), float(view.plane.outline[:, 1].min())
    return [
        {
            "x": a,
            "y": top if b > middle else bottom,
            "text": f"{plain(display_name(name))}<br>{measured(view.surface.at_checkpoints[name])} nats",
            "showarrow": False,
            "yanchor": "bottom" if b > middle else "top",
            "font": {"size": 11},
        }
        for name, (a, b) in view.plane.checkpoints.items()
    ]
