"""What a method against forgetting may do to the training on a task, and the methods of a configuration.

A method is one file: a subclass of `Method` that overrides what it changes, and its options. Without methods training is
bit-identical to training without this file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from llm_forgetting.config.methods import PATH, method_of
from llm_forgetting.config.sections import ExperimentConfig, InterventionsConfig, TrainingConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.results import InterventionRecord, MethodRecord

Own = TypeVar("Own")


@dataclass(frozen=True)
class Start:
    """A task that is about to be learnt, as a method sees it.

    Args:
        model: At the checkpoint before the task.
        task: What is to be learnt.
        number: Of the task, from 1.
        earlier: All tasks before it; empty for a method that says it needs no old data.
        previous: The task just learnt: what a method would have estimated at its end it may estimate now.
        last: Whether no task follows.
        seed: Seeds what the method draws.
        text: Control text, which belongs to no task.
        kept: What the method saved with the checkpoint before; None where it saved nothing.
    """

    model: LanguageModel
    task: EncodedTask
    number: int = 1
    earlier: tuple[EncodedTask, ...] = ()
    previous: EncodedTask | None = None
    last: bool = True
    seed: int = 0
    text: Callable[[], Sequence[EncodedItem]] = tuple
    kept: Path | None = None


@dataclass(frozen=True)
class Cost:
    """What a method adds to training.

    Args:
        passes: Forward and backward passes per step, of which plain training makes 1; a forward pass alone is 1/3.
        graphs: Further forward passes whose activations are kept at the same time.
        adapter_copies: Copies of all trained weights.
        numbers: Further numbers in float32.
    """

    passes: float = 1.0
    graphs: int = 0
    adapter_copies: int = 0
    numbers: int = 0


class StepGradient(Protocol):
    """What gives an optimiser step its gradient in another way than one backward pass per micro-batch."""

    def add(self, backward: Callable[[], torch.Tensor], *, last: bool) -> torch.Tensor:
        """The loss of a micro-batch, whose gradient `backward` adds; after the `last` one of a step the gradients stand."""


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class Method(Generic[Own]):
    """A method against forgetting, which as it stands changes nothing; a subclass overrides what it changes.

    A killed training begins again with `begin` at the same checkpoint, and goes on from its last whole epoch. So what
    `begin` does must depend on its arguments alone, and no later call may keep anything that changes a number.
    """

    Options: ClassVar[Any] = NoOptions
    old_data: ClassVar[bool] = False
    """Whether items of earlier tasks are used while a task is learnt."""
    title: ClassVar[str | None] = None
    """What a dry run calls it, empty where it adds no work of its own; None for its name."""
    low_rank: ClassVar[bool] = False
    """Whether a plain LoRA adapter, delta W = s B A, is needed."""
    adapter_per_task: ClassVar[bool] = False
    """Whether every task is learnt by an adapter of its own."""

    def __init__(self, options: Own) -> None:
        self.options = options
        self.name = type(self).__module__.rpartition(".")[2]  # until the configuration names it

    def acts(self, number: int) -> bool:
        """Whether the training on task `number` (from 1) is changed; as it stands that on every task but the first."""
        return number > 1

    @property
    def moves(self) -> bool:
        """Whether `end` changes what the model answers; as it stands where a subclass overrides `end`.

        Scores during the training then end with those before it and those after it.
        """
        return type(self).end is not Method.end

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """What in the rest of a configuration the method cannot work with: sentences that go on from its name."""
        if self.low_rank and not config.low_rank:
            yield "needs a plain LoRA adapter (delta W = s B A), the trained update is more than that; leave it out"

    def require(self, model: AdaptedModel) -> None:
        """UserError where it cannot work with this model; asked before anything is trained."""

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """What it adds to training on a task after `earlier` others; `modules` are the adapted weights' (d_out, d_in)."""
        return Cost()

    def begin(self, start: Start) -> None:
        """Prepare for a task."""

    def items(self) -> Sequence[EncodedItem]:
        """Items that every epoch contains beside the task's own."""
        return ()

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """The settings that this task is trained with."""
        return config

    def optimizer(
        self, model: Any, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any]
    ) -> torch.optim.Optimizer | None:
        """An optimiser of `kind` with groups of its own; None: as Trainer makes it."""

    def penalty(self, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor | None:
        """What is added to the mean loss of a batch, nats, with a graph; None: nothing."""

    def gradient(self, parameters: Sequence[torch.Tensor]) -> StepGradient | None:
        """What gives the gradient of a step in another way; None: nothing."""

    def end(self, model: LanguageModel) -> None:
        """Change what training led to, before it is measured and saved."""

    def save(self, folder: Path) -> None:
        """Write what the next task's `begin` is to read as `kept`, into a folder beside the checkpoint's weights."""

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """Numbers about a training that is over, by name."""
        return {}

    def record(self, before: InterventionRecord, model: AdaptedModel) -> InterventionRecord:
        """`before` with what this method did in a training that is over."""
        options: Json = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self.options).items()  # type: ignore[call-overload]
        }
        own = MethodRecord(options, {name: float(value) for name, value in self.measured(model).items()})
        return dataclasses.replace(before, methods={**(before.methods or {}), self.name: own})


@dataclass(frozen=True)
class Methods:
    """All methods in the training on one task, in the order in which they act."""

    methods: tuple[Method[Any], ...] = field(default=())

    @staticmethod
    def of(config: ExperimentConfig, number: int | None = None) -> "Methods":
        """Those of a configuration that act on task `number`, or on any: `interventions`, then `training.methods` by name."""
        given = config.training.methods
        made = [*_interventions(config.interventions), *(method_of(name, given[name]) for name in sorted(given))]
        return Methods(tuple(_checked(m) for m in made if number is None or m.acts(number)))

    def require(self, model: AdaptedModel) -> None:
        """UserError where one of them cannot work with the model."""
        for method in self.methods:
            method.require(model)

    def begin(self, start: Start) -> None:
        """Let every method prepare for a task; what a method kept is in a folder of its name in `start.kept`."""
        for method in self.methods:
            kept = None if start.kept is None else start.kept / method.name
            own = start if method.old_data else dataclasses.replace(start, earlier=())
            method.begin(dataclasses.replace(own, kept=kept if kept is not None and kept.is_dir() else None))

    def items(self) -> list[EncodedItem]:
        """The items that join the task's own."""
        return [item for method in self.methods for item in method.items()]

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """The settings that the task is trained with."""
        for method in self.methods:
            config = method.settings(config)
        return config

    def optimizer(
        self, model: Any, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any]
    ) -> torch.optim.Optimizer | None:
        """The optimiser of the method that makes one; None where none does."""
        made = (method.optimizer(model, kind, arguments) for method in self.methods)
        return next((optimizer for optimizer in made if optimizer is not None), None)

    def penalised(self, loss: torch.Tensor, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
        """`loss` with the penalties of all methods."""
        for method in self.methods:
            penalty = method.penalty(model, items)
            loss = loss if penalty is None else loss + penalty
        return loss

    def gradient(self, parameters: Sequence[torch.Tensor]) -> StepGradient | None:
        """What gives the gradient of a step; UserError where two methods want to."""
        made = [(m.name, own) for m in self.methods if (own := m.gradient(parameters)) is not None]
        if len(made) > 1:
            raise UserError(
                f"only one method may give the gradient of a step, {' and '.join(name for name, _ in made)} do; leave one out"
            )
        return made[0][1] if made else None

    @property
    def moves(self) -> bool:
        """Whether one of them changes at the end what the model answers."""
        return any(method.moves for method in self.methods)

    def end(self, model: LanguageModel) -> None:
        """Let every method change what training led to."""
        for method in self.methods:
            method.end(model)

    def save(self, folder: Path) -> None:
        """Write what the methods keep, in a folder each; one that keeps nothing leaves no folder."""
        for method in self.methods:
            own = folder / method.name
            own.mkdir(parents=True)
            method.save(own)
            if not any(own.iterdir()):
                own.rmdir()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    @torch.no_grad()
    def record(self, model: AdaptedModel) -> InterventionRecord:
        """What all methods did in a training that is over."""
        record = InterventionRecord(sam=None, replayed={}, anchor=None, rescale=1.0)
        for method in self.methods:
            record = method.record(record, model)
        return record

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """What all of them add to training together."""
        costs = [method.cost(modules, earlier) for method in self.methods]
        return Cost(
            passes=1 + sum(cost.passes - 1 for cost in costs),
            graphs=sum(cost.graphs for cost in costs),
            adapter_copies=sum(cost.adapter_copies for cost in costs),
            numbers=sum(cost.numbers for cost in costs),
        )


def _interventions(settings: InterventionsConfig) -> Iterator[Method[Any]]:
    """The methods that `interventions` asks for; the rescaling first, so that the anchor holds on to what it leaves."""
    named: dict[str, tuple[object, Json]] = {
        "rescale": (settings.rescale != 1, {"factor": settings.rescale}),
        "sam": (
            settings.sam_rho,
            {"rho": settings.sam_rho, "adaptive": settings.sam_adaptive, "tasks": settings.sam_on},
        ),
        "anchor": (settings.anchor, {"strength": settings.anchor}),
        "replay": (settings.replay_items, {"items": settings.replay_items}),
    }
    for name, (wanted, options) in named.items():
        if wanted:
            yield _checked(method_of(name, options))


def _checked(method: object) -> Method[Any]:
    if not isinstance(method, Method):
        raise UserError(f"{PATH} must name subclasses of training.method.Method, {type(method).__name__} is none")
    return method
