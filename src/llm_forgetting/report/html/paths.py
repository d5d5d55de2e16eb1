"""Between the checkpoints: the two bowls on the plane through three of them, and the loss on the way from one to the next."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.checkpoint_plane import Bowl, bowls_of, continued
from llm_forgetting.report.figures.contours import shared_norm
from llm_forgetting.report.figures.paths import Profile, Way, ways_of
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.colour_scale import Scale
from llm_forgetting.report.html.contour_plots import CHECKPOINT, dots, field
from llm_forgetting.report.html.curves import SYMBOLS, line
from llm_forgetting.report.tables.run import Table, between_table, measured, number, spoken

HALO = "#ffffff"


def between_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Plane, paths and their table; a sentence for what was not measured."""
    bowls, ways = bowls_of(results), ways_of(results)
    blocks: list[Block] = (
        [_bowls(bowls, results["paths"])] if bowls else [_absent("plane through the checkpoints", results)]
    )
    blocks += [_ways(ways, between_table(results))] if ways else [_absent("path between checkpoints", results)]
    return blocks


def _absent(what: str, results: Mapping[str, Any]) -> Prose:
    why = " ".join(f"{sentence}." for sentence in results["between_notes"])
    return Prose(f"The {what} was not measured in this run. {why}".strip(), quiet=True)


def _bowls(bowls: Sequence[Bowl], paths: Sequence[Mapping[str, Any]]) -> Figures:
    scale = Scale(shared_norm([bowl.values for bowl in bowls]))
    plots = [_bowl(bowl, scale, _compromises(bowl, paths)) for bowl in bowls]
    header = ("loss of", *(spoken(name) for name in bowls[0].checkpoints))
    rows = tuple(
        (bowl.caption.heading.removeprefix("loss of "), *map(measured, bowl.losses.values())) for bowl in bowls
    )
    note = (
        f"The plane through {', '.join(map(spoken, bowls[0].checkpoints))}, in the Frobenius norm of ΔW. Arrows: from each of "
        "them to the next; star: the best compromise t* on the path. Measured inside of the outline only."
    )
    return Figures(plots, min(len(plots), 2), note, [Table("Measured loss at the checkpoints (nats)", header, rows)])


def _compromises(bowl: Bowl, paths: Sequence[Mapping[str, Any]]) -> list[tuple[float, Floats]]:
    """t* and its place, of every path between two corners of the plane."""
    corners = bowl.checkpoints
    ends = [(float(path["repair"]["t"]), path["from"], path["to"]) for path in paths]
    return [(t, (1 - t) * corners[a] + t * corners[b]) for t, a, b in ends if a in corners and b in corners]


def _bowl(bowl: Bowl, scale: Scale, compromises: Sequence[tuple[float, Floats]]) -> Plot:
    corners = np.stack(list(bowl.checkpoints.values()))
    border = np.concatenate([bowl.outline, bowl.outline[:1]])
    way = np.concatenate([np.linspace(start, end, 30) for start, end in pairwise(corners)])
    frame = np.array([(_room(bowl, 0)[end], _room(bowl, 1)[end]) for end in (0, 1)])
    broken = not np.isfinite(bowl.values[bowl.inside]).all()
    values = bowl.values if broken else continued(bowl)
    data, labels = field(bowl.alphas, bowl.betas, values, scale, border=border, avoid=way, frame=frame)
    data += _arrows(corners)
    if len(bowl.trajectory):
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": rounded(bowl.trajectory[:, 0]),
                "y": rounded(bowl.trajectory[:, 1]),
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
            "title": {"text": _axis(bowl)},
            "showgrid": False,
            "zeroline": False,
            "nticks": 6,
            "range": _room(bowl, 0),
        },
        "yaxis": {
            "title": {"text": "across"},
            "showgrid": False,
            "zeroline": False,
            "nticks": 6,
            "scaleanchor": "x",
            "range": _room(bowl, 1),
        },
        "annotations": [*labels, *_names(bowl)],
        "showlegend": False,
        "margin": {"l": 44, "r": 8, "t": 10, "b": 40},
    }
    losses = ", ".join(f"{measured(loss)} at {spoken(name)}" for name, loss in bowl.losses.items())
    facts = (
        *(fact.replace("\N{NO-BREAK SPACE}", " ") for fact in bowl.caption.facts),
        *(f"t* = {t:.2f}" for t, _ in compromises),
    )
    heading = bowl.caption.heading[0].upper() + bowl.caption.heading[1:]
    return Plot(heading, f"{heading} in nats: {losses}.", data, layout, facts, bowl.caption.alarms, aspect=0.95)


def _axis(bowl: Bowl) -> str:
    first, second, *_ = bowl.checkpoints
    return plain(f"{spoken(first)} to {spoken(second)}")


def _room(bowl: Bowl, axis: int) -> list[float]:
    """Room for the outline, the checkpoints and their names."""
    points = np.concatenate([bowl.outline, np.stack(list(bowl.checkpoints.values()))])
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


def _names(bowl: Bowl) -> list[Spec]:
    middle = float(np.mean(list(bowl.checkpoints.values()), axis=0)[1])
    top, bottom = float(bowl.outline[:, 1].max()), float(bowl.outline[:, 1].min())
    return [
        {
            "x": float(a),
            "y": top if b > middle else bottom,
            "text": f"{plain(spoken(name))}<br>{measured(bowl.losses[name])} nats",
            "showarrow": False,
            "yanchor": "bottom" if b > middle else "top",
            "font": {"size": 11},
        }
        for name, (a, b) in bowl.checkpoints.items()
    ]


def _ways(ways: Sequence[Way], table: Table) -> Figures:
    plots = [plot for way in ways for plot in (_losses(way), _accuracies(way))]
    forecast = (
        "thin dotted lines: the quadratic forecast from slope and curvature at t = 0, drawn as far as the loss goes; "
        if any(profile.quadratic is not None for way in ways for profile in way.profiles)
        else ""
    )
    note = (
        "t = 0 is the earlier checkpoint, t = 1 the later. Dots: measured; lines: the fit through them; "
        f"{forecast}the upright line: t*."
    )
    return Figures(plots, 2, note, [table, _values(ways)])


def _losses(way: Way) -> Plot:
    data: list[Spec] = []
    for n, profile in enumerate(way.profiles):
        name = spoken(profile.task)
        data.append(line(way.steps, profile.loss, name, n))
        data.append(_measured(way, profile.loss_at_nodes, n))
        finite = profile.loss[np.isfinite(profile.loss)]
        if profile.quadratic is not None and finite.size:
            shown = np.where(profile.quadratic <= 1.1 * finite.max(), profile.quadratic, np.nan)
            thin = {"color": f"@line{n % 6}", "width": 1.5, "dash": "dot"}
            data.append(line(way.steps, shown, f"forecast for {name}", n, line=thin))
    facts = tuple(fact.replace("\N{NO-BREAK SPACE}", " ") for fact in way.caption.facts)
    alt = f"Loss on the way, {way.caption.heading}: {'; '.join(map(_course, way.profiles))}. t* = {way.repair:.2f}."
    heading = f"Loss, {way.caption.heading}"
    return Plot(heading, alt, data, _layout("loss (nats)", way.repair), facts, way.caption.alarms)


def _course(profile: Profile) -> str:
    barrier = f", barrier {measured(profile.barrier)}" if profile.resolved else ", no barrier"
    return f"{spoken(profile.task)} from {number(profile.loss[0])} to {number(profile.loss[-1])} nats{barrier}"


def _accuracies(way: Way) -> Plot:
    data = []
    for n, profile in enumerate(way.profiles):
        data.append(line(way.steps, profile.accuracy, spoken(profile.task), n))
        if profile.accuracy_at_nodes is not None:
            data.append(_measured(way, profile.accuracy_at_nodes, n))
    layout = _layout("accuracy", way.repair)
    layout["yaxis"]["range"] = [-0.04, 1.04]
    said = "; ".join(f"{spoken(p.task)} from {number(p.accuracy[0])} to {number(p.accuracy[-1])}" for p in way.profiles)
    return Plot(f"Accuracy, {way.caption.heading}", f"Accuracy on the way: {said}.", data, layout)


def _measured(way: Way, values: Floats, n: int) -> Spec:
    inside = (way.nodes >= -1e-9) & (way.nodes <= 1 + 1e-9)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(way.nodes[inside]),
        "y": rounded(values[inside]),
        "hoverinfo": "skip",
        "marker": {"color": f"@line{n % 6}", "symbol": SYMBOLS[n % 6], "size": 7},
        "showlegend": False,
    }


def _layout(label: str, repair: float) -> Spec:
    return {
        "xaxis": {"title": {"text": "share of the way, t"}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": label}},
        "shapes": [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": repair,
                "x1": repair,
                "y0": 0,
                "y1": 1,
                "line": {"color": "@ink", "width": 1.2, "dash": "dot"},
            }
        ],
        "annotations": [
            {
                "x": repair,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "center",
                "showarrow": False,
                "text": f"t* = {repair:.2f}",
            }
        ],
        "legend": {"y": 1.1},
        "margin": {"l": 50, "r": 12, "t": 56, "b": 40},
    }


def _values(ways: Sequence[Way]) -> Table:
    """Losses along every path, at tenths of the way."""
    rows = []
    for way in ways:
        at = [int(np.abs(way.steps - t).argmin()) for t in np.linspace(0, 1, 11)]
        rows += [
            (f"{spoken(p.task)}, {way.caption.heading}", *(number(float(p.loss[n])) for n in at)) for p in way.profiles
        ]
    return Table(
        "Loss along the way (nats)", ("loss of", *(f"t = {t:.1f}" for t in np.linspace(0, 1, 11))), tuple(rows)
    )
