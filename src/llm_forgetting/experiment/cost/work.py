"""What a run passes through its model: items and tokens of every phase. Fits are counted with their fewest points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.analysis.checkpoint_plane import plane_evaluations
from llm_forgetting.experiment.analysis.landscape import evaluations
from llm_forgetting.experiment.analysis.paths import path_evaluations
from llm_forgetting.experiment.analysis.spectrum import curvature_evaluations
from llm_forgetting.experiment.cost.lengths import ItemLengths
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.generation import is_generated
from llm_forgetting.training.during import items_during, steps_during
from llm_forgetting.training.fine_tuning import optimizer_steps
from llm_forgetting.training.method import Methods
from llm_forgetting.training.methods.replay import Replay

# A Hessian-vector product: values and derivatives forward, and both back.
FORWARDS_PER_PRODUCT = 4


@dataclass(frozen=True)
class TaskSize:
    """Items of a task's splits, the mean number of tokens of their prompts, and of what else is passed to judge each (what is
    written, and the options); whether they are questions, with options that can be rotated.
    """

    name: str
    train: int
    test: int
    tokens: float
    judged: float = 0
    questions: bool = True


@dataclass(frozen=True)
class Work:
    """Work of one kind of phase: passes of items (a product is worth several), and tokens by the phase whose piece costs what
    they cost (see `needs`).
    """

    label: str
    passes: float
    tokens: Mapping[str, float]


def task_sizes(lengths: ItemLengths) -> list[TaskSize]:
    """Sizes of the tasks."""
    return _sizes(lengths.tasks)


def probe_sizes(lengths: ItemLengths) -> list[TaskSize]:
    """Sizes of the probes that we score ourselves."""
    return _sizes(lengths.probes)


def _sizes(tasks: Sequence[EncodedTask]) -> list[TaskSize]:
    return [
        TaskSize(
            task.name, len(task.train), len(task.test), _mean(items), _judged(items), not any(i.places for i in items)
        )
        for task in tasks
        if (items := [*task.train, *task.test])
    ]


def probe_work(lengths: ItemLengths) -> list[Work]:
    """What the tasks that are only scored cost at all checkpoints."""
    items, times = [item for probe in lengths.probes for item in probe.test], len(lengths.tasks) + 1
    label = f"{len(lengths.probes)} probe{'s' if len(lengths.probes) > 1 else ''} at {times} checkpoints"
    tokens = sum(len(item.input_ids) for item in items)
    return [Work(label, times * len(items), {"scores": times * tokens})] if items else []


def _mean(items: Sequence[EncodedItem]) -> float:
    return sum(len(item.input_ids) for item in items) / len(items)


def _judged(items: Sequence[EncodedItem]) -> float:
    """Tokens that greedy decoding writes after each, if it ends where the right completion does, and those of its options."""
    written = sum(len(item.targets) for item in items if is_generated(item))
    return (written + sum(len(option.input_ids) for item in items for option in item.alternatives)) / len(items)


def work_of(config: ExperimentConfig, sizes: list[TaskSize], probes: Sequence[TaskSize] = ()) -> list[Work]:
    """All work of a run, but for the scores of `probes` at checkpoints."""
    checkpoints = len(sizes)
    scored = sum(size.train + size.test for size in sizes)
    scored_tokens = sum((size.train + size.test) * size.tokens for size in sizes)
    work = []
    for k, size in enumerate(sizes):
        work.append(_training_work(config, size, sizes[:k]))
    work.append(
        Work(
            f"evaluate {checkpoints + 1} checkpoints",
            (checkpoints + 1) * scored,
            {"scores": (checkpoints + 1) * scored_tokens},
        )
    )
    judged = sum((size.train + size.test) * size.judged for size in sizes)
    if judged:
        times = (1 + len(config.evaluation.quantised)) * (checkpoints + 1)
        work.append(Work("write completions, compare options", times * scored, {"scores": times * judged}))
    if kinds := config.evaluation.quantised:
        times = len(kinds) * (checkpoints + 1)
        work.append(Work("the same, quantised", times * scored, {"scores": times * scored_tokens}))
    return [
        *work,
        *_during(config, sizes, probes),
        *_probes(config, sizes),
        *_scans(config, sizes),
        *_derivatives(config, sizes),
    ]


def _training_work(config: ExperimentConfig, size: TaskSize, earlier: list[TaskSize]) -> Work:
    """What fine-tuning on one task costs: replayed items join its own, and a method may pass all of them through again."""
    methods = Methods.of(config, len(earlier) + 1)
    training = methods.settings(config.training)
    replayed = _replayed(methods, size, earlier)
    items = size.train + sum(count for count, _ in replayed)
    tokens = size.train * size.tokens + sum(count * each for count, each in replayed)
    times = training.num_epochs * methods.cost((), len(earlier)).passes
    titles = [method.name if method.title is None else method.title for method in methods.methods]
    named = "".join(f", {title}" for title in titles if title)
    label = f"fine-tune on {size.name} ({optimizer_steps(items, training)} steps{named})"
    return Work(label, times * items, {"training": times * tokens})


def _during(config: ExperimentConfig, sizes: list[TaskSize], probes: Sequence[TaskSize]) -> list[Work]:
    """What scores during the trainings cost."""
    settings, passes, tokens = config.evaluation, 0.0, 0.0
    if not settings.during:
        return []
    for k, size in enumerate(sizes, start=1):
        steps = optimizer_steps(size.train, config.training)
        count = items_during(settings, k + len(probes), steps, size.train * config.training.num_epochs)
        points = len(steps_during(settings.during, steps))
        for task in (*sizes[:k], *probes):
            held_out = settings.during_split == "test" or task in probes
            items = points * min(count, task.test if held_out else task.train)
            passes, tokens = passes + items, tokens + items * task.tokens
    return [Work(f"scores at {settings.during + 1} points of every training", passes, {"scores": tokens})]


def _replayed(methods: Methods, size: TaskSize, earlier: list[TaskSize]) -> list[tuple[int, float]]:
    """Items, and tokens of each, that join the task's own; passages of text are taken to be as long as its items."""
    added = [method for method in methods.methods if isinstance(method, Replay)]
    counts = [method.count(size.train, len(earlier)) for method in added]
    old = [(min(count, task.train), task.tokens) for count in counts for task in earlier]
    return [*old, *((method.options.text, size.tokens) for method in added if method.options.text)]


def _probes(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What it costs to tell lost knowledge from a changed habit of answering."""
    settings, earlier = config.evaluation, sizes[:-1]
    work: list[Work] = []
    asked = [size for size in earlier if size.questions]
    if settings.rotations and asked:  # of four options, at two checkpoints
        passes = [6 * size.train for size in asked]
        tokens = sum(count * size.tokens for count, size in zip(passes, asked, strict=True))
        work.append(Work("rotated options", sum(passes), {"scores": tokens}))
    if settings.recovery_items:
        starts = 2 if settings.recovery_control else 1
        few = [min(settings.recovery_items, size.train // 2) for size in earlier]
        passes = [
            starts * (settings.recovery_epochs * n + size.train - n) for n, size in zip(few, earlier, strict=True)
        ]
        again = sum(starts * settings.recovery_epochs * n * size.tokens for n, size in zip(few, earlier, strict=True))
        others = sum(starts * (size.train - n) * size.tokens for n, size in zip(few, earlier, strict=True))
        work.append(Work("learn a few items again", sum(passes), {"training": again, "scores": others}))
    return work


def _scans(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What the landscapes around the checkpoints and between them cost at the least."""
    landscape, last = config.landscape, len(sizes)

    def passes(tasks: list[int]) -> tuple[float, float]:
        """Items and tokens of one point."""
        items = landscape.num_items
        return items * len(tasks), sum(items * sizes[number - 1].tokens for number in tasks)

    def scan(label: str, points: int, scans: list[list[int]], kind: str = "plane") -> Work:
        """`points` points on each of several scans, each of its own tasks."""
        items, tokens = map(sum, zip(*map(passes, scans), strict=True))
        return Work(label, points * items, {kind: points * tokens})

    work = []
    if landscape.tasks != "none":
        each, self_test = evaluations(landscape), 6 * min(landscape.self_test_items, landscape.num_items)
        around = (
            f"landscape of {last} checkpoints ({each} points each{'' if landscape.method == 'grid' else ' or more'})"
        )
        surfaces = scan(around, each, [landscape.tasks_around(k, last) for k in range(1, last + 1)], "landscape")
        tests = last * self_test
        tokens = surfaces.tokens["landscape"] + tests * sizes[0].tokens
        work.append(Work(around, surfaces.passes + tests, {"landscape": tokens}))
    if landscape.paths and last > 1:
        path = path_evaluations()
        ends = [landscape.tasks_between(k, k + 1, last) for k in range(1, last)]
        work.append(scan(f"paths between them ({last - 1} of {path} points or more)", path, ends))
    if landscape.checkpoint_plane:
        plane = plane_evaluations()
        label = f"plane through three of them ({plane} points or more)"
        work.append(scan(label, plane, [landscape.tasks_between(1, last, last)]))
    if landscape.trajectory:
        epochs = config.training.num_epochs * last
        label = f"the training trajectory ({epochs} points)"
        work.append(scan(label, epochs, [landscape.tasks_between(1, last, last)], "landscape"))
    return work


def _derivatives(config: ExperimentConfig, sizes: list[TaskSize]) -> list[Work]:
    """What spectra and forecasts cost, in forward passes of the landscape items."""
    items, curvature = config.landscape.num_items, config.curvature
    work: list[Work] = []
    if curvature.spectrum:
        products = curvature_evaluations(curvature)
        measured = sizes if curvature.checkpoints == "all" else sizes[:1]
        passes = products * FORWARDS_PER_PRODUCT * items
        tokens = products * items * sum(size.tokens for size in measured)
        label = f"curvature of {len(measured)} checkpoints ({products} products each)"
        work.append(Work(label, passes * len(measured), {"spectrum": tokens}))
    if curvature.forecast:
        # Two splits of every task that is forecast: a product, and the loss at the end.
        forecast = [number for k in range(1, len(sizes)) for number in config.landscape.tasks_forecast(k)]
        tokens = sum(2 * items * sizes[number - 1].tokens for number in forecast)
        passes = (FORWARDS_PER_PRODUCT + 1) * 2 * items * len(forecast)
        work.append(Work("forecasts", passes, {"forecast": tokens, "landscape": tokens}))
    return work
