"""Axes that plotly does not know by itself."""

import math

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.axis_scale import Stretch
from llm_forgetting.report.html.blocks import Spec, rounded


def ticks_of(stretch: Stretch, values: Floats) -> Spec:
    """What an axis is told so that `values`, placed by `stretch`, are read off it at round numbers."""
    if stretch.kind == "log":
        low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
        ticks = [10.0**power * step for power in range(low, high + 1) for step in (1, 3)]
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if stretch.kind == "asinh":
        ticks = stretch.ticks(values)
        return {"tickvals": rounded(stretch.place(np.array(ticks))), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {}
