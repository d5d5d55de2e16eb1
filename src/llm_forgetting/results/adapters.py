"""Records of what is measured of saved adapters: landscape.json, evaluation.json, forecast.json, repair.json. No torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llm_forgetting.config.sections import EvaluateConfig, ExperimentConfig, ForecastConfig, ScanConfig
from llm_forgetting.curvature.records import Divergence, TaskForecast
from llm_forgetting.files import OMITTED
from llm_forgetting.files.manifest import read_checked
from llm_forgetting.forgetting.evaluation import TaskEvaluation
from llm_forgetting.forgetting.intervals import PairedProportionChange, Proportion
from llm_forgetting.forgetting.mean_intervals import Mean, PairedMeanChange
from llm_forgetting.forgetting.paired_evaluation import TaskChange
from llm_forgetting.landscape.between_records import CheckpointPlaneScan, PathScan
from llm_forgetting.landscape.records import CheckpointLandscape
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
class Evaluated:
    """Evaluation of one checkpoint: `adapter` None is the backbone; `run` is the folder of the run that made the adapter,
    None where that is not known.
    """

    model: ModelDescription
    adapter: str | None
    tasks: tuple[TaskEvaluation, ...]
    run: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationResults:
    """Results of `llm-forgetting evaluate`: evaluation.json. `adapter` None is the backbone, `limit` the rows kept per
    subject; `run` is the folder of the run that made the adapter, None where that is not known.

    Of a pair A B these are of A; other: of B; changes: per task what changed from A to B on the same items.
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
    other: Annotated[Evaluated | None, OMITTED] = None
    changes: Annotated[tuple[TaskChange, ...] | None, OMITTED] = None

    @property
    def each(self) -> "tuple[EvaluationResults, ...]":
        """A and B by themselves; of a single checkpoint these results."""
        if self.other is None:
            return (self,)
        alone = replace(self, other=None, changes=None)
        return alone, replace(alone, **vars(self.other))

    @property
    def is_test(self) -> bool:
        """Whether it is known that no row was trained on."""
        known = self.adapter is None or self.run is not None
        return known and all(task.trained is None for task in self.tasks)


@dataclass(frozen=True, eq=False)
class PairForecast:
    """Forecast of one task's change of loss from A to B: slope and curvature at A along D = delta W_B - delta W_A beside what
    was observed; change: the observed change over the same items, paired; divergence: KL(p_A || p_B) of the answers on them.
    """

    forecast: TaskForecast
    change: PairedMeanChange
    divergence: Divergence


@dataclass(frozen=True, eq=False)
class ForecastResults:
    """Results of `llm-forgetting forecast`: forecast.json. `checkpoints` are folders by name (A, B; base: the backbone),
    `norms` |delta W|_F of each, update_norm |D|_F.
    """

    schema_version: Literal[1]
    config: ForecastConfig
    versions: dict[str, str]
    environment: Environment
    model: ModelDescription
    checkpoints: dict[str, str]
    norms: dict[str, float]
    update_norm: float
    tasks: dict[str, PairForecast]
    warnings: tuple[str, ...]
    timings: dict[str, Timing]


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
    relative error of cutting it to that (0 for exact), and its folder. Rank 0 is a whole model: no plain LoRA was trained.
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
    return read_checked(ScanResults, folder, "landscape.json")


def read_evaluation(folder: Path) -> EvaluationResults:
    """evaluation.json of an evaluation's folder; UserError as `read_results`."""
    return read_checked(EvaluationResults, folder, "evaluation.json")


def read_forecast(folder: Path) -> ForecastResults:
    """forecast.json of a forecast's folder; UserError as `read_results`."""
    return read_checked(ForecastResults, folder, "forecast.json")
