"""Plots of a study: every measure's association, and runs as dots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.axis_scale import Stretch
from llm_forgetting.report.figures.study import columns_of, stretches_of
from llm_forgetting.report.html.axes import ticks_of
from llm_forgetting.report.html.blocks import Plot, Spec, plain, rounded
from llm_forgetting.report.html.curves import SYMBOLS
from llm_forgetting.report.tables.run import number

Found = Mapping[str, Any]
# More pairs than this have no legend: their names are in the hover texts.
MOST_NAMED = 8


def measures_plot(study: Found) -> Plot:
    """A row per measure: rho with the outcome, within task pairs and over all runs, each with its interval."""
    table = study["associations"]
    names = sorted(table["measures"], key=lambda name: not table["measures"][name]["primary"])
    kinds = (("within_pairs", "within task pairs"), ("over_runs", "over all runs"))
    data = [_rhos(study, names, key, label, n) for n, (key, label) in enumerate(kinds)]
    titles = [
        f"<b>{plain(study['titles'][n])}</b>" if n == table["primary"] else plain(study["titles"][n]) for n in names
    ]
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
    outcome = study["titles"][table["outcome"]]
    found = table["measures"][table["primary"]]["spearman_within_pairs"]
    said = "no correlation of the primary measure" if found is None else f"primary measure {number(found['value'])}"
    alt = f"Rank correlations of {len(names)} measures with {outcome}: {said} within pairs; all are in the table below."
    return Plot(
        f"Spearman's rho with {outcome}",
        alt,
        data,
        layout,
        ("bold: the primary measure",),
        aspect=0.25 + 0.035 * len(names),
    )


def _rhos(study: Found, names: Sequence[str], key: str, label: str, n: int) -> Spec:
    measures = study["associations"]["measures"]
    shown = [(row, found) for row, name in enumerate(names) if (found := measures[name][f"spearman_{key}"]) is not None]
    values = np.array([float(found["value"]) for _, found in shown])
    ends = np.array([_ends(found) for _, found in shown]).reshape(-1, 2)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": rounded(values),
        "y": [row + (0.14 if n else -0.14) for row, _ in shown],
        "marker": {"color": f"@line{n}", "symbol": SYMBOLS[n], "size": 8},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": rounded(ends[:, 1] - values),
            "arrayminus": rounded(values - ends[:, 0]),
            "color": f"@line{n}",
            "thickness": 1.5,
            "width": 0,
        },
        "hovertemplate": "%{x:+.2f}<extra></extra>",
    }


def _ends(found: Found) -> tuple[float, float]:
    interval, value = found["interval"], float(found["value"])
    return (value, value) if interval is None else (float(interval["low"]), float(interval["high"]))


def scatter_plot(study: Found, x: str, y: str, *, same: bool = False) -> Plot:
    """Every run as a dot, coloured by its task pair; with `same` the line on which both are equal."""
    pairs = list(dict.fromkeys(point["pair"] for point in study["points"]))
    groups = [(pair, [point for point in study["points"] if point["pair"] == pair]) for pair in pairs]
    heading = "Forecast and observed" if same else f"{_title(study, x)} and {_title(study, y)}"
    return _dots(study, heading, groups, x, y, same=same)


def trade_off_plot(study: Found, learning: str, outcome: str) -> Plot:
    """Learning of the last task against forgetting of the first, by arm."""
    groups = [(arm, [point for point in study["points"] if point["arm"] == arm]) for arm in study["arms"]]
    return _dots(study, "Learning and forgetting, by intervention", groups, learning, outcome)


def _dots(
    study: Found, heading: str, groups: Sequence[tuple[str, Sequence[Found]]], x: str, y: str, *, same: bool = False
) -> Plot:
    places = [columns_of(points, x, y) for _, points in groups]
    named = len(groups) <= MOST_NAMED
    stretches = stretches_of(study, x, y, same=same)
    data = [
        _group(name, xs, ys, n, stretches, named=named)
        for n, ((name, _), (xs, ys)) in enumerate(zip(groups, places, strict=True))
    ]
    every = np.concatenate([np.stack(found, axis=1) for found in places])
    if same and len(every):
        ends = np.array([max(every.min(axis=0)), min(every.max(axis=0))])
        line = {"color": "@quiet", "dash": "dash", "width": 1.5}
        data.append({**_group("alike", ends, ends, 0, stretches, named=False), "mode": "lines", "line": line})
    layout = {
        "xaxis": {"title": {"text": plain(_axis(study, x))}, **ticks_of(stretches[0], every[:, 0])},
        "yaxis": {"title": {"text": plain(_axis(study, y))}, **ticks_of(stretches[1], every[:, 1])},
        "showlegend": named,
        "legend": {"font": {"size": 11}},  # two names of task pairs beside one another
        "margin": {"l": 54, "r": 8, "t": 30, "b": 44},
    }
    alt = f"{heading}: {len(every)} runs, {_title(study, x)} to the right, {_title(study, y)} upwards."
    facts = (f"{len(every)} runs",) if named else (f"{len(every)} runs; colours: task pairs",)
    return Plot(heading[0].upper() + heading[1:], alt, data, layout, facts, aspect=0.65)


def _title(study: Found, name: str) -> str:
    title: str = study["titles"].get(name, name)
    return title


def _axis(study: Found, name: str) -> str:
    unit = study.get("units", {}).get(name)
    return f"{_title(study, name)} ({unit})" if unit else _title(study, name)


def _group(name: str, xs: Floats, ys: Floats, n: int, stretches: tuple[Stretch, Stretch], *, named: bool) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name.replace("_", " ")),
        "x": rounded(stretches[0].place(xs)),
        "y": rounded(stretches[1].place(ys)),
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
