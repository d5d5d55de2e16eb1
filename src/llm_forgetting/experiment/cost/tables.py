"""Cost of a run before it is started: phases, sizes, seconds, bytes. All are estimates."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UnreachableError
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.progress import duration
from llm_forgetting.report.tables.run import Table
from llm_forgetting.tasks.prompts import render
from llm_forgetting.training.fine_tuning import optimizer_steps

# Measured with SmolLM2's tokenizer: 3.2 (abstract algebra's formulas) to 4.7 (law).
CHARACTERS_PER_TOKEN = 4.0
# A training pass costs two forwards more than a scoring pass' one: gradients flow through the frozen weights to the
# adapter, but none are formed for them. A forward reaches about this share of the machine's own matrix rate.
TRAINING_PASSES = 2.4
# Bytes of Python, PyTorch and the rest.
REST = 0.7e9
EFFICIENCY = 0.65
# A Hessian-vector product: values and derivatives forward, and both back.
FORWARDS_PER_PRODUCT = 4
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the transformer's body (what every token passes) and in all; `origin` says how they are known."""

    body: float
    total: float
    hidden: int
    layers: int
    origin: str


@dataclass(frozen=True)
class TaskSize:
    """Items of a task's splits, and the mean number of tokens of their prompts."""

    name: str
    train: int
    test: int
    tokens: float
    note: str = ""


@dataclass(frozen=True)
class Work:
    """Work of one kind of phase: passes of items, and tokens of as many forward passes as it is worth."""

    label: str
    passes: float
    tokens: float


def model_size(name: str) -> ModelSize | None:
    """Sizes of the backbone, without loading its weights; None where they cannot be known from here."""
    if name == "embedded":
        return ModelSize(106.2e6, 134.5e6, 576, 30, "SmolLM2-135M")
    if name == "synthetic":
        return ModelSize(74e3, 84e3, 64, 2, "random two-layer Llama")
    known = _from_local_config(name)
    if known is not None:
        return known
    match = re.search(r"(\d+(?:\.\d+)?)b\b", name.lower())
    if match is None:
        return None
    total = float(match.group(1)) * 1e9
    # Llama's own proportions: 12 hidden^2 per layer, layers = hidden / 128.
    hidden = round((total * 128 / 12) ** (1 / 3))
    return ModelSize(total, total, hidden, hidden // 128, "guessed from its name")


def _from_local_config(name: str) -> ModelSize | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return None
    hidden, layers = config.hidden_size, config.num_hidden_layers
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    body = layers * (4 * hidden**2 + 3 * hidden * wide)
    return ModelSize(body, body + config.vocab_size * hidden, hidden, layers, "its config.json")


def matrix_rate() -> float:
    """Floating-point operations per second of a float32 matrix product of this machine's CPU, measured now."""
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def estimate(config: ExperimentConfig, notify: Callable[[str], None]) -> list[Table]:
    """The phases with their sizes and the estimate of seconds and memory, as tables to print."""
    sizes = _task_sizes(config, notify)
    size = model_size(config.model.name)
    per_token = 2 * size.body / (EFFICIENCY * matrix_rate()) if size is not None else None
    work = _work(config, sizes)
    rows = [(phase.label, f"{phase.passes:,.0f}", _seconds(phase.tokens, per_token)) for phase in work]
    total = _seconds(sum(phase.tokens for phase in work), per_token)
    note = (
        "estimated for this machine's CPU from a matrix product timed now; on a GPU far less."
        if size
        else ("the model's size is not known here, so no time can be estimated.")
    )
    note += f" Fits take as many points as they need, at most {config.landscape.max_evaluations} each; counted are the fewest."
    phases = Table("Phases", ("phase", "item passes", "time"), (*rows, ("all", "", total)), note)
    tasks = Table(
        "Tasks",
        ("task", "train", "test", "tokens per item, about"),
        tuple((task.name, str(task.train), str(task.test), f"{task.tokens:.0f}") for task in sizes),
        " ".join(dict.fromkeys(task.note for task in sizes if task.note)),
    )
    return [tasks, phases, _memory(config, size, max(task.tokens for task in sizes))]


def seconds_of(config: ExperimentConfig, notify: Callable[[str], None]) -> float | None:
    """Seconds of a whole run on this machine's CPU; None where the model's size is not known."""
    size = model_size(config.model.name)
    if size is None:
        return None
    tokens = sum(phase.tokens for phase in _work(config, _task_sizes(config, notify)))
    return tokens * 2 * size.body / (EFFICIENCY * matrix_rate())


def memory_bytes(config: ExperimentConfig) -> float:
    """Memory of a run's process, about, with prompts as long as they may be; 0 where the model's size is not known."""
    size = model_size(config.model.name)
    if size is None:
        return 0.0
    width = _BYTES[config.model.dtype]
    return size.total * width * 2 + _activations(config, size, config.data.max_tokens) + REST


def _task_sizes(config: ExperimentConfig, notify: Callable[[str], None]) -> list[TaskSize]:
    data = config.data
    try:
        tasks = tasks_of(data, source_of(data, notify))
    except UnreachableError as error:  # whatever else is wrong, a misspelt task for one, is an error and no assumption
        train = data.train_items or round((data.items_per_task or 200) * data.train_fraction)
        test = data.test_items or (data.items_per_task or 200) - train
        return [TaskSize(name, train, test, 100.0, f"sizes assumed: {error}") for name in data.tasks]
    sizes = []
    for task in tasks:
        items = task.train + task.test
        characters = sum(len(render(item, task.shots.get(item.subject, ()))) for item in items)
        sizes.append(
            TaskSize(task.name, len(task.train), len(task.test), characters / CHARACTERS_PER_TOKEN / len(items))
        )
    return sizes


def _work(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    checkpoints = len(sizes)
    scored = sum(size.train + size.test for size in sizes)
    scored_tokens = sum((size.train + size.test) * size.tokens for size in sizes)
    work = []
    for k, size in enumerate(sizes):
        work.append(_training_work(config, size, sizes[:k]))
    work.append(
        Work(f"evaluate {checkpoints + 1} checkpoints", (checkpoints + 1) * scored, (checkpoints + 1) * scored_tokens)
    )
    return [*work, *_probes(config, sizes), *_scans(config, sizes), *_derivatives(config, sizes)]


def _training_work(config: ExperimentConfig, size: TaskSize, earlier: list[TaskSize]) -> Work:
    """What fine-tuning on one task costs: replayed items join its own, and SAM passes all of them through twice."""
    training, interventions = config.training, config.interventions
    replayed = [(min(interventions.replay_items, task.train), task.tokens) for task in earlier]
    items = size.train + sum(count for count, _ in replayed)
    tokens = size.train * size.tokens + sum(count * each for count, each in replayed)
    sam = interventions.sam_rho > 0 and (interventions.sam_on == "all" or not earlier)
    times = training.num_epochs * (2 if sam else 1)
    slower = TRAINING_PASSES + (1 if training.gradient_checkpointing else 0)
    label = f"fine-tune on {size.name} ({optimizer_steps(items, training)} steps{', SAM' if sam else ''})"
    return Work(label, times * items, slower * times * tokens)


def _probes(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What it costs to tell lost knowledge from a changed habit of answering."""
    settings, earlier = config.evaluation, sizes[:-1]
    work: list[Work] = []
    if settings.rotations:  # of four options, at two checkpoints
        passes = [6 * size.train for size in earlier]
        tokens = sum(count * size.tokens for count, size in zip(passes, earlier, strict=True))
        work.append(Work("rotated options", sum(passes), tokens))
    if settings.recovery_items:
        starts = 2 if settings.recovery_control else 1
        few = [min(settings.recovery_items, size.train // 2) for size in earlier]
        passes = [
            starts * (settings.recovery_epochs * n + size.train - n) for n, size in zip(few, earlier, strict=True)
        ]
        tokens = sum(
            starts * size.tokens * (TRAINING_PASSES * settings.recovery_epochs * n + size.train - n)
            for n, size in zip(few, earlier, strict=True)
        )
        work.append(Work("learn a few items again", sum(passes), tokens))
    return work


def _scans(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What the landscapes around the checkpoints and between them cost at the least."""
    from llm_forgetting.experiment.analysis.checkpoint_plane import plane_evaluations
    from llm_forgetting.experiment.analysis.landscape import evaluations
    from llm_forgetting.experiment.analysis.paths import path_evaluations

    landscape, checkpoints = config.landscape, len(sizes)
    per_point = landscape.num_items * checkpoints
    point_tokens = sum(landscape.num_items * size.tokens for size in sizes)

    def scan(label: str, points: int) -> Work:
        return Work(label, points * per_point, points * point_tokens)

    each, self_test = evaluations(landscape), 6 * min(landscape.self_test_items, landscape.num_items)
    around = (
        f"landscape of {checkpoints} checkpoints ({each} points each{'' if landscape.method == 'grid' else ' or more'})"
    )
    planes, tests = scan(around, checkpoints * each), checkpoints * self_test
    work = [Work(around, planes.passes + tests, planes.tokens + tests * sizes[0].tokens)]
    paths, path = checkpoints - 1, path_evaluations()
    if landscape.paths:
        work.append(scan(f"paths between them ({paths} of {path} points or more)", paths * path))
    if landscape.checkpoint_plane:
        plane = plane_evaluations()
        work.append(scan(f"plane through three of them ({plane} points or more)", plane))
    if landscape.trajectory:
        epochs = config.training.num_epochs * checkpoints
        work.append(scan(f"the training trajectory ({epochs} points)", epochs))
    return work


def _derivatives(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What spectra and forecasts cost, in forward passes of the landscape items."""
    from llm_forgetting.experiment.analysis.spectrum import curvature_evaluations

    items, curvature = config.landscape.num_items, config.curvature
    work: list[Work] = []
    if curvature.spectrum:
        products = curvature_evaluations(curvature)
        passes = products * FORWARDS_PER_PRODUCT * items
        measured = sizes if curvature.checkpoints == "all" else sizes[:1]
        tokens = passes * sum(size.tokens for size in measured)
        label = f"curvature of {len(measured)} checkpoints ({products} products each)"
        work.append(Work(label, passes * len(measured), tokens))
    if curvature.forecast:
        # Two splits of every earlier task: a product, and the loss at the end.
        each = [2 * (FORWARDS_PER_PRODUCT + 1) * items * (len(sizes) - k) for k in range(1, len(sizes))]
        tokens = sum(count * size.tokens for count, size in zip(each, sizes, strict=False))
        work.append(Work("forecasts", sum(each), tokens))
    return work


def _seconds(tokens: float, per_token: float | None) -> str:
    return "?" if per_token is None else duration(tokens * per_token, rough=True)


def _memory(config: ExperimentConfig, size: ModelSize | None, tokens: float) -> Table:
    header = ("memory", "about")
    if size is None:
        return Table("Memory", header, (("backbone", "unknown: the model's size is not known here"),))
    width = _BYTES[config.model.dtype]
    weights = size.total * width
    activations = _activations(config, size, tokens)
    rows = (
        (f"backbone ({size.total / 1e6:,.0f} M parameters, {config.model.dtype}; {size.origin})", _gigabytes(weights)),
        ("activations of one training batch", _gigabytes(activations)),
        ("Python, PyTorch and the rest", _gigabytes(REST)),
        ("all", _gigabytes(weights + activations + REST)),
    )
    return Table("Memory", header, rows)


def _activations(config: ExperimentConfig, size: ModelSize, tokens: float) -> float:
    """Bytes that a training batch keeps for its backward pass."""
    # Per token and layer a training step keeps about 34 hidden-sized activations; checkpointing keeps one.
    kept = 34 if not config.training.gradient_checkpointing else 1
    batch = config.training.batch_size * tokens
    return batch * size.hidden * _BYTES[config.model.dtype] * (kept * size.layers + 34)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
