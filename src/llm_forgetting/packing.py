"""Items one after another in one row of tokens: nothing is computed for padding, and a shared beginning is computed once.

A pack is a row of segments. The beginning that several items of one subject share (description, worked examples) is a
segment of its own, the rest of each item another; an item's tokens attend to the shared segment and, causally, to their own.
All linear layers see one dense row; only attention knows the segments, through an attention function that transformers
lets every model exchange.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llm_forgetting.batches import EncodedItem


class CannotPackError(Exception):
    """The model's attention does something that segments do not know."""


@dataclass(frozen=True)
class Layout:
    """Who attends to whom in a row of T tokens.

    `prefixes`: slices of shared beginnings. `queries` (n, L) and `keys` (n, P + L): places of each item's own tokens, and of
    its shared beginning followed by them, filled up with 0. `mask` (n, 1, L, P + L): what a query may see. `own` (n, L):
    which queries are real.
    """

    prefixes: tuple[slice, ...]
    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    own: torch.Tensor


@dataclass(frozen=True)
class Pack:
    """A row of tokens and where its items are.

    `input_ids`, `position_ids` (1, T); `answer_index` (n,): where each item's `Answer:` ends; `letter_ids` (n, k), -1 where an
    item has fewer options; `items` (n,): their places in the list that was packed.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    answer_index: torch.Tensor
    letter_ids: torch.Tensor
    items: tuple[int, ...]
    layout: Layout

    def to(self, device: torch.device) -> "Pack":
        """The pack on `device`."""

        def moved(record: Any) -> dict[str, Any]:
            return {name: value.to(device) for name, value in vars(record).items() if isinstance(value, torch.Tensor)}

        return dataclasses.replace(self, **moved(self), layout=dataclasses.replace(self.layout, **moved(self.layout)))


def packs(encoded: Sequence[EncodedItem], batch_size: int) -> list[Pack]:
    """Packs of up to `batch_size` items, subject by subject and longest first; they depend on the items alone."""
    order = sorted(range(len(encoded)), key=lambda n: (encoded[n].item.subject, -len(encoded[n].input_ids), n))
    return [_pack(encoded, tuple(order[start : start + batch_size])) for start in range(0, len(order), batch_size)]


def _pack(encoded: Sequence[EncodedItem], chosen: tuple[int, ...]) -> Pack:
    subjects: dict[str, list[int]] = {}
    for row, n in enumerate(chosen):
        subjects.setdefault(encoded[n].item.subject, []).append(row)
    ids: list[int] = []
    positions: list[int] = []
    prefixes: list[slice] = []
    starts, shared = [0] * len(chosen), [slice(0, 0)] * len(chosen)
    for rows in subjects.values():
        sequences = [encoded[chosen[row]].input_ids for row in rows]
        length = common_beginning(sequences)
        prefix = slice(len(ids), len(ids) + length)
        if length:
            prefixes.append(prefix)
            ids += sequences[0][:length]
            positions += range(length)
        for row, sequence in zip(rows, sequences, strict=True):
            starts[row], shared[row] = len(ids), prefix
            ids += sequence[length:]
            positions += range(length, len(sequence))
    sizes = [len(encoded[n].input_ids) - (prefix.stop - prefix.start) for n, prefix in zip(chosen, shared, strict=True)]
    options = max(len(encoded[n].letter_ids) for n in chosen)
    letters = [[*encoded[n].letter_ids, *[-1] * (options - len(encoded[n].letter_ids))] for n in chosen]
    return Pack(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        answer_index=torch.tensor([start + size - 1 for start, size in zip(starts, sizes, strict=True)]),
        letter_ids=torch.tensor(letters),
        items=chosen,
        layout=_layout(tuple(prefixes), starts, sizes, shared),
    )


def common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with, at least one of each left over; 0 for a single sequence."""
    if len(sequences) < 2:
        return 0
    limit = min(len(sequence) for sequence in sequences) - 1
    return next((n for n in range(limit) if len({sequence[n] for sequence in sequences}) > 1), limit)


def _layout(prefixes: tuple[slice, ...], starts: list[int], sizes: list[int], shared: list[slice]) -> Layout:
    longest, widest = max(sizes), max(prefix.stop - prefix.start for prefix in shared)
    places = torch.arange(longest)
    own = places[None, :] < torch.tensor(sizes)[:, None]
    queries = torch.where(own, torch.tensor(starts)[:, None] + places, 0)
    lengths = torch.tensor([prefix.stop - prefix.start for prefix in shared])
    before = torch.arange(widest)[None, :] < lengths[:, None]
    first = torch.where(before, torch.tensor([prefix.start for prefix in shared])[:, None] + torch.arange(widest), 0)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril().expand(len(sizes), -1, -1)
    mask = torch.cat([before[:, None, :].expand(-1, longest, -1), causal], dim=2)
    return Layout(prefixes, queries, torch.cat([first, queries], dim=1), mask[:, None], own)


_layout_in_use: ContextVar[Layout] = ContextVar("layout")
# Arguments with which an attention layer asks for more than softmax(scale q k^T) v over a causal past.
_FOREIGN = ("softcap", "s_aux", "position_bias", "head_mask")


def layout_for(arguments: Mapping[str, Any]) -> Layout:
    """The layout of the pack that is being computed; CannotPackError where the layer's `arguments` ask for more."""
    layout = _layout_in_use.get()
    asked = [name for name in _FOREIGN if arguments.get(name) is not None]
    window = arguments.get("sliding_window")
    if asked or (window is not None and window < layout.keys.shape[1]):
        raise CannotPackError(f"attention with {', '.join(asked) or 'a sliding window'}")
    return layout


def segment_attention(  # noqa: PLR0917 -- transformers' signature
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query (b, heads, T, d), key and value (b, groups, T, d) within the segments of the layout in use.

    Returns (b, T, heads, d). Differentiable.
    """
    layout = layout_for(kwargs)
    b, heads, _, d = query.shape
    grouped: Any = {"scale": scaling, "enable_gqa": key.shape[1] != heads}
    n, longest = layout.queries.shape

    def gathered(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return tensor[:, :, places].transpose(1, 2).reshape(b * n, tensor.shape[1], places.shape[1], d)

    q, k, v = gathered(query, layout.queries), gathered(key, layout.keys), gathered(value, layout.keys)
    mask = layout.mask.repeat(b, 1, 1, 1) if b > 1 else layout.mask
    items = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **grouped)
    items = items.reshape(b, n, heads, longest, d).transpose(2, 3)
    out = query.new_empty(b, query.shape[2], heads, d)
    for prefix in layout.prefixes:
        part = F.scaled_dot_product_attention(
            query[:, :, prefix], key[:, :, prefix], value[:, :, prefix], is_causal=True, **grouped
        )
        out[:, prefix] = part.transpose(1, 2)
    out[:, layout.queries[layout.own]] = items[:, layout.own]
    return out, None


@contextmanager
def segments(backbone: Any, attention: Callable[..., Any] | None = None) -> Iterator[None]:
    """`backbone` (a transformers model) with attention by segments; its own kernel comes back afterwards.

    `attention` takes the place of `segment_attention`.
    """
    from transformers import AttentionInterface

    if not getattr(backbone, "_supports_attention_backend", False):
        raise CannotPackError(f"{type(backbone).__name__} does not let its attention be exchanged")
    function = attention or segment_attention
    name = f"llm_forgetting_{function.__name__}"
    AttentionInterface.register(name, function)
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation(name)
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


def packed_answer_logits(model: Any, pack: Pack, rows: int = 1) -> torch.Tensor:
    """(rows, n, vocabulary) logits, float32 or better, that follow each item's `Answer:`, inside `segments`.

    `rows` > 1 repeats the row of tokens, for models that do something else in each row.
    """
    token = _layout_in_use.set(pack.layout)
    try:
        logits = model(
            input_ids=pack.input_ids.expand(rows, -1),
            position_ids=pack.position_ids.expand(rows, -1),
            logits_to_keep=pack.answer_index,
            use_cache=False,
        ).logits
    finally:
        _layout_in_use.reset(token)
    precise: torch.Tensor = logits if logits.dtype == torch.float64 else logits.float()
    return precise
