"""A study as an object: the command `llm-forgetting study`, with its results as frames."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.progress import say
from llm_forgetting.report.html.files import REPORT
from llm_forgetting.report.notebook import ReportFrame, summary_html
from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.tables.study import answers_of, measures_table
from llm_forgetting.study.plan import Plan, read_plan
from llm_forgetting.study.records import RECORDS, read_records
from llm_forgetting.study.scheduler import StudyFolder

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class StudyResults:
    """A study: `content` is its study.json, `folder` where everything is."""

    content: Mapping[str, Any]
    folder: Path

    @property
    def answers(self) -> Mapping[str, Sequence[str]]:
        """Every question that was asked, with the sentences that answer it (or say why there is no answer)."""
        return dict(answers_of(self.content))

    @cached_property
    def cells(self) -> "DataFrame":
        """One row per run: pair, arm, what was varied, every measure and outcome, and `..._stderr` for those that have one."""
        from pandas import DataFrame

        return DataFrame([_cell(record) for record in read_records(self.folder / RECORDS)["records"]])

    @cached_property
    def associations(self) -> "DataFrame":
        """One row per measure: Spearman's rho with the outcome within task pairs and over runs, intervals, p-values."""
        from pandas import DataFrame

        table = self.content.get("associations", {"measures": {}, "outcome": None})
        return DataFrame(
            [
                {
                    "measure": name,
                    "outcome": table["outcome"],
                    "primary": found["primary"],
                    "runs": found["n_runs"],
                    **_coefficient("within_pairs", found["spearman_within_pairs"]),
                    **_coefficient("over_runs", found["spearman_over_runs"]),
                    "p_value": found["p_value"],
                    "p_adjusted": found["p_adjusted"],
                    "refusal": found["refusal"],
                }
                for name, found in table["measures"].items()
            ]
        )

    @cached_property
    def effects(self) -> "DataFrame":
        """One row per arm and number: how it differs from the baseline, mean over task pairs, with a 95% interval."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "arm": found["arm"],
                    "baseline": found["baseline"],
                    "outcome": found["outcome"],
                    "control": found["control"],
                    "pairs": found["difference"]["n_pairs"],
                    **_coefficient("difference", found["difference"]),
                    "of_logarithms": found.get("ratio", False),
                    "p_value": (found["difference"]["test"] or {}).get("p_value"),
                }
                for found in self.content.get("effects", [])
            ]
        )

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / REPORT

    def show(self, height: int = 900) -> ReportFrame:
        """report.html inside a notebook, `height` pixels high."""
        return ReportFrame.of(self.report, height)

    def _repr_html_(self) -> str:
        """The answers and the table of measures, for notebooks."""
        said = " ".join(" ".join(sentences) for sentences in self.answers.values())
        table = measures_table(self.content) if "associations" in self.content else Table("", (), ())
        return summary_html(said, table, self.report)


class Study:
    """Many experiments from one YAML file (see docs/studies.md), and whether flatness goes with forgetting in them.

    Args:
        file: The study's YAML file.
        folder: Where cells and report go; `outputs/study_NAME`, if not given. What is there is not computed again.

    For example

        if __name__ == "__main__":  # its workers are processes that import this file
            found = Study("studies/toy.yaml").run(workers=2)
            print(found.answers)
    """

    def __init__(self, file: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> None:
        self.plan: Plan = read_plan(Path(file))
        self._folder = StudyFolder(Path(folder or f"outputs/study_{self.plan.name}"))

    @property
    def missing(self) -> int:
        """How many cells have no record yet."""
        return len(self._folder.missing(self.plan))

    def run(
        self,
        *,
        workers: int | None = None,
        threads: int | None = None,
        engine: Literal["local", "ray"] = "local",
        address: str | None = None,
        tell: Callable[[str], None] = say,
    ) -> StudyResults:
        """Compute what is missing, `workers` cells at a time on `threads` threads each, and conclude.

        A cell that fails is reported, the rest goes on.
        """
        quiet_libraries()
        from llm_forgetting.study.study import carry_out

        computed_by: Any = {"engine": engine, "workers": workers, "threads": threads, "address": address}
        found = carry_out(self.plan, self._folder, **computed_by, tell=tell)
        return StudyResults(found, self._folder.path)


def open_study(folder: str | os.PathLike[str]) -> StudyResults:
    """The results of a study, from its folder; UserError where it holds none."""
    path = Path(folder)
    try:
        content = json.loads((path / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"open_study needs the folder of a study (study.json), {path} is not one: {error}") from error
    return StudyResults(content, path)


def _cell(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {**record["measures"], **record["outcomes"]}
    errors = {f"{name}_stderr": value for name, value in record["stderrs"].items()}
    return {
        "cell": record["cell"],
        "pair": record["pair"],
        "arm": record["arm"],
        **record["factors"],
        **numbers,
        **errors,
    }


def _coefficient(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    interval = (found or {}).get("interval") or {}
    return {
        name: (found or {}).get("value"),
        f"{name}_low": interval.get("low"),
        f"{name}_high": interval.get("high"),
    }
