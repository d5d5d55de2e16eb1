"""Artifacts of phases, phases/NAME.json: the type of each."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from llm_forgetting.curvature.records import ForecastPhase, SpectrumRecord
from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.records import (
    ForgettingSummary,
    Line,
)
from llm_forgetting.landscape.records import (
    BetweenCheckpoints,
    CheckpointLandscape,
    LandscapeChange,
)
from llm_forgetting.results import GuardReport, RunSetup, TrainingRecord

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseArtifact(Generic[Result]):
    """Artifact of one phase, phases/NAME.json: what it cost, and its result; in a study also the cell it was taken from."""

    phase: str
    wall_seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: Annotated[int | None, OMITTED] = None
    result: Result
    taken_from: Annotated[str | None, OMITTED] = None


_RESULTS: dict[str, Any] = {
    "guards": GuardReport,
    "setup": RunSetup,
    "train_": TrainingRecord,
    "evaluate_": tuple[Line, ...],
    "recovery": tuple[Line, ...],
    "landscape_": CheckpointLandscape,
    "curvature_": SpectrumRecord,
    "forgetting": ForgettingSummary,
    "between_checkpoints": BetweenCheckpoints,
    "forecast": tuple[ForecastPhase, ...],
    "comparison": tuple[LandscapeChange, ...],
    "tracked": tuple[str, ...],
}


def phase_kind(name: str) -> Any:
    """The type of a phase's artifact by the phase's name, for the codec; KeyError for an unknown one."""
    for known, result in _RESULTS.items():
        if name == known or (known.endswith("_") and name.startswith(known)):
            return PhaseArtifact[result]  # type: ignore[valid-type]
    raise KeyError(name)
