"""Records of a run: results.json. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from llm_forgetting.config.methods import methods_as_recorded
from llm_forgetting.config.sections import EMBEDDED_MODEL, ExperimentConfig
from llm_forgetting.curvature.records import ForecastRecord, SpectrumRecord
from llm_forgetting.files import OMITTED, decode_lines
from llm_forgetting.files.manifest import checked, read_checked, read_manifest
from llm_forgetting.forgetting.frontier import ScoresDuring
from llm_forgetting.forgetting.records import (
    ForgettingBySplit,
    Line,
    Probe,
    QuantisationCost,
    SpuriousForgetting,
    TextDrift,
)
from llm_forgetting.landscape.between_records import CheckpointPlaneScan, PathScan
from llm_forgetting.landscape.records import CheckpointLandscape, LandscapeChange
from llm_forgetting.tasks.prompt_format import PromptFormat
from llm_forgetting.tasks.scoring import Scoring


@dataclass(frozen=True)
class Timing:
    """Time (seconds) and peak memory (bytes) of a phase; the GPU's only where one was in use."""

    wall_seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: Annotated[int | None, OMITTED] = None


@dataclass(frozen=True)
class Environment:
    """Machine of a run, as far as it can change a rounding error."""

    platform: str
    machine: str
    cpu_count: int | None


@dataclass(frozen=True)
class ItemHash:
    """Item of a split by id, with the SHA-256 of its content."""

    id: str
    sha256: str


@dataclass(frozen=True)
class Splits:
    """Items of both splits of a task."""

    train: tuple[ItemHash, ...]
    test: tuple[ItemHash, ...]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of all prompts of a split."""

    train: int
    test: int


@dataclass(frozen=True)
class TaskSetup:
    """Task as it was frozen at the start: its subjects, prompt, items, few-shot examples by subject, the numbers of
    options that occur (completions have neither prompt nor options), and what had to be shortened. `landscape_items` are
    the ids of those whose loss is the landscape. `score`: how completions are judged, which is what their accuracy is; where
    it is absent by the likeliest token after the right ones.
    """

    name: str
    subjects: tuple[str, ...]
    duplicates_removed: int
    shots: dict[str, tuple[str, ...]]
    options: tuple[int, ...]
    prompt: PromptFormat | None
    splits: Splits
    truncated_questions: int
    shots_dropped: int
    tokens: TokenCounts
    landscape_items: tuple[str, ...]
    score: Annotated[Scoring | None, OMITTED] = None

    @property
    def completions(self) -> bool:
        """Whether its items are completions, among options or not."""
        return self.score is not None or not self.options


@dataclass(frozen=True)
class ModelDescription:
    """Model as it was loaded: numbers of parameters, of the adapter's, of adapted modules and of their weights;
    precision, device and threads. `title` says what the weights are where the name does not; `quantization` how they are
    quantised, and `arithmetic` what the numbers of a quantised model are of.
    """

    name: str
    architecture: str
    parameters: int
    adapter_parameters: int
    adapted_modules: int
    adapted_weights: int
    dtype: str
    device: str
    threads: int
    title: Annotated[str | None, OMITTED] = None
    quantization: Annotated[str | None, OMITTED] = None
    arithmetic: Annotated[str | None, OMITTED] = None

    @property
    def precision(self) -> str:
        """Precision of the weights, in words."""
        return self.dtype if self.quantization is None else f"{self.quantization} and {self.dtype}"

    @property
    def weights(self) -> str:
        """What the weights are, also in results that are older than `title`."""
        return self.title or (EMBEDDED_MODEL if self.name == "embedded" else self.name)


@dataclass(frozen=True)
class GuardReport:
    """Guards' measurements: the largest difference of a letter logit between batch sizes, and what was allowed; the
    difference of the mean loss between two passes (nats); the mean probability that the base model gives to the option
    letters.
    """

    items: int
    batch_size: int
    batch_logit_difference: float
    batch_tolerance: float
    repeat_loss_difference: float
    letter_mass: float
    letter_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """Protocol of the experiment, in words, and the number of runs behind its numbers. `weighting`: what a mean loss of
    completions is over; absent where there are none, and in older results (over tokens).
    """

    adapter: str
    optimizer: str
    train_split: str
    landscape_items: str
    runs: int
    weighting: Annotated[str | None, OMITTED] = None


@dataclass(frozen=True)
class RunSetup:
    """Set-up of a run, as the phase `setup` leaves it; results.json holds the same keys among its own."""

    config_fingerprint: str
    task_names: tuple[str, ...]
    source: str
    tasks: tuple[TaskSetup, ...]
    model: ModelDescription
    initial_adapter_sha256: str
    guards: GuardReport
    protocol: Protocol
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Step of the optimiser: the loss in nats, the gradient's norm before clipping, and the learning rate."""

    epoch: Annotated[float | None, OMITTED] = None
    step: Annotated[float | None, OMITTED] = None
    loss: float
    grad_norm: Annotated[float | None, OMITTED] = None
    learning_rate: Annotated[float | None, OMITTED] = None


@dataclass(frozen=True)
class SharpnessAwareRecord:
    """Sharpness-aware minimisation: radius, and whether relative to every weight."""

    rho: float
    adaptive: bool


@dataclass(frozen=True)
class AnchorRecord:
    """Anchor: strength (nats per squared unit), its penalty at the end (nats), and the distance |delta W - delta
    W_start|_F.
    """

    strength: float
    penalty: float
    distance: float


MethodOption = bool | int | float | str | None | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class MethodRecord:
    """Method against forgetting: its options, and numbers about a training that is over, by name."""

    options: dict[str, MethodOption]
    measured: dict[str, float]


@dataclass(frozen=True)
class InterventionRecord:
    """Interventions in the training on one task: None or empty where off; `replayed` are item ids by earlier task.

    `methods`: the other methods of `training.methods`, by name.
    """

    sam: SharpnessAwareRecord | None
    replayed: dict[str, tuple[str, ...]]
    anchor: AnchorRecord | None
    rescale: float
    methods: Annotated[dict[str, MethodRecord] | None, OMITTED] = None


@dataclass(frozen=True)
class TrainingRecord:
    """Training on one task: steps, interventions, the hash of the adapter afterwards, and a log entry per step.

    during: scores of this task and of earlier ones at fractions of the training, where `evaluation.during` asks for them.
    """

    task: str
    optimizer_steps: int
    interventions: InterventionRecord
    adapter_sha256: str
    log: tuple[TrainingStep, ...]
    during: Annotated[ScoresDuring | None, OMITTED] = None


@dataclass(frozen=True, eq=False)
class Results:
    """Results of one run: results.json. Losses are in nats per item, times in seconds, memory in bytes, accuracies are
    shares.

    Checkpoints are called `initial`, `after_task1`, ...; landscapes, curvature and forgetting are keyed by them or by
    task.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)

    schema_version: Literal[1]
    """Version of this schema. It grows when a field changes its meaning or goes away."""
    answer: str
    """The answer of the run: what became of each earlier task, on the items that were trained on; before it whether
    letters rather than answers were learnt, and whether learning is not shown."""
    config: ExperimentConfig
    """The whole configuration, all defaults filled in. `config.yaml` beside this file holds the same."""
    versions: dict[str, str]
    """Version of Python and of every package that computes a number, by package name."""
    environment: Environment
    """The machine, as far as it can change a rounding error."""
    config_fingerprint: str
    """SHA-256 of everything in `config` that can change a number, which is all but `output`, and of the content of
    the file `data.definitions`. Equal fingerprints = the same experiment."""
    task_names: tuple[str, ...]
    """The tasks by their unambiguous names, in the order they were learnt."""
    source: str
    """Where the items come from: data set, licence, citation."""
    tasks: tuple[TaskSetup, ...]
    """The tasks, in the order they were learnt."""
    model: ModelDescription
    """The model as it was run."""
    initial_adapter_sha256: str
    """Hash of the fresh adapter's weights (B = 0, A random)."""
    guards: GuardReport
    """What the start-up checks measured, on up to 16 items of mixed length."""
    protocol: Protocol
    """How it was done, in words."""
    warnings: tuple[str, ...]
    """What is worth worrying about, one sentence each; empty if nothing is."""
    training: tuple[TrainingRecord, ...]
    """One entry per task, in order."""
    forgetting: ForgettingBySplit
    """Accuracy, loss and every variant of forgetting. Retention is read off `train`, generalisation off `test`; they
    forget differently."""
    spurious: dict[str, SpuriousForgetting]
    """Lost knowledge or a changed habit of answering: every earlier task's trained items after itself and after the
    last task, by checkpoint, and what a few items bring back."""
    text: TextDrift
    """Loss on text that belongs to no task, nats per token, mean over passages."""
    landscapes: dict[str, CheckpointLandscape]
    """The loss landscape around every checkpoint after fine-tuning, by checkpoint name."""
    landscape_comparison: tuple[LandscapeChange, ...]
    """How each task's surface changed between successive checkpoints."""
    paths: tuple[PathScan, ...]
    """The loss on the straight path between every two successive checkpoints, in the order of the tasks."""
    checkpoint_plane: CheckpointPlaneScan | None
    """The plane through three checkpoints; null where it was not asked for or could not be measured (`between_notes`
    says why)."""
    between_notes: tuple[str, ...]
    """What between the checkpoints could not be measured, and why, one sentence each."""
    curvature: dict[str, SpectrumRecord]
    """Second derivatives of the loss of the task just learnt at every checkpoint, by checkpoint; empty unless
    curvature.spectrum. In canonical adapter coordinates unless said otherwise."""
    forecasts: tuple[ForecastRecord, ...]
    """For every step from one trained checkpoint to the next: what the landscape at its start forecasts of the tasks
    learnt before. Empty where curvature.forecast is off."""
    figures: tuple[str, ...]
    """Names of the PNG files in the run folder, the overview first."""
    timings: dict[str, Timing]
    """Cost of every phase, by phase name, in the order they were computed. The only part that differs when a run is
    repeated on the same machine."""
    quantised: Annotated[tuple[QuantisationCost, ...] | None, OMITTED] = None
    """What quantising every checkpoint costs every task; absent unless evaluation.quantised."""
    probes: Annotated[tuple[Probe, ...] | None, OMITTED] = None
    """Tasks that are never trained on; in no average and no measure of forgetting. Absent without data.probes."""


def read_results(folder: Path) -> Results:
    """results.json of a run's folder; UserError names the file and what is wrong in it, also where it is damaged."""
    with methods_as_recorded():
        return read_checked(Results, folder, "results.json")


def read_items(folder: Path) -> list[Line]:
    """Lines of items.jsonl in a folder, none where none were written; UserError as `read_results`."""
    path = folder / "items.jsonl"
    if not path.exists() and path.name not in read_manifest(folder).artifacts:
        return []
    return decode_lines(list[Line], checked(folder, path.name).decode(), file=str(path))
