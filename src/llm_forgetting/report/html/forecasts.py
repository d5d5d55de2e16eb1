"""Forecast against observed: what slope and curvature at a checkpoint said of the next, and what happened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_forgetting.report.figures.axis_scale import Stretch
from llm_forgetting.report.html.axes import ticks_of
from llm_forgetting.report.html.blocks import Block, Figures, Numbers, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.curves import SYMBOLS
from llm_forgetting.report.tables.curvature import forecast_table
from llm_forgetting.report.tables.run import SPLIT_WORDS, measured, spoken, value_and_error

Record = Mapping[str, Any]
ORDERS = (("first_order", "first order"), ("second_order", "second order"))
# A forecast further out than this many times the largest observed change would press all else into a corner.
FAR = 8.0
# More entries than this are told by the table alone.
MOST_TOLD = 6


@dataclass(frozen=True)
class Foreseen:
    """One earlier task and split on one step: forecasts by order and the observed change, nats.

    `stderr` is that of the observed change over the items, which are the same at both ends; NaN where they are not known.
    """

    name: str
    split: str
    forecasts: Mapping[str, float]
    observed: float
    stderr: float


def forecast_blocks(results: Mapping[str, Any], records: Sequence[Record]) -> list[Block]:
    """The plot and the table; `records` are the lines of items.jsonl, from which the bars come."""
    if not results["forecasts"]:
        return [Prose("Nothing was forecast in this run (curvature.forecast, or a single task).", quiet=True)]
    found = foreseen_of(results, records)
    table = forecast_table(results)
    plot = forecast_plot(found)
    note = (
        "A dot on the dashed line was forecast right; above it more was forgotten than forecast, below it less. The way in "
        "between, with the quadratic over it, is in the section before."
    )
    return [Figures([plot], 2, note), Numbers(table)]


def foreseen_of(results: Mapping[str, Any], records: Sequence[Record]) -> list[Foreseen]:
    """Every forecast of results.json that was compared with what happened."""
    losses = {(r["checkpoint"], r["task"], r["split"], r["id"]): float(r["loss"]) for r in records if "task" in r}
    found = []
    for entry in results["forecasts"]:
        for task, splits in entry["tasks"].items():
            for split, one in splits.items():
                ends = [
                    [losses.get((entry[end], task, split, item)) for item in one["items"]] for end in ("from", "to")
                ]
                found.append(
                    Foreseen(
                        f"{spoken(task)}, {SPLIT_WORDS[split]}, {spoken(entry['from'])} to {spoken(entry['to'])}",
                        split,
                        {key: float(one[key]) for key, _ in ORDERS},
                        float(one["observed"]),
                        _paired_stderr(*ends),
                    )
                )
    return found


def _paired_stderr(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    if len(before) < 2 or None in before or None in after:
        return math.nan
    changes = np.array(after, dtype=float) - np.array(before, dtype=float)
    return float(changes.std(ddof=1) / math.sqrt(len(changes)))


def stretch_of(found: Sequence[Foreseen]) -> Stretch:
    """Both axes: even, unless forecasts lie far out of what was observed."""
    observed = max((abs(one.observed) for one in found if math.isfinite(one.observed)), default=0.0)
    furthest = max((abs(x) for one in found for x in one.forecasts.values() if math.isfinite(x)), default=0.0)
    return Stretch("asinh", observed) if 0 < FAR * observed < furthest else Stretch()


def forecast_plot(found: Sequence[Foreseen]) -> Plot:
    """A dot per order, task and split: forecast to the right, observed upwards, on one scale."""
    stretch = stretch_of(found)
    values = np.array([x for one in found for x in (0.0, one.observed, *one.forecasts.values())])
    values = values[np.isfinite(values)]
    ends = stretch.place(np.array([values.min(), values.max()]))
    spare = 0.07 * float(ends[1] - ends[0]) or 0.5
    limits = [float(ends[0]) - spare, float(ends[1]) + spare]
    axis = {
        "range": limits,
        "zeroline": True,
        "zerolinecolor": "@quiet",
        "nticks": 7,
        **ticks_of(stretch, values),
    }
    alike = {"color": "@quiet", "dash": "dash", "width": 1.5}
    line: Spec = {"type": "scatter", "mode": "lines", "x": limits, "y": limits, "line": alike}
    data = [{**line, "name": "forecast = observed", "hoverinfo": "skip"}]
    splits = list(dict.fromkeys(one.split for one in found))
    for n, (key, label) in enumerate(ORDERS):
        for split in splits:
            shown = [one for one in found if one.split == split]
            data.append(_dots(shown, key, f"{label}, {SPLIT_WORDS[split]}", n, stretch, hollow=split != splits[0]))
    layout = {
        "xaxis": {"title": {"text": "forecast change of the loss (nats)"}, **axis},
        "yaxis": {"title": {"text": "observed (nats)"}, "scaleanchor": "x", "constrain": "domain", **axis},
        "legend": {"y": 1.02},
        "margin": {"l": 54, "r": 12, "t": 56, "b": 44},
    }
    facts = []
    if any(math.isfinite(one.stderr) for one in found):
        facts.append("bars: one standard error over the items, before and after paired")
    if stretch.kind == "asinh":
        facts.append(f"axes even within {stretch.width:.2g} nats, logarithmic beyond")
    return Plot("Forecast and observed change of the loss", _told(found), data, layout, tuple(facts), aspect=0.95)


def _dots(found: Sequence[Foreseen], key: str, name: str, n: int, stretch: Stretch, *, hollow: bool) -> Spec:
    forecast, observed, stderr = (
        np.array(column, dtype=float)
        for column in zip(*((one.forecasts[key], one.observed, one.stderr) for one in found), strict=True)
    )
    colour = f"@line{n}"
    low, middle, high = (stretch.place(observed + sign * np.nan_to_num(stderr)) for sign in (-1, 0, 1))
    texts = [
        f"{plain(one.name)}<br>forecast {measured(one.forecasts[key])}, observed {measured(one.observed)} nats"
        for one in found
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": rounded(stretch.place(forecast)),
        "y": rounded(middle),
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": rounded(high - middle),
            "arrayminus": rounded(middle - low),
            "color": colour,
            "thickness": 1.5,
            "width": 3,
        },
        "marker": {
            "symbol": SYMBOLS[n] + ("-open" if hollow else ""),
            "size": 10,
            "color": colour,
            "line": {"color": colour, "width": 2},
        },
        "hoverinfo": "text",
        "text": texts,
    }


def _told(found: Sequence[Foreseen]) -> str:
    start = "Forecast to the right, observed upwards"
    if len(found) > MOST_TOLD:
        return f"{start}: {len(found)} entries, each in the table below."
    told = [
        f"{one.name}: "
        + ", ".join(f"{label} {measured(one.forecasts[key])}" for key, label in ORDERS)
        + f", observed {value_and_error(one.observed, None if math.isnan(one.stderr) else one.stderr)} nats"
        for one in found
    ]
    return f"{start}. {'; '.join(told)}."
