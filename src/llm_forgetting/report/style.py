"""How every figure looks: type that reads at paper width, colours that are safe, files that are alike to the byte."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

# Inches: the text width of a two-column paper, and one of its columns.
PAGE, COLUMN = 7.0, 3.45
# Points.
HEADING, LABEL, SMALL = 8.5, 8.0, 7.2
# Okabe & Ito (2008), the darker ones first; with the dashes and markers below lines also differ in grey.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (8, 3)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
QUIET, ALARM = "0.35", "#B3261E"
# The dot that marks a checkpoint.
CHECKPOINT: Any = {"marker": "o", "color": "white", "markeredgecolor": "black", "markersize": 5, "markeredgewidth": 0.9}
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
    "legend.fontsize": 7.5,
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
    settings: Mapping[str, Any] = {"pdf": {"dpi": PRINT_DPI, "metadata": {"CreationDate": None}}, "png": {"dpi": dpi}}
    for kind, options in settings.items():
        partial = stem.with_name(f".{stem.name}.{kind}")
        figure.savefig(partial, format=kind, bbox_inches=cut, **options)
        partial.replace(stem.with_name(f"{stem.name}.{kind}"))


def even_ticks(axis: Axis, most: int) -> None:
    """A few ticks at round places."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ScalarFormatter(useOffset=False))


def direction_ticks(axis: Axis, prune: Literal["both"] | None = None) -> None:
    """A few ticks at round places, written as short as can be: panels side by side leave little room."""
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], prune=prune))
    axis.set_major_formatter(lambda place, _: f"{round(place, 9):g}".replace("-", "\N{MINUS SIGN}"))


def step_unit(space: str) -> str:
    """What a distance of 1 is in a direction space."""
    words = {"adapter": "the adapter's norm", "weight": "the weights' norm", "raw": "the raw factors' norm"}
    return f"units of {words[space]}"
