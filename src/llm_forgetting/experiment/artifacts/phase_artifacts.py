"""Phases of a run by name, and the type of each one's artifact, phases/NAME.json. No torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from llm_forgetting.curvature.records import ForecastPhase, SpectrumRecord
from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.records import ForgettingSummary, Line
from llm_forgetting.landscape.between_records import BetweenCheckpoints
from llm_forgetting.landscape.records import CheckpointLandscape, LandscapeChange
from llm_forgetting.results import GuardReport, PairForecast, RunSetup, TrainingRecord

Result = TypeVar("Result")
INITIAL = "initial"
Lines = tuple[Line, ...]


def checkpoint_name(after_task: int) -> str:
    """`initial` for 0, else `after_taskN`: the checkpoints theta_0, theta_1, ... of the method."""
    return f"after_task{after_task}" if after_task else INITIAL


@dataclass(frozen=True)
class Phase(Generic[Result]):
    """Phase by the name of its artifact, the type of its result, and its title ("": it belongs to the one before).

    `parts` are beginnings of phases that may be computed apart: its artifact holds what they found, and then replaces them.
    """

    name: str
    kind: type[Result]
    title: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseArtifact(Generic[Result]):
    """Artifact of one phase, phases/NAME.json: what it cost, and its result; in a study also the cell it was taken from."""

    phase: str
    wall_seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: Annotated[int | None, OMITTED] = None
    result: Result
    taken_from: Annotated[str | None, OMITTED] = None


GUARDS = Phase("guards", GuardReport)
SETUP = Phase("setup", RunSetup, "set-up: model, tokenizer, tasks, guards, and the base model's scores")
EVALUATE_INITIAL = Phase("evaluate_initial", Lines)
RECOVERY = Phase("recovery", Lines, parts=("recovery_task",))
FORGETTING = Phase("forgetting", ForgettingSummary, "forgetting, with its uncertainty")
PLANE = Phase("checkpoint_plane", BetweenCheckpoints)
BETWEEN = Phase(
    "between_checkpoints",
    BetweenCheckpoints,
    "compare the landscapes, and look between the checkpoints",
    ("path_to_", PLANE.name),
)
FORECAST = Phase("forecast", tuple[ForecastPhase, ...], parts=("forecast_",))
COMPARISON = Phase("comparison", tuple[LandscapeChange, ...])
TRACKED = Phase("tracked", tuple[str, ...])


def train_phase(k: int, task: str = "") -> Phase[TrainingRecord]:
    """Fine-tuning on task k, called `task`."""
    return Phase(f"train_task{k}", TrainingRecord, f"fine-tune on task {k}, {task}")


def evaluation_phase(k: int) -> Phase[Lines]:
    """Scores of the checkpoint after task k."""
    return Phase(f"evaluate_{checkpoint_name(k)}", Lines, "evaluate on every task")


def quantised_phase(k: int) -> Phase[Lines]:
    """Scores of the checkpoint after task k with its weights quantised."""
    return Phase(f"{evaluation_phase(k).name}_quantised", Lines)


def probes_phase(k: int) -> Phase[Lines]:
    """Scores of the checkpoint after task k on what is never trained on."""
    return Phase(f"{evaluation_phase(k).name}_probes", Lines)


def landscape_phase(checkpoint: str) -> Phase[CheckpointLandscape]:
    """Landscape around a checkpoint (or a saved adapter) by its name."""
    after = checkpoint.removeprefix("after_task")
    return Phase(f"landscape_{checkpoint}", CheckpointLandscape, f"loss landscape after task {after}")


def curvature_phase(checkpoint: str) -> Phase[SpectrumRecord]:
    """Spectrum and sharpness at a checkpoint by its name."""
    return Phase(f"curvature_{checkpoint}", SpectrumRecord)


def recovery_phase(j: int) -> Phase[Lines]:
    """The relearning probe of task j alone."""
    return Phase(f"recovery_task{j}", Lines)


def path_phase(end: str) -> Phase[BetweenCheckpoints]:
    """The path to a checkpoint from the one before, by its name."""
    return Phase(f"path_to_{end}", BetweenCheckpoints)


def forecast_phase(start: str) -> Phase[tuple[ForecastPhase, ...]]:
    """The forecast at a checkpoint by its name, of the losses at the next."""
    return Phase(f"forecast_{start}", tuple[ForecastPhase, ...])


def pair_forecast_phase(k: int) -> Phase[PairForecast]:
    """Forecast of task number k between any two checkpoints."""
    return Phase(f"pair_forecast_task{k}", PairForecast)


_KNOWN: tuple[Phase[Any], ...] = (
    GUARDS, SETUP, RECOVERY, FORGETTING, BETWEEN, FORECAST, COMPARISON, TRACKED,
    Phase("train_", TrainingRecord), Phase("evaluate_", Lines), landscape_phase(""), curvature_phase(""),
    Phase("recovery_", Lines), PLANE, path_phase(""), forecast_phase(""),
    Phase("pair_forecast_", PairForecast),
)  # fmt: skip


def artifact_kind(phase: Phase[Result]) -> type[PhaseArtifact[Result]]:
    """The type of a phase's artifact, for the codec."""
    return PhaseArtifact[phase.kind]  # type: ignore[name-defined]


def phase_named(name: str) -> Phase[Any]:
    """The phase of an artifact's name; KeyError for an unknown one."""
    for phase in _KNOWN:
        if name == phase.name or (phase.name.endswith("_") and name.startswith(phase.name)):
            return Phase(name, phase.kind)
    raise KeyError(name)


_FOLLOWING = {
    GUARDS.name: (SETUP.name,),
    "train_": ("",),
    "evaluate_": (FORGETTING.name,),
    RECOVERY.name: (FORGETTING.name,),
    "landscape_": ("landscape_", COMPARISON.name),
    BETWEEN.name: (FORECAST.name,),
    "path_to_": (BETWEEN.name, FORECAST.name),
    PLANE.name: (BETWEEN.name,),
}
"""Beginnings of phases, and beginnings of the phases after them whose results theirs decide."""


def follows_from(later: str, earlier: str) -> bool:
    """Whether the result of phase `earlier` decides that of `later`, which is computed after it."""
    return any(earlier.startswith(start) and later.startswith(ends) for start, ends in _FOLLOWING.items())
