"""Axes that plotly does not have by itself, and markers on them."""

import math

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.html.blocks import Spec, rounded
from llm_forgetting.report.views.axis_scale import AxisScale


def ticks_of(scale: AxisScale, values: Floats) -> Spec:
    """Options of an axis that `values`, placed by `scale`, are read off at round numbers."""
    if scale.kind == "log":
        low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
        ticks = [10.0**power * step for power in range(low, high + 1) for step in (1, 3)]
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if scale.kind == "asinh":
        ticks = scale.ticks(values)
        return {"tickvals": rounded(scale.place(np.array(ticks))), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {}


def upright(x: float, line: Spec) -> Spec:
    """A vertical line through the whole plot."""
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def above(x: float, text: str) -> Spec:
    """A text at the upper end of a vertical line."""
    place = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "center", "showarrow": False}
    return {**place, "text": text}


def error_bars(values: Floats, low: Floats, high: Floats, colour: str, *, cap: int = 3) -> Spec:
    """Bars from `low` to `high` around values (n,)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded(high - values),
        "arrayminus": rounded(values - low),
        "color": colour,
        "thickness": 1.5,
        "width": cap,
    }
