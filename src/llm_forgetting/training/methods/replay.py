"""Replay: trained items of earlier tasks, or control text, join the new task's items in every epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llm_forgetting.config.rules import at_least
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.results import InterventionRecord
from llm_forgetting.seeding import generator
from llm_forgetting.training.method import Method, Start

CONTROL_TEXT = "control text"


@dataclass(frozen=True)
class ReplayOptions:
    """Options of replay; at least one must ask for something.

    Args:
        items: Trained items of every earlier task in each epoch.
        ratio: The same as a share of the new task's items, spread evenly over the earlier tasks.
        text: Passages of control text in each epoch.
    """

    items: int = at_least(0, default=0)
    ratio: float = at_least(0, default=0.0)
    text: int = at_least(0, default=0)


class Replay(Method[ReplayOptions]):
    """`replayed` holds the items of earlier tasks, by task, that every epoch contains too."""

    Options = ReplayOptions
    old_data = True
    replayed: Mapping[str, tuple[EncodedItem, ...]] = {}

    title = ""

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """Nothing is replayed where nothing is asked for."""
        options = self.options
        if not (options.items or options.ratio or options.text):
            yield "must say what is replayed: items, ratio or text greater than 0"
        if options.items and options.ratio:
            yield "takes items or ratio, both were given; leave one out"

    def begin(self, start: Start) -> None:
        """Choose the items: the same ones of a task for every later task."""
        count = self.count(len(start.task.train), len(start.earlier))
        replayed = {task.name: replay_subset(task, count, start.seed) for task in start.earlier if count}
        if self.options.text:
            text = EncodedTask(CONTROL_TEXT, tuple(start.text()), ())
            replayed[CONTROL_TEXT] = replay_subset(text, self.options.text, start.seed)
        self.replayed = replayed

    def count(self, new: int, earlier: int) -> int:
        """Items of each of `earlier` tasks, of a task of `new` items."""
        return self.options.items or round(self.options.ratio * new / max(1, earlier))

    def items(self) -> Sequence[EncodedItem]:
        """The items of all earlier tasks, in the order of the tasks, and text."""
        return [item for items in self.replayed.values() for item in items]

    def record(self, before: InterventionRecord, model: AdaptedModel) -> InterventionRecord:
        """Which items."""
        return replace(
            before, replayed={task: tuple(item.item.id for item in items) for task, items in self.replayed.items()}
        )


def replay_subset(task: EncodedTask, count: int, seed: int) -> tuple[EncodedItem, ...]:
    """`count` trained items of `task` (all, if it has fewer), in their own order; the same ones for every later task."""
    rows = generator(seed, "replay", task.name).permutation(len(task.train))[:count]
    return tuple(task.train[row] for row in sorted(rows))


METHOD = Replay
