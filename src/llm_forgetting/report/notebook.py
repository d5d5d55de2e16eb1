"""What notebooks show of a run or a study."""

import html
from dataclasses import dataclass
from pathlib import Path

from llm_forgetting.errors import UserError, program
from llm_forgetting.report.tables.run import Table

REPORT = "report.html"


@dataclass(frozen=True)
class ReportFrame:
    """A report in a frame of its own, with everything in it: nothing is served, nothing is fetched."""

    page: str
    height: int

    @classmethod
    def of(cls, report: Path, height: int) -> "ReportFrame":
        """The report that a run or study wrote; UserError where it wrote none."""
        if not report.is_file():
            raise UserError(f"there is no {report}; draw it with: {program()} report {report.parent}")
        return cls(report.read_text(encoding="utf-8"), height)

    def _repr_html_(self) -> str:
        page = html.escape(self.page, quote=True)
        return f'<iframe title="report" srcdoc="{page}" style="width:100%;height:{self.height}px;border:0"></iframe>'


class WithReport:
    """Results in a `folder` with a report.html."""

    folder: Path

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / REPORT

    def show(self, height: int = 900) -> ReportFrame:
        """report.html inside a notebook, `height` pixels high."""
        return ReportFrame.of(self.report, height)


def summary_html(answer: str, table: Table, report: Path) -> str:
    """An answer, a table below it, and where the whole report is."""

    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(line("td", row) for row in table.rows)
    shown = f"<table><caption>{html.escape(table.title)}</caption>{line('th', table.header)}{rows}</table>"
    return (
        f"<p><strong>{html.escape(answer)}</strong></p>{shown * bool(table.rows)}<p>{html.escape(table.note)}</p>"
        f"<p>The whole report: {html.escape(str(report))}</p>"
    )
