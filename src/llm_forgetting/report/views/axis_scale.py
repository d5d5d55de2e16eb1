"""Axes for numbers of which a few lie far from the rest: one diverged run must not squeeze all others into a line."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_forgetting.arrays import Floats

# Linear, as long as the range of all values is no more than this many times the range of their middle four fifths.
TOLERATED = 4.0
FEWEST = 10


@dataclass(frozen=True)
class AxisScale:
    """Scale of an axis: linear; log for positive values; else asinh(x / width), even within it and logarithmic outside."""

    kind: Literal["linear", "log", "asinh"] = "linear"
    width: float = 1.0

    def place(self, values: Floats) -> Floats:
        """Places of values on an asinh axis; the values themselves on the others, which plotting libraries know."""
        return np.arcsinh(values / self.width) if self.kind == "asinh" else values

    def ticks(self, values: Floats) -> list[float]:
        """Round numbers among and next to the values, zero first and from there outwards, none too close to another."""
        apart = float(np.ptp(self.place(values))) / 8
        largest = float(np.abs(values).max())
        powers = range(math.floor(math.log10(self.width)) - 1, math.ceil(math.log10(largest)) + 1)
        ticks = [0.0]
        for size in (10.0**power * step for power in powers for step in (1, 2, 5)):
            ticks += [
                at for at in (size, -size) if min(abs(self.place(np.array(ticks)) - self.place(np.array(at)))) >= apart
            ]
        low, high = self.place(values).min() - apart, self.place(values).max() + apart
        return sorted(tick for tick in ticks if low <= self.place(np.array(tick)) <= high)


def choose_scale(*columns: Floats) -> AxisScale:
    """Scale of one axis on which the finite values of every column can be told apart."""
    values = np.concatenate(columns)
    if not any(map(_has_outliers, columns)):
        return AxisScale()
    if values.min() > 0:
        return AxisScale("log")
    sizes = np.abs(values)
    width = float(np.median(sizes)) or float(sizes.max()) / 100
    return AxisScale("asinh", width)


def _has_outliers(values: Floats) -> bool:
    """Whether a few values lie far from the rest."""
    if len(values) < FEWEST:
        return False
    low, high = np.quantile(values, [0.1, 0.9])
    return bool(np.ptp(values) > TOLERATED * (high - low))
