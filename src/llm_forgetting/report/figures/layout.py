"""Layout of panels of known size with captions that fit: in inches, so nothing is cut or overlaps."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from llm_forgetting.landscape.metrics import FLAT_RANGE
from llm_forgetting.report.figures.style import ALARM, COLUMN, HEADING, LABEL, PAGE, QUIET, SMALL
from llm_forgetting.report.views.captions import Caption, breakable

# Inches between panels; a panel is never narrower than NARROWEST, even if the figure grows wider than a page.
BESIDE, BETWEEN, NARROWEST = 0.16, 0.14, 1.45
# Panels in a line where they are no table.
PER_LINE = 4
# A line of text is this many times as high as its type.
LEADING = 1.35
# Inches right of the panels for the bar of a colour scale, with its numbers alone, from panel to bar, and of its height.
BAR, NARROW_BAR, BESIDE_BAR, HIGHEST_BAR = 0.75, 0.62, 0.1, 3.0


@dataclass(frozen=True)
class _Line:
    text: str
    size: float
    colour: str
    weight: str


def caption_height(caption: Caption, width: float) -> float:
    """Height of a caption that is wrapped to `width`, both in inches."""
    return (caption.above + LEADING * sum(line.size for line in _caption_lines(caption, width))) / 72


def draw_caption(caption: Caption, axes: Axes, width: float) -> None:
    """Stack a caption's lines over a panel, wrapped to `width` inches."""
    above = caption.above
    for line in reversed(_caption_lines(caption, width)):
        axes.annotate(
            breakable(line.text),
            (0, 1),
            (0, above),
            xycoords="axes fraction",
            textcoords="offset points",
            va="bottom",
            fontsize=line.size,
            color=line.colour,
            weight=line.weight,
        )
        above += LEADING * line.size


def _caption_lines(caption: Caption, width: float) -> list[_Line]:
    styled = [
        _Line(caption.heading, HEADING, "black", "normal"),
        *(_Line(fact, SMALL, QUIET, "normal") for fact in caption.facts),
        *(_Line(alarm, SMALL, ALARM, "bold") for alarm in caption.alarms),
    ]
    return [replace(line, text=text) for line in styled for text in wrapped(line.text, width, line.size, line.weight)]


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """`text` in lines of at most `width` inches at `size` points; words that are longer are broken."""
    lines: list[str] = []
    for word in _words(text, width, size, weight):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, weight) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _words(text: str, width: float, size: float, weight: str) -> Iterable[str]:
    for word in filter(None, text.split(" ")):
        length = text_width(word, size, weight)
        yield from [word] if length <= width else textwrap.wrap(word, max(4, int(0.9 * len(word) * width / length)))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches of `text` in one line."""
    font = FontProperties(family="DejaVu Sans", weight=weight, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def axis_label(name: str, unit: str, length: float) -> str:
    """`name (unit)`, in two lines where it is longer than an axis of `length` inches."""
    line = f"{name} ({unit})"
    return line if text_width(line, LABEL) < length else f"{name}\n({unit})"


@dataclass(frozen=True)
class Panels:
    """A figure, and its panels by (row, column)."""

    figure: Figure
    axes: Mapping[tuple[int, int], Axes]

    def bar_axes(self, panels: Iterable[Axes] | None = None) -> Axes:
        """Room for a colour scale right of `panels` (None: of all), as high as they are but at most `HIGHEST_BAR` inches."""
        boxes = [axes.get_position() for axes in panels or self.axes.values()]
        wide, high = self.figure.get_size_inches()
        low, top = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
        share = min(top - low, HIGHEST_BAR / high)
        right = max(box.x1 for box in boxes) + BESIDE_BAR / wide
        return self.figure.add_axes((right, (low + top - share) / 2, 0.12 / wide, share))

    def level(self, rows: Iterable[int]) -> None:
        """Give all panels of `rows` one y axis: the lowest and highest limits of any, at least as far apart as is not flat."""
        chosen = [axes for (row, _), axes in self.axes.items() if row in set(rows)]
        lows, highs = zip(*(axes.get_ylim() for axes in chosen), strict=True)
        low, high = min(lows), max(highs)
        spare = 0.5 if high - low < FLAT_RANGE else 0.0
        for axes in chosen:
            axes.set_ylim(low - spare, high + spare)


def panel_width(columns: int, margins: float, total: float | None = None, beside: float = BESIDE) -> float:
    """Inches of each of several panels, `beside` inches apart, that share `total` (a page; a single one: a column) with
    `margins` inches of labels.
    """
    total = total or (COLUMN if columns == 1 else PAGE)
    return max((total - margins - beside * (columns - 1)) / columns, NARROWEST)


def lay_out(
    captions: Mapping[tuple[int, int], Caption],
    *,
    aspect: float,
    x_label: str,
    y_labels: Sequence[str],
    left: float = 0.55,
    right: float = BAR,
    below: float = 0.0,
    total: float | None = None,
    beside: float = BESIDE,
) -> Panels:
    """Panels for the captions by (row, column), each `aspect` times as high as wide; margins in inches.

    `y_labels` has one label per row. Ticks and labels stand at the outermost panels only. `below` is room under them,
    `total` the width of the figure, if not a page's or a column's, `beside` what lies between two columns.
    """
    rows, columns = (1 + max(place[axis] for place in captions) for axis in (0, 1))
    width = panel_width(columns, left + right, total, beside)
    # A single panel's caption may reach over the scale beside it.
    reach = width + right if columns == 1 else width
    rooms = [max(caption_height(c, reach) for (r, _), c in captions.items() if r == row) for row in range(rows)]
    wide = left + columns * width + (columns - 1) * beside + right
    bottom = below + 0.42 + 0.15 * x_label.count("\n")
    high = bottom + rows * aspect * width + sum(rooms) + (rows - 1) * BETWEEN
    figure = Figure(figsize=(wide, high))
    axes: dict[tuple[int, int], Axes] = {}
    for (row, column), caption in captions.items():
        x = left + column * (width + beside)
        y = high - sum(rooms[: row + 1]) - (row + 1) * aspect * width - row * BETWEEN
        panel = figure.add_axes((x / wide, y / high, width / wide, aspect * width / high))
        draw_caption(caption, panel, reach)
        lowest = not any((below, column) in captions for below in range(row + 1, rows))
        first = not any((row, before) in captions for before in range(column))
        panel.tick_params(labelbottom=lowest, labelleft=first)
        panel.set(xlabel=x_label if lowest else "", ylabel=y_labels[row] if first else "")
        axes[row, column] = panel
    return Panels(figure, axes)


def table_of(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
    """The (row, column) of every (row's name, column's name), both in order of first appearance; where most of such a table
    would be empty, line after line.
    """
    rows, columns = (list(dict.fromkeys(pair[axis] for pair in pairs)) for axis in (0, 1))
    if 2 * len(pairs) < len(rows) * len(columns):
        return {pair: divmod(n, PER_LINE) for n, pair in enumerate(pairs)}
    return {pair: (rows.index(pair[0]), columns.index(pair[1])) for pair in pairs}
