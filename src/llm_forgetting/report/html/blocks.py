"""Blocks of a page. Templates turn them into HTML and escape every text; text inside plots is escaped by `plain`."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llm_forgetting.arrays import Floats
from llm_forgetting.files import Json
from llm_forgetting.report.tables.run import Table

Spec = dict[str, Json]
Rounded = float | None | list["Rounded"]


def plain(text: str) -> str:
    """`text` for plotly, which reads some tags in titles and names, and `%{...}` in hover texts."""
    return html.escape(text, quote=False).replace("%{", "% {")


def rounded(values: Floats, digits: int = 5) -> list[Rounded]:
    """`values` (any shape but a number) as JSON: `digits` significant digits, None for what is not finite."""
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


@dataclass(frozen=True)
class Plot:
    """Interactive plot. Colours that begin with @ are the page's own and follow its theme (assets/report.js).

    `alt` describes the plot for screen readers. Plots of one `link` turn together. `alike` is the plot on the scale of all its
    neighbours, which a switch of the page shows instead.
    """

    heading: str
    alt: str
    data: list[Spec]
    layout: Spec
    facts: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    link: str = ""
    aspect: float = 0.7
    alike: "Plot | None" = None


@dataclass(frozen=True)
class Figures:
    """Plots side by side, `columns` of them in a row where the window is wide enough, and the numbers behind them."""

    kind: ClassVar[str] = "figures"
    plots: Sequence[Plot]
    columns: int = 2
    note: str = ""
    numbers: Sequence[Table] = ()
    turn: str = ""

    @property
    def scales(self) -> bool:
        """Whether its plots have a scale of their own and one of all."""
        return any(plot.alike for plot in self.plots)


@dataclass(frozen=True)
class Numbers:
    """A table."""

    kind: ClassVar[str] = "numbers"
    table: Table


@dataclass(frozen=True)
class Prose:
    """A paragraph; `quiet` for what was not measured."""

    kind: ClassVar[str] = "prose"
    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Points:
    """A list."""

    kind: ClassVar[str] = "points"
    texts: Sequence[str]
    heading: str = ""


@dataclass(frozen=True)
class Code:
    """Commands to be typed."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Folded:
    """Long text that is there on demand."""

    kind: ClassVar[str] = "folded"
    summary: str
    text: str


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: its text in lines, its colour ("" for none, which is hatched), the ink on it."""

    lines: tuple[str, ...]
    colour: str = ""
    ink: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Heat:
    """A heat map that is a table: rows by columns, every cell coloured and written out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Heats:
    """Heat maps side by side."""

    kind: ClassVar[str] = "heats"
    maps: Sequence[Heat]
    note: str = ""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: its text, its options in order, and the index of the right one."""

    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Listing:
    """A long table that can be sorted and filtered. `choices`: column to the value that is chosen at first ("" for all)."""

    kind: ClassVar[str] = "listing"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Question]]
    numeric: Sequence[int] = ()
    choices: Sequence[tuple[int, str]] = ()
    note: str = ""

    def values(self, column: int) -> list[str]:
        """What can be chosen in a column."""
        return list(dict.fromkeys(cell for row in self.rows if isinstance(cell := row[column], str)))

    @property
    def folded(self) -> bool:
        """Whether cells hold questions, which are opened one by one or all together."""
        return any(isinstance(cell, Question) for row in self.rows[:1] for cell in row)


Block = Figures | Numbers | Prose | Points | Code | Folded | Heats | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """Number that matters: its label, the value with its error, and a word on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report. `answers`: question (or "") and its sentences, first of all; `set_up`: one line below the title."""

    title: str
    kicker: str
    answers: Sequence[tuple[str, Sequence[str]]]
    sections: Sequence[Section]
    tiles: Sequence[Tile] = ()
    warnings: Sequence[str] = ()
    footer: Sequence[str] = field(default=())
    set_up: str = ""
