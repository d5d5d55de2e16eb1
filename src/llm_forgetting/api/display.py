"""What notebooks show of a run or a study."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Framed:
    """A report in a frame of its own, with everything in it: nothing is served, nothing is fetched."""

    page: str
    height: int

    @classmethod
    def of(cls, report: Path, height: int) -> "Framed":
        """The report that a run or study wrote; UserError where it wrote none."""
        if not report.is_file():
            raise UserError(f"there is no {report}; draw it with: llm-forgetting report {report.parent}")
        return cls(report.read_text(encoding="utf-8"), height)

    def _repr_html_(self) -> str:
        page = html.escape(self.page, quote=True)
        return f'<iframe title="report" srcdoc="{page}" style="width:100%;height:{self.height}px;border:0"></iframe>'


def card(answer: str, table: "DataFrame", report: Path) -> str:
    """An answer, a table below it, and where the whole report is."""
    shown = table.to_html(index=False, border=0, float_format=lambda value: f"{value:.3g}", na_rep="-")
    return f"<p><strong>{html.escape(answer)}</strong></p>{shown}<p>The whole report: {html.escape(str(report))}</p>"
