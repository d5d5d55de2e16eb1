"""Study as an object: the command `llm-forgetting study`, with its results as frames."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from llm_forgetting.engines.start import EngineChoice
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.files import Json, decode
from llm_forgetting.files.manifest import checked
from llm_forgetting.progress import say
from llm_forgetting.report.notebook import WithReport, summary_html
from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.tables.study import conclusions, measures_table
from llm_forgetting.study.plan import Plan, read_plan
from llm_forgetting.study.records import RECORDS, CellRecord, read_records
from llm_forgetting.study.scheduler import StudyFolder

if TYPE_CHECKING:
    from pandas import DataFrame


Content = Mapping[str, Json]


@dataclass(frozen=True)
class StudyResults(WithReport):
    """A study: `content` is its study.json, `folder` where everything is."""

    content: Content
    folder: Path

    @property
    def answers(self) -> Mapping[str, Sequence[str]]:
        """Conclusions by question: the sentences that answer it, or say why there is no answer."""
        return dict(conclusions(self.content))

    @cached_property
    def cells(self) -> "DataFrame":
        """One row per run: pair, arm, what was varied, every measure and outcome, and `..._stderr` for those that have one."""
        from pandas import DataFrame

        return DataFrame([_cell(record) for record in read_records(self.folder / RECORDS).records])

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
                    "primary": association["primary"],
                    "runs": association["n_runs"],
                    **_coefficient("within_pairs", association["spearman_within_pairs"]),
                    **_coefficient("over_runs", association["spearman_over_runs"]),
                    "p_value": association["p_value"],
                    "p_adjusted": association["p_adjusted"],
                    "refusal": association["refusal"],
                }
                for name, association in table["measures"].items()
            ]
        )

    @cached_property
    def effects(self) -> "DataFrame":
        """One row per arm and number: how it differs from the baseline, mean over task pairs, with a 95% interval."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "arm": effect["arm"],
                    "baseline": effect["baseline"],
                    "outcome": effect["outcome"],
                    "control": effect["control"],
                    "pairs": effect["difference"]["n_pairs"],
                    **_coefficient("difference", effect["difference"]),
                    "of_logarithms": effect.get("ratio", False),
                    "p_value": (effect["difference"]["test"] or {}).get("p_value"),
                }
                for effect in self.content.get("effects", [])
            ]
        )

    def __repr__(self) -> str:
        """The first answer and the folder."""
        said = " ".join(next(iter(self.answers.values()), ["no answer"]))
        return f"<StudyResults of {self.content.get('name')} in {self.folder}: {shorten(said, 200)}>"

    def _repr_html_(self) -> str:
        """The answers and the table of measures, for notebooks."""
        text = " ".join(" ".join(sentences) for sentences in self.answers.values())
        table = measures_table(self.content) if "associations" in self.content else Table("", (), ())
        return summary_html(text, table, self.report)


class Study:
    """Many experiments from one YAML file (see docs/studies.md), and whether flatness goes with forgetting in them.

    Args:
        file: The study's YAML file.
        folder: Where cells and report go; `outputs/study_NAME`, if not given. What is there is not computed again.

    For example

        if __name__ == "__main__":  # its workers are processes that import this file
            results = Study("studies/toy.yaml").run(workers=2)
            print(results.answers)
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
        engine: Literal["local", "ray", "slurm"] = "local",
        address: str | None = None,
        slurm: Mapping[str, Json] | None = None,
        tell: Callable[[str], None] = say,
    ) -> StudyResults:
        """Compute what is missing, and conclude; a cell that fails is reported, the rest goes on.

        Args:
            workers: Cells at a time; by default one per GPU, or else per two cores.
            threads: CPU threads of each; by default its share of this machine's cores.
            engine: `local` (processes), `ray` or `slurm`.
            address: Of a running Ray cluster.
            slurm: Parameters for submitit: partition, time, memory, ... (see docs/cluster.md).
            tell: Gets a line per finished cell.

        Returns:
            The study's results, from the folder.
        """
        quiet_libraries()
        from llm_forgetting.study.study import complete_study

        chosen = EngineChoice(engine, address, slurm or {})
        content = complete_study(self.plan, self._folder, engine=chosen, workers=workers, threads=threads, report=tell)
        return StudyResults(content, self._folder.path)


def open_study(folder: str | os.PathLike[str]) -> StudyResults:
    """Results of a study, from its folder; UserError where it holds none."""
    path = Path(folder)
    try:
        return StudyResults(decode(dict, checked(path, "study.json"), file="study.json"), path)
    except UserError as error:
        raise UserError(f"open_study needs the folder of a study (study.json), {path} is not one: {error}") from error


def _cell(record: CellRecord) -> dict[str, object]:
    errors = {f"{name}_stderr": stderr for name, stderr in record.stderrs.items()}
    place = {"cell": record.cell, "pair": record.pair, "arm": record.arm}
    return {**place, **record.factors, **record.measures, **record.outcomes, **errors}


def _coefficient(name: str, coefficient: Content | None) -> dict[str, object]:
    interval = (coefficient or {}).get("interval") or {}
    return {
        name: (coefficient or {}).get("value"),
        f"{name}_low": interval.get("low"),
        f"{name}_high": interval.get("high"),
    }
