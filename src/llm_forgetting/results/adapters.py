"""Records of what is measured of saved adapters: landscape.json, evaluation.json, forecast.json, repair.json. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llm_forgetting.config.sections import EvaluateConfig, ExperimentConfig, ScanConfig
from llm_forgetting.files import decode
from llm_forgetting.files.manifest import checked
from llm_forgetting.forgetting.evaluation import TaskEvaluation
from llm_forgetting.forgetting.intervals import Mean, PairedMeanChange, PairedProportionChange, Proportion
from llm_forgetting.landscape.records import CheckpointLandscape, CheckpointPlaneScan, PathScan
from llm_forgetting.results.run import Environment, ModelDescription, Timing


@dataclass(frozen=True, eq=False)
class ScanResults:
    """Results of `llm-forgetting landscape`: landscape.json. `adapters` are folders by name (adapter, other)."""

    schema_version: Literal[1]
    config: ScanConfig
    versions: dict[str, str]
    environment: Environment
    model: ModelDescription
    adapters: dict[str, str]
    landscapes: dict[str, CheckpointLandscape]
    paths: tuple[PathScan, ...]
    checkpoint_plane: CheckpointPlaneScan | None
    between_notes: tuple[str, ...]
    warnings: tuple[str, ...]
    figures: tuple[str, ...]
    timings: dict[str, Timing]


@dataclass(frozen=True)
class EvaluationResults:
    """Results of `llm-forgetting evaluate`: evaluation.json. `adapter` None is the backbone, `limit` the rows kept per
    subject; `run` is the folder of the run that made the adapter, None where that is not known.
    """

    schema_version: Literal[1]
    config: EvaluateConfig
    versions: dict[str, str]
    environment: Environment
    source: str
    model: ModelDescription
    adapter: str | None
    limit: int | None
    tasks: tuple[TaskEvaluation, ...]
    run: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_test(self) -> bool:
        """Whether it is known that no row was trained on."""
        known = self.adapter is None or self.run is not None
        return known and all(task.trained is None for task in self.tasks)


@dataclass(frozen=True)
class RepairScore:
    """Scores of all candidate adapters on one task and split, on items that did not choose t, and the repaired one's
    change from the last checkpoint; accuracy in shares, loss in nats.
    """

    task: str
    split: Literal["train", "test"]
    items: tuple[str, ...]
    accuracy: dict[str, Proportion]
    loss: dict[str, Mean]
    accuracy_change: PairedProportionChange
    loss_change: PairedMeanChange


@dataclass(frozen=True)
class RepairRecord:
    """Repair between checkpoints `start` and `to`: repair.json. The point t of the path, the adapter's rank, the
    relative error of cutting it to that (0 for exact), and its folder.
    """

    config: ExperimentConfig
    start: Annotated[str, Field(alias="from")]
    to: str
    t: float
    chosen_by: str
    rank: int
    truncation_error: float
    adapter: str
    scores: tuple[RepairScore, ...]


def read_scan(folder: Path) -> ScanResults:
    """landscape.json of a scan's folder; UserError as `read_results`."""
    return decode(ScanResults, checked(folder, "landscape.json"), file=str(folder / "landscape.json"))


def read_evaluation(folder: Path) -> EvaluationResults:
    """evaluation.json of an evaluation's folder; UserError as `read_results`."""
    return decode(EvaluationResults, checked(folder, "evaluation.json"), file=str(folder / "evaluation.json"))
