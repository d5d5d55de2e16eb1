"""Scoring: letter logits of every item, at the live checkpoint or at another point of adapter space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from llm_forgetting.batches import EncodedItem, collate, length_buckets, split_logits
from llm_forgetting.language_model import LanguageModel
from llm_forgetting.objective import AnswerStatistics


def score(
    model: LanguageModel,
    encoded: Sequence[EncodedItem],
    batch_size: int,
    advance: Callable[[int], None] = lambda items: None,
) -> AnswerStatistics:
    """Statistics of all items in the order given; eval mode, no gradients, float32 logits, length buckets.

    The batches depend only on the items' lengths, so they are the same at every call. `advance` is told how many items
    each batch held.
    """
    options = max(len(item.letter_ids) for item in encoded)
    z = np.full((len(encoded), options), -np.inf)
    rest = np.empty(len(encoded))
    model.peft_model.eval()
    with torch.inference_mode():
        for bucket in length_buckets([len(item.input_ids) for item in encoded], batch_size):
            batch = collate([encoded[index] for index in bucket], model.pad_id)
            letters, others = split_logits(model.answer_logits(batch), batch.letter_ids.to(model.device))
            z[bucket, : letters.shape[1]] = letters.double().cpu().numpy()
            rest[bucket] = others.double().cpu().numpy()
            advance(len(bucket))
    return AnswerStatistics(z, rest, np.array([item.item.answer for item in encoded]))


@dataclass(frozen=True)
class EncodedTask:
    """A task's two splits as tokens."""

    name: str
    train: tuple[EncodedItem, ...]
    test: tuple[EncodedItem, ...]

    def split(self, name: str) -> tuple[EncodedItem, ...]:
        """The items of split `train` or `test`."""
        return {"train": self.train, "test": self.test}[name]


def score_tasks(
    model: LanguageModel,
    groups: Sequence[Sequence[EncodedItem]],
    batch_size: int,
    advance: Callable[[int], None] = lambda items: None,
) -> list[AnswerStatistics]:
    """`score` for several groups of items in one pass over their common length buckets."""
    together = score(model, [item for group in groups for item in group], batch_size, advance)
    bounds = np.cumsum([0, *(len(group) for group in groups)])
    return [
        AnswerStatistics(together.letter_logits[a:b], together.rest[a:b], together.answers[a:b])
        for a, b in pairwise(bounds)
    ]
