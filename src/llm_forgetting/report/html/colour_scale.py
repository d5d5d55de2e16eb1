"""The colour scale that all surfaces of a figure share, for plotly and for table cells."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.ticker import LogLocator, MaxNLocator

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.contours import COLOURS, limits
from llm_forgetting.report.html.blocks import Spec

NATS = "loss (nats)"


@dataclass(frozen=True)
class Scale:
    """A colour scale of losses, logarithmic where they span many sizes; plotly only knows even ones, so it gets logarithms."""

    norm: Normalize

    def numbers(self, values: Floats) -> Floats:
        """What is coloured: `values` within the limits, or their logarithms; NaN stays NaN."""
        inside = np.clip(values, *limits(self.norm))
        return np.log10(inside) if self._logarithmic else np.asarray(inside)

    def axis(self, *, bar: bool) -> Spec:
        """plotly's colour axis, with round losses on its bar."""
        low, high = limits(self.norm)
        return {
            "colorscale": COLOURSCALE,
            "cmin": float(self.numbers(np.array(low))),
            "cmax": float(self.numbers(np.array(high))),
            "showscale": bar,
            "colorbar": self._bar(low, high),
        }

    def ink(self, value: float) -> str:
        """Black or white, whichever has the higher contrast (WCAG) on the colour of `value`."""
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in self._rgb(value))
        return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"

    def colour(self, value: float) -> str:
        """The colour of `value`."""
        return to_hex(self._rgb(value))

    def _rgb(self, value: float) -> tuple[float, float, float]:
        red, green, blue, _ = mpl.colormaps[COLOURS](float(self.norm(value)))
        return red, green, blue

    @property
    def _logarithmic(self) -> bool:
        return isinstance(self.norm, LogNorm)

    def _bar(self, low: float, high: float) -> Spec:
        locator = LogLocator(subs=(1.0, 2.0, 5.0)) if self._logarithmic else MaxNLocator(6, steps=[1, 2, 5, 10])
        places = np.asarray(locator.tick_values(low, high))
        places = places[(places >= low) & (places <= high)]
        return {
            "title": {"text": NATS, "side": "right"},
            "thickness": 12,
            "len": 0.8,
            "outlinewidth": 0,
            "tickvals": self.numbers(places).tolist(),
            "ticktext": [f"{place:g}" for place in places],
        }


COLOURSCALE = [[n / 16, to_hex(mpl.colormaps[COLOURS](n / 16))] for n in range(17)]
