"""Scoring: letter logits of every item, at the live checkpoint or at another point of adapter space."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.models.language.answer_statistics import AnswerStatistics, Judged
from llm_forgetting.models.language.batches import EncodedItem, collate, length_buckets, split_logits
from llm_forgetting.models.language.generation import is_generated, write
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import OutOfMemoryRetry
from llm_forgetting.models.language.packing import CannotPackError, PrefixCache, pack_of, packs
from llm_forgetting.models.language.scoring_batches import TOKENS_PER_BATCH, prefix_batches
from llm_forgetting.tasks.completion import Completion


def score(
    model: LanguageModel,
    encoded: Sequence[EncodedItem],
    batch_size: int | None,
    advance: Callable[[int], None] = lambda items: None,
    *,
    packed: bool = True,
) -> AnswerStatistics:
    """Statistics of all items in the order given; eval mode, no gradients, float32 logits (see `LanguageModel.computing`).

    Items are packed (no padding, shared prefixes once) where the model allows it and `packed` does, else padded in length
    buckets. The batches depend only on the items, so they are the same at every call, unless memory runs out: then they are
    halved. `batch_size` None takes as many items as make some thousand tokens. `advance` gets the number of items of
    each batch.
    """
    model.peft_model.eval()
    with torch.inference_mode(), model.computing():
        if packed and model.supports_packing:
            try:
                return _score_packed(model, encoded, batch_size, advance)
            except (
                CannotPackError
            ) as error:  # a window that the short rows tried out fitted into, and these items do not
                model.disable_packing(error)
        return _score_padded(model, encoded, batch_size, advance)


def _score_packed(
    model: LanguageModel, encoded: Sequence[EncodedItem], batch_size: int | None, advance: Callable[[int], None]
) -> AnswerStatistics:
    collector, retry = _Collector(encoded), OutOfMemoryRetry(model.device)
    for share in prefix_batches(encoded, batch_size):
        prefix = model.prefix_cache(share.prefix) if share.prefix else None

        def compute(chosen: tuple[int, ...], prefix: PrefixCache | None = prefix) -> None:
            pack = pack_of(encoded, chosen, prefix)
            collector.take(pack.items, model.packed_logits([pack], 1, prefix)[0][0], pack.letter_ids)
            advance(len(chosen))

        for chosen in share.batches:
            retry.run(chosen, compute)
    return collector.statistics


def _score_padded(
    model: LanguageModel, encoded: Sequence[EncodedItem], batch_size: int | None, advance: Callable[[int], None]
) -> AnswerStatistics:
    collector, retry = _Collector(encoded), OutOfMemoryRetry(model.device)

    def compute(bucket: tuple[int, ...]) -> None:
        batch = collate([encoded[index] for index in bucket], model.pad_id)
        collector.take(bucket, model.answer_logits(batch), batch.letter_ids)
        advance(len(bucket))

    lengths = [len(item.input_ids) for item in encoded]
    size = batch_size or max(1, TOKENS_PER_BATCH // max(lengths))
    for bucket in length_buckets(lengths, size):
        retry.run(tuple(bucket), compute)
    return collector.statistics


@contextmanager
def merged(model: LanguageModel) -> Iterator[None]:
    """The live adapter inside the weights it adapts, where that loses nothing (float32): fewer, larger matrix products.

    Takes a copy of those weights; they come back bit-equal.
    """
    if model.dtype != torch.float32 or not model.low_rank or not model.can_merge:
        yield
        return
    with model.perturbed() as move:
        move(model.adapter_factors())
        yield


def score_points(
    model: LanguageModel,
    encoded: Sequence[EncodedItem],
    batch_size: int,
    points: int,
    advance: Callable[[int], None] = lambda items: None,
) -> list[AnswerStatistics]:
    """`score` in packs, at each of `points` points that the model was moved to side by side (`LanguageModel.beside`)."""
    collectors, retry = [_Collector(encoded) for _ in range(points)], OutOfMemoryRetry(model.device)
    model.peft_model.eval()

    def compute(chosen: tuple[int, ...]) -> None:
        pack = pack_of(encoded, chosen)
        (logits,) = model.packed_logits([pack], points)
        for collector, rows in zip(collectors, logits, strict=True):
            collector.take(pack.items, rows, pack.letter_ids)
        advance(len(chosen))

    with torch.inference_mode():
        for pack in packs(encoded, batch_size):
            retry.run(pack.items, compute)
    return [collector.statistics for collector in collectors]


def answer_distributions(model: LanguageModel, encoded: Sequence[EncodedItem], batch_size: int) -> Floats:
    """(n, vocabulary) logits after `Answer:` of all items, in the order given."""
    model.peft_model.eval()
    logits: dict[tuple[int, ...], Floats] = {}
    retry = OutOfMemoryRetry(model.device)

    def compute(chosen: tuple[int, ...]) -> None:
        batch = collate([encoded[n] for n in chosen], model.pad_id)
        logits[chosen] = model.answer_logits(batch).double().cpu().numpy()

    with torch.inference_mode():
        for start in range(0, len(encoded), batch_size):
            retry.run(tuple(range(start, min(start + batch_size, len(encoded)))), compute)
    return np.concatenate(list(logits.values()))


class _Collector:
    """Letter logits and rest of the items, filled in batch by batch."""

    def __init__(self, encoded: Sequence[EncodedItem]) -> None:
        self._sizes = np.array([len(item.predictions) for item in encoded])
        self._first = np.cumsum(self._sizes) - self._sizes
        rows, options = int(self._sizes.sum()), max(len(tokens) for item in encoded for tokens in item.options)
        self._z = np.full((rows, options), -np.inf)
        self._rest = np.empty(rows)
        completions = any(item.places for item in encoded)
        self._likeliest = np.empty(rows, dtype=np.int64) if completions else None
        self._wanted = np.array([token for item in encoded for token in item.answer_tokens]) if completions else None
        self._answers = np.array([answer for item in encoded for answer in item.answers])
        self._weights = item_weights(encoded)

    def take(self, places: Sequence[int], logits: torch.Tensor, letter_ids: torch.Tensor) -> None:
        """Logits (m, vocabulary) of the predictions of the items at `places`."""
        letters, others = split_logits(logits, letter_ids.to(logits.device))
        index = [row for n in places for row in range(self._first[n], self._first[n] + self._sizes[n])]
        self._z[index, : letters.shape[1]] = letters.double().cpu().numpy()
        self._rest[index] = others.double().cpu().numpy()
        if self._likeliest is not None:
            self._likeliest[index] = logits.argmax(dim=1).cpu().numpy()

    @property
    def statistics(self) -> AnswerStatistics:
        return AnswerStatistics(
            self._z, self._rest, self._answers, self._sizes, self._likeliest, self._wanted, weights=self._weights
        )


def item_weights(encoded: Sequence[EncodedItem]) -> Floats | None:
    """(n,) weight of each prediction of the items; None where all count once."""
    weights = np.array([item.weight for item in encoded], dtype=np.float64)
    return None if (weights == 1).all() else weights


def score_tasks(
    model: LanguageModel,
    groups: Sequence[Sequence[EncodedItem]],
    batch_size: int | None,
    advance: Callable[[int], None] = lambda items: None,
) -> list[AnswerStatistics]:
    """`score` for several groups of items in one pass over all of them; what they are judged by besides is found as well.

    `advance` hears of an item once more where it is written, and for each of its options (see `passes`).
    """
    items = [item for group in groups for item in group]
    together = score(model, items, batch_size, advance)
    judged: dict[int, Judged] = {}
    generated = [n for n, item in enumerate(items) if is_generated(item)]
    if generated:
        judged |= zip(generated, write(model, [items[n] for n in generated], batch_size, advance), strict=True)
    compared = [n for n, item in enumerate(items) if item.alternatives]
    if compared:
        judged |= zip(compared, choose(model, [items[n] for n in compared], batch_size, advance), strict=True)
    if judged:
        together = together.judged_by([judged.get(n) for n in range(len(items))])
    return split_groups(together, [len(group) for group in groups])


def passes(groups: Iterable[Sequence[EncodedItem]]) -> int:
    """How many items `score_tasks` tells of."""
    return sum(1 + is_generated(item) + len(item.alternatives) for group in groups for item in group)


@dataclass(frozen=True)
class Chosen:
    """Log-likelihood of every option's text after the prompt (nats), and which of them is the largest, whole (`acc`) and per
    character (`acc_norm`); `right`: by what the item is judged by.
    """

    log_likelihoods: tuple[float, ...]
    by_sum: int
    by_character: int
    acc: bool
    acc_norm: bool
    right: bool


def choose(
    model: LanguageModel,
    items: Sequence[EncodedItem],
    batch_size: int | None,
    advance: Callable[[int], None] = lambda items: None,
) -> list[Chosen]:
    """The likeliest option of every item: the harness's `acc` and `acc_norm`."""
    scored = score(model, [option for item in items for option in item.alternatives], batch_size, advance)
    sums = iter(-scored.losses * scored.tokens)
    chosen = []
    for item in items:
        asked = item.item
        assert isinstance(asked, Completion)
        likelihoods = np.array([next(sums) for _ in item.alternatives])
        lengths = np.array([len(option) for option in asked.options])
        whole, each = int(np.argmax(likelihoods)), int(np.argmax(likelihoods / lengths))
        acc, acc_norm = whole == asked.right, each == asked.right
        right = acc if asked.scoring.by == "likelihood" else acc_norm
        chosen.append(Chosen(tuple(likelihoods.tolist()), whole, each, acc, acc_norm, right))
    return chosen


def split_groups(together: AnswerStatistics, sizes: Sequence[int]) -> list[AnswerStatistics]:
    """Statistics (..., n) of items that were scored together, cut into groups of the given sizes."""
    ends = np.cumsum([0, *sizes])
    return [together.of(slice(a, b)) for a, b in pairwise(ends)]
