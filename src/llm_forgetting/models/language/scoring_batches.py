"""Batches of items that are scored together: a long prefix that a subject's items share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.packing import shared_prefix

# Tokens of a batch whose size nobody set: enough for full speed on a CPU and a GPU, little beside a backbone's weights.
TOKENS_PER_BATCH = 2048
# A shorter prefix is computed again in every pack: as fast, and packs may then hold several subjects.
SHORTEST_PREFIX = 64


@dataclass(frozen=True)
class PrefixBatches:
    """Batches of items (by their places) that go on from the tokens `prefix`, which may be none."""

    prefix: tuple[int, ...]
    batches: tuple[tuple[int, ...], ...]


def prefix_batches(encoded: Sequence[EncodedItem], batch_size: int | None) -> list[PrefixBatches]:
    """Every item in one batch of one share, subject by subject, longest items first; a function of the items alone.

    `batch_size` counts items; None fills batches to `TOKENS_PER_BATCH` tokens, prefixes not counted.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for n in sorted(range(len(encoded)), key=lambda n: (encoded[n].prefix_key, -len(encoded[n].input_ids), n)):
        groups.setdefault((encoded[n].prefix_key, encoded[n].shots_dropped), []).append(n)
    shared, rest = [], []
    for places in groups.values():
        length = shared_prefix([encoded[n] for n in places])
        if length < SHORTEST_PREFIX:
            rest += places
            continue
        batches = _batches(encoded, places, length, batch_size)
        prefix = encoded[places[0]].input_ids[:length] if len(batches) > 1 else ()  # one pack computes it once anyway
        shared.append(PrefixBatches(prefix, batches))
    return [*shared, PrefixBatches((), _batches(encoded, rest, 0, batch_size))] if rest else shared


def _batches(
    encoded: Sequence[EncodedItem], places: Sequence[int], kept: int, batch_size: int | None
) -> tuple[tuple[int, ...], ...]:
    if batch_size is not None:
        return tuple(tuple(places[start : start + batch_size]) for start in range(0, len(places), batch_size))
    batches: list[list[int]] = []
    room = 0
    for n in places:
        tokens = len(encoded[n].input_ids) - kept
        if not batches or tokens > room:
            batches.append([])
            room = TOKENS_PER_BATCH
        batches[-1].append(n)
        room -= tokens
    return tuple(map(tuple, batches))
