"""Plots of a study: every measure's association, and runs as dots."""

from collections.abc import Mapping, Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.html.axes import error_bars, ticks_of
from llm_forgetting.report.html.blocks import Plot, Spec, plain, rounded
from llm_forgetting.report.html.lines import SYMBOLS
from llm_forgetting.report.tables.run import number
from llm_forgetting.report.views.axis_scale import AxisScale
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

# More pairs than this have no legend: their names are in the hover texts.
MOST_NAMED = 8


def measures_plot(study: StudyContent) -> Plot:
    """A row per measure: rho with the outcome, within task pairs and over all runs, each with its interval."""
    table = study["associations"]
    names = primary_first(study)
    kinds = (("within_pairs", "within task pairs"), ("over_runs", "over all runs"))
    data = [_rhos(study, names, key, label, n) for n, (key, label) in enumerate(kinds)]
    titles = [plain(title(study, name)) for name in names]
    titles = [f"<b>{text}</b>" if name == table["primary"] else text for name, text in zip(names, titles, strict=True)]
    layout = {
        "xaxis": {
            "title": {"text": "rank correlation"},
            "range": [-1.05, 1.05],
            "zeroline": True,
            "zerolinecolor": "@quiet",
        },
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": titles,
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        },
        "margin": {"l": 60, "r": 8, "t": 30, "b": 40},
    }
    outcome = title(study, table["outcome"])
    rho = table["measures"][table["primary"]]["spearman_within_pairs"]
    text = "no correlation of the primary measure" if rho is None else f"primary measure {number(float(rho['value']))}"
    alt = f"Rank correlations of {len(names)} measures with {outcome}: {text} within pairs; all are in the table below."
    return Plot(
        f"Spearman's rho with {outcome}",
        alt,
        data,
        layout,
        ("bold: the primary measure",),
        aspect=0.25 + 0.035 * len(names),
    )


def _rhos(study: StudyContent, names: Sequence[str], key: str, label: str, n: int) -> Spec:
    measures = study["associations"]["measures"]
    shown = [(row, rho) for row, name in enumerate(names) if (rho := measures[name][f"spearman_{key}"]) is not None]
    values = np.array([float(rho["value"]) for _, rho in shown])
    ends = np.array([estimate_ends(rho) for _, rho in shown]).reshape(-1, 2)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": rounded(values),
        "y": [row + (0.14 if n else -0.14) for row, _ in shown],
        "marker": {"color": f"@line{n}", "symbol": SYMBOLS[n], "size": 8},
        "error_x": error_bars(values, ends[:, 0], ends[:, 1], f"@line{n}", cap=0),
        "hovertemplate": "%{x:+.2f}<extra></extra>",
    }


def scatter_plot(study: StudyContent, x: str, y: str, *, same: bool = False) -> Plot:
    """Every run as a dot, coloured by its task pair; with `same` the line on which both are equal."""
    heading = "Forecast and observed" if same else f"{title(study, x)} and {title(study, y)}"
    return _dots(study, heading, by_pair(study), x, y, same=same)


def trade_off_plot(study: StudyContent, learning: str, outcome: str) -> Plot:
    """Learning of the last task against forgetting of the first, by arm."""
    return _dots(study, "Learning and forgetting, by intervention", by_arm(study), learning, outcome)


def _dots(
    study: StudyContent,
    heading: str,
    groups: Mapping[str, Sequence[StudyContent]],
    x: str,
    y: str,
    *,
    same: bool = False,
) -> Plot:
    places = [columns(points, x, y) for points in groups.values()]
    named = len(groups) <= MOST_NAMED
    scales = axis_scales(study, x, y, same=same)
    data = [
        _group(name, xs, ys, n, scales, named=named)
        for n, (name, (xs, ys)) in enumerate(zip(groups, places, strict=True))
    ]
    values = np.concatenate([np.stack(each, axis=1) for each in places])
    if same and len(values):
        ends = np.array([max(values.min(axis=0)), min(values.max(axis=0))])
        line = {"color": "@quiet", "dash": "dash", "width": 1.5}
        data.append({**_group("alike", ends, ends, 0, scales, named=False), "mode": "lines", "line": line})
    layout = {
        "xaxis": {"title": {"text": plain(_axis(study, x))}, **ticks_of(scales[0], values[:, 0])},
        "yaxis": {"title": {"text": plain(_axis(study, y))}, **ticks_of(scales[1], values[:, 1])},
        "showlegend": named,
        "legend": {"font": {"size": 11}},  # two names of task pairs beside one another
        "margin": {"l": 54, "r": 8, "t": 30, "b": 44},
    }
    alt = f"{heading}: {len(values)} runs, {title(study, x)} to the right, {title(study, y)} upwards."
    facts = (f"{len(values)} runs",) if named else (f"{len(values)} runs; colours: task pairs",)
    return Plot(heading[0].upper() + heading[1:], alt, data, layout, facts, aspect=0.65)


def _axis(study: StudyContent, name: str) -> str:
    words = unit(study, name)
    return f"{title(study, name)} ({words})" if words else title(study, name)


def _group(name: str, xs: Floats, ys: Floats, n: int, scales: tuple[AxisScale, AxisScale], *, named: bool) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name.replace("_", " ")),
        "x": rounded(scales[0].place(xs)),
        "y": rounded(scales[1].place(ys)),
        "text": [f"({a:.4g}, {b:.4g})" for a, b in zip(xs.tolist(), ys.tolist(), strict=True)],
        "marker": {
            "color": f"@line{n % 6}",
            "symbol": SYMBOLS[n % 6],
            "size": 8,
            "line": {"color": "@ground", "width": 0.7},
        },
        "showlegend": named,
        "hoverinfo": "text+name",
    }
