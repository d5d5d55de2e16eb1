"""The heaviest batch of every phase: what decides how much memory the phase needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.analysis.landscape import rows_per_forward
from llm_forgetting.experiment.cost.lengths import ItemLengths
from llm_forgetting.experiment.session import choose_landscape_items
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.scoring_batches import prefix_batches

Items = tuple[EncodedItem, ...]


@dataclass(frozen=True)
class HeaviestBatches:
    """Items of the largest batch of every kind of phase.

    `products` is a micro-batch of as many items as the device's memory allows; `points` is the number of points that share a
    forward pass; `tasks` the number of tasks.
    """

    training: Items
    scores: Items
    landscape: Items
    products: Items
    points: int
    tasks: int

    def items(self, phase: str) -> Items:
        """Items of the piece that is counted for `phase`."""
        own = {"training": self.training, "scores": self.scores, "landscape": self.landscape, "plane": self.landscape}
        return own.get(phase, self.products)

    def tokens(self, phase: str) -> int:
        """Tokens of those items, as many times as points share a pass."""
        times = self.points if phase in ("landscape", "plane") else 1
        return times * sum(len(item.input_ids) for item in self.items(phase))


def heaviest_batches(
    config: ExperimentConfig, lengths: ItemLengths, *, tokens_that_fit: int, gpu: bool
) -> HeaviestBatches:
    """The heaviest batches of a run of `config` on items of `lengths`; a tangent pass holds `tokens_that_fit` tokens."""
    landscape = config.landscape
    chosen = {
        (task.name, split): choose_landscape_items(task.split(split), task.name, landscape)
        for task in lengths.tasks
        for split in SPLITS
    }
    own = [items for (_, split), items in chosen.items() if split == landscape.items]
    differentiated = [
        items for (_, split), items in chosen.items() if split == landscape.items or config.curvature.forecast
    ]
    size = config.training.batch_size
    return HeaviestBatches(
        training=_heaviest([_longest(task.train, size) for task in lengths.tasks]),
        scores=_scored(lengths.items, config.evaluation.batch_size),
        landscape=_heaviest([_longest(items, landscape.batch_size) for items in own]),
        products=_heaviest(
            [
                _longest(items, max(1, min(config.curvature.micro_batch, tokens_that_fit // _width(items))))
                for items in differentiated
            ]
        ),
        points=rows_per_forward([item for items in own for item in items], landscape, gpu=gpu),
        tasks=len(lengths.tasks),
    )


def _width(items: Sequence[EncodedItem]) -> int:
    return max(len(item.input_ids) for item in items)


def _longest(items: Sequence[EncodedItem], size: int) -> Items:
    return tuple(sorted(items, key=lambda item: -len(item.input_ids))[:size])


def _heaviest(batches: Sequence[Items]) -> Items:
    return max(batches, key=lambda items: sum(len(item.input_ids) for item in items))


def _scored(items: Sequence[EncodedItem], batch_size: int | None) -> Items:
    """The heaviest batch of scoring, and the next of the same prefix, so that the prefix is kept as it is in the run."""
    shares = prefix_batches(items, batch_size)
    pairs = [tuple(items[n] for batch in share.batches[: 2 if share.prefix else 1] for n in batch) for share in shares]
    return _heaviest(pairs)
