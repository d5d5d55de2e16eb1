"""What a person sees while a run goes on, and when it is done."""

import logging
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from llm_forgetting.errors import program
from llm_forgetting.progress import Advance, duration
from llm_forgetting.report.set_up import set_up
from llm_forgetting.report.tables.closing import closing_tables, landscape_sentence
from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.views.forecasts import compared_forecasts, forecast_sentence
from llm_forgetting.results import Results, read_items

log = logging.getLogger(__name__)
# Columns are three characters apart, and a table keeps one at each side.
APART, SIDES = 3, 2
# Characters of a first column into which names can still be broken.
SHORTEST = 6

# Seconds between lines on how far a phase is, in a file or a pipe.
SAID_AGAIN = 60.0


class Terminal:
    """A `Progress` on a rich console; bars are drawn on a terminal and left out of pipes and files."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._warned: set[str] = set()

    def phase(self, number: int, total: int, title: str, *, kept: bool) -> None:
        """A heading such as `[ 3/10] evaluate`."""
        width = len(str(total))
        mark = "  [dim](kept from before)[/dim]" if kept else ""
        self.console.print(f"[bold cyan]\\[{number:>{width}}/{total}][/bold cyan] {escape(title)}{mark}")

    def note(self, message: str) -> None:
        """A dim line."""
        log.info(message)
        self.console.print(f"        [dim]{escape(message)}[/dim]", soft_wrap=True)

    def warn(self, message: str) -> None:
        """A yellow line."""
        log.warning(message)
        self._warned.add(message)
        self.console.print(f"        [yellow]note:[/yellow] {escape(message)}", soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """A bar with counts, a short text, time gone and time left; then one line that says how long it took.

        Where no bar can be drawn, a line says every `SAID_AGAIN` seconds how far it is.
        """
        columns = (
            TextColumn("       "), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        started = said = time.perf_counter()
        latest, done = "", 0
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(label, total=total, text="")

            def advance(steps: int, text: str) -> None:
                nonlocal latest, done, said
                latest, done = text or latest, done + steps
                progress.update(task, total=max(total, done), completed=done, text=latest)
                now = time.perf_counter()
                if not self.console.is_terminal and now - said >= SAID_AGAIN and 0 < done < total:
                    said, left = now, (now - started) * (total - done) / done
                    self.note(f"{label}: {done} of {total}, about {duration(left, rough=True)} left")

            yield advance
        seconds = time.perf_counter() - started
        ending = f", {latest}" if latest else ""
        self.note(f"{label}: {done} steps in {duration(seconds)}{ending}")

    def show_results(self, results: Results, folder: Path) -> None:
        """The set-up, three tables, the answer, and where everything is; all other tables are in results.md."""
        self.console.print()
        self.console.print(escape(set_up(results)), style="dim")
        self.console.print()
        for table in closing_tables(results):
            self.show_table(table)
            self.console.print()
        for warning in results.warnings:
            if warning not in self._warned:  # else it was said when it was found
                self.console.print(f"[yellow]note:[/yellow] {escape(warning)}")
        failed = forecast_sentence(compared_forecasts(results, read_items(folder)))
        self.show_answer("answer", " ".join(filter(None, [results.answer, landscape_sentence(results), failed])))
        files = "results.md, results.json, items.jsonl, checkpoints"
        if results.figures:
            files += f", {results.figures[0]} and {len(results.figures) - 1} more figures"
        seconds = sum(timing.wall_seconds for timing in results.timings.values())
        self.console.print(f"All phases took {duration(seconds)}.")
        self.console.print(f"Everything is in [bold]{escape(str(folder))}[/bold]: {files}.", soft_wrap=True)
        for step in _next_steps(results, folder):
            self.console.print(f"  {escape(step)}", soft_wrap=True)

    def show_answer(self, question: str, answer: str) -> None:
        """A question and its answer, in a frame."""
        self.console.print(Panel(escape(answer), title=escape(question), title_align="left", border_style="green"))

    def show_table(self, table: Table) -> None:
        """One table, its note below."""
        drawn = RichTable(
            title=table.title,
            title_justify="left",
            title_style="bold",
            header_style="dim",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        drawn.caption, drawn.caption_justify, drawn.caption_style = escape(table.note) or None, "left", "dim"
        for index, (name, width) in enumerate(zip(table.header, _widths(table, self.console.width), strict=True)):
            numeric = all(re.match(r"[-+.\d]|inf|nan", row[index]) for row in table.rows)
            justify: Literal["right", "left"] = "right" if index and numeric else "left"
            drawn.add_column(escape(name), justify=justify, width=width, overflow="fold")
        for row in table.rows:
            drawn.add_row(*(escape(cell) for cell in row))
        self.console.print(drawn)


def _next_steps(results: Results, folder: Path) -> Iterator[str]:
    """What to do with a finished run, each with its command."""
    where, ours = shlex.quote(str(folder)), program()
    if (folder / "report.html").is_file():
        yield f"look at it: open {folder / 'report.html'} in a browser"
    else:
        yield f"draw its report: {ours} report {where}"
    if results.paths:
        yield f"interpolate to the point with the lowest mean loss: {ours} repair {where}"
    yield f"is it the seed? run it again with another --seed, then: {ours} compare {where} OTHER_RUN"


def _widths(table: Table, available: int) -> list[int | None]:
    """The width of every column, None for whatever it takes: as it is where the table fits. Else headers are broken between
    words, then names, then names within words and values after twelve characters; then everything.
    """
    columns = list(zip(table.header, *table.rows, strict=True))
    between = SIDES + APART * (len(columns) - 1)
    if between + sum(max(map(len, column)) for column in columns) > available:
        words = [max(map(len, name.split()), default=0) for name in table.header]
        longest = [max(map(len, values), default=0) for _, *values in columns]
        word = max((len(word) for label in columns[0] for word in label.split()), default=0)
        for most, least in ((available, word), (12, SHORTEST)):
            others = [max(words[n], min(longest[n], most)) for n in range(1, len(columns))]
            room = available - between - sum(others)
            if room >= least:
                return [min(max(longest[0], words[0]), room), *others]
    return [None] * len(columns)
