"""Style of every figure: type that reads at paper width, colours that are safe, files that are alike to the byte."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

# Keyword arguments of matplotlib.
Style = dict[str, Any]
# Inches: the text width of a two-column paper, and one of its columns.
PAGE, COLUMN = 7.0, 3.45
# Points.
HEADING, LABEL, LEGEND, SMALL = 8.5, 8.0, 7.5, 7.2
# Okabe & Ito (2008), the darker ones first; with the dashes and markers below lines also differ in grey.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (8, 3)),
    (0, (3, 1, 1, 1)),
)
MARKERS = ("o", "s", "^", "D", "v", "P")
QUIET, ALARM = "0.35", "#B3261E"
# The dot that marks a checkpoint.
CHECKPOINT: Style = {
    "marker": "o",
    "color": "white",
    "markeredgecolor": "black",
    "markersize": 5,
    "markeredgewidth": 0.9,
}
# Fills are raster images inside the PDF (vector fills show seams between their polygons); this is their resolution.
PRINT_DPI = 300

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "ytick.minor.size": 1.5,
    "legend.fontsize": LEGEND,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and this project's settings on top, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Figure, stem: Path, dpi: int) -> None:
    """Write `stem`.png and `stem`.pdf, each whole or not at all, cut to what is drawn; undated, so the bytes are repeatable."""
    canvas: Any = FigureCanvasAgg(figure)
    cut = figure.get_tightbbox(canvas.get_renderer()).padded(0.03)
    settings: Mapping[str, Style] = {"pdf": {"dpi": PRINT_DPI, "metadata": {"CreationDate": None}}, "png": {"dpi": dpi}}
    for kind, options in settings.items():
        partial = stem.with_name(f".{stem.name}.{kind}")
        try:
            figure.savefig(partial, format=kind, bbox_inches=cut, **options)
            partial.replace(stem.with_name(f"{stem.name}.{kind}"))
        finally:
            partial.unlink(missing_ok=True)


def even_ticks(axis: Axis, most: int) -> None:
    """A few ticks at round places."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ScalarFormatter(useOffset=False))


def ticks_between(axis: Axis, low: float, high: float) -> None:
    """Ticks at round places from `low` to `high` only, where the axis itself is longer."""
    places = np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high))
    slack = 0.02 * (high - low)
    axis.set_ticks(places[(places > low - slack) & (places < high + slack)])
    axis.set_major_formatter(ScalarFormatter(useOffset=False))


def direction_ticks(axis: Axis) -> None:
    """A few ticks at round places of a direction, written as short as can be.

    The outermost labels of an x axis stand inside the panel, clear of its neighbour's.
    """
    low, high = axis.get_view_interval()
    places = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high))
    places = places[np.abs(places - (low + high) / 2) <= (0.5 + 1e-6) * (high - low)]
    axis.set_ticks(places, [f"{round(place, 9):g}".replace("-", "\N{MINUS SIGN}") for place in places])
    if isinstance(axis, XAxis):
        for place, tick in zip(places, axis.get_major_ticks(len(places)), strict=True):
            if abs(place - low) < 1e-6 * (high - low):
                tick.label1.set_horizontalalignment("left")
            elif abs(place - high) < 1e-6 * (high - low):
                tick.label1.set_horizontalalignment("right")
