"""Items one after another in one row of tokens: nothing is computed for padding, and a shared prefix is computed once.

A pack is a row of segments. The prefix that several items of one subject share (description, worked examples) is a
segment of its own, the rest of each item another; an item's tokens attend to the shared segment and, causally, to their own.
All linear layers see one dense row; only attention knows the segments, through an attention function that transformers
lets every model exchange. A prefix that many packs share is computed once before them, and its keys and values are kept.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from llm_forgetting.landscape.gauge import at_least_float32
from llm_forgetting.models.language.batches import EncodedItem, padded_options


class CannotPackError(Exception):
    """The model's attention does something that segments do not know."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Who attends to whom in a row of T tokens.

    `prefixes`: slices of shared prefixes. `queries` (n, L) and `keys` (n, P + L): places of each item's own tokens, and of
    its shared prefix followed by them, filled up with 0. `mask` (n, 1, L, P + L): what a query may see. `own` (n, L):
    which queries are real, and `item`, `offset` (m,) where they stand in it: a GPU that is asked for a mask's places has to
    be waited for. Keys are counted from the first of `kept` tokens that were computed before the row.
    """

    prefixes: tuple[slice, ...]
    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    own: torch.Tensor
    item: torch.Tensor
    offset: torch.Tensor
    places: torch.Tensor
    kept: int = 0


@dataclass(frozen=True)
class PrefixCache:
    """Tokens that items begin with, and what each attention layer made of them: keys and values (1, groups, P, d)."""

    tokens: tuple[int, ...]
    keys_and_values: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """A row of tokens and where its items are.

    `input_ids`, `position_ids` (1, T); `answer_index` (m,): after which tokens something is predicted, item by item;
    `letter_ids` (m, k): the options, -1 where there are fewer; `items` (n,): the items' places in the list that was packed.
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
    order = sorted(range(len(encoded)), key=lambda n: (encoded[n].prefix_key, -len(encoded[n].input_ids), n))
    return [pack_of(encoded, tuple(order[start : start + batch_size])) for start in range(0, len(order), batch_size)]


def pack_of(encoded: Sequence[EncodedItem], chosen: tuple[int, ...], prefix: PrefixCache | None = None) -> Pack:
    """The chosen items in one row; those that go on from `prefix`, which all of them have, without it."""
    if prefix is not None:
        return _pack_after(encoded, chosen, len(prefix.tokens))
    groups: dict[str, list[int]] = {}
    for row, n in enumerate(chosen):
        groups.setdefault(encoded[n].prefix_key, []).append(row)
    ids: list[int] = []
    positions: list[int] = []
    prefix_spans: list[slice] = []
    starts, shared = [0] * len(chosen), [slice(0, 0)] * len(chosen)
    for rows in groups.values():
        sequences = [encoded[chosen[row]].input_ids for row in rows]
        length = shared_prefix([encoded[chosen[row]] for row in rows])
        span = slice(len(ids), len(ids) + length)
        if length:
            prefix_spans.append(span)
            ids += sequences[0][:length]
            positions += range(length)
        for row, sequence in zip(rows, sequences, strict=True):
            starts[row], shared[row] = len(ids), span
            ids += sequence[length:]
            positions += range(length, len(sequence))
    sizes = [len(encoded[n].input_ids) - (prefix.stop - prefix.start) for n, prefix in zip(chosen, shared, strict=True)]
    return _filled(encoded, chosen, ids, positions, _layout(tuple(prefix_spans), starts, sizes, shared))


def _pack_after(encoded: Sequence[EncodedItem], chosen: tuple[int, ...], kept: int) -> Pack:
    own = [encoded[n].input_ids[kept:] for n in chosen]
    sizes = [len(tokens) for tokens in own]
    starts = [sum(sizes[:row]) for row in range(len(sizes))]
    alone = _layout((), starts, sizes, [slice(0, 0)] * len(chosen))
    before = torch.arange(kept).expand(len(chosen), -1)
    seen = torch.ones(kept, dtype=torch.bool).expand(*alone.mask.shape[:3], -1)
    layout = dataclasses.replace(
        alone,
        keys=torch.cat([before, kept + alone.keys], dim=1),
        mask=torch.cat([seen, alone.mask], dim=3),
        kept=kept,
    )
    ids = [token for tokens in own for token in tokens]
    positions = [kept + n for size in sizes for n in range(size)]
    return _filled(encoded, chosen, ids, positions, layout)


def _filled(
    encoded: Sequence[EncodedItem], chosen: tuple[int, ...], ids: list[int], positions: list[int], layout: Layout
) -> Pack:
    items, sizes = [encoded[n] for n in chosen], layout.own.sum(dim=1).tolist()
    row = [row for row, item in enumerate(items) for _ in item.predictions]
    # Where a prediction stands among its item's own tokens, which are its last.
    own = [
        size - len(item.input_ids) + place
        for size, item in zip(sizes, items, strict=True)
        for place in item.predictions
    ]
    return Pack(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        answer_index=layout.queries[torch.tensor(row), torch.tensor(own)],
        letter_ids=padded_options(items),
        items=chosen,
        layout=layout,
    )


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with, at least one of each left over; 0 for a single sequence."""
    if len(sequences) < 2:
        return 0
    limit = min(len(sequence) for sequence in sequences) - 1
    return next((n for n in range(limit) if len({sequence[n] for sequence in sequences}) > 1), limit)


def shared_prefix(items: Sequence[EncodedItem]) -> int:
    """Tokens that all items begin with, before the first after which any of them predicts something."""
    return min(common_prefix([item.input_ids for item in items]), *(item.predictions[0] for item in items))


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
    keys, (item, offset) = torch.cat([first, queries], dim=1), own.nonzero(as_tuple=True)
    return Layout(prefixes, queries, keys, mask[:, None], own, item, offset, queries[own])


_layout_in_use: ContextVar[Layout] = ContextVar("layout")
_prefix_in_use: ContextVar[PrefixCache | None] = ContextVar("prefix", default=None)
# PyTorch's own kernel on a CPU, which also returns the log-sum-exp; None in versions that do not have it by this name.
_ATTEND = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
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

    Returns (b, T, heads, d). Differentiable. `dropout` is the share of attention weights set to 0; what all items of a
    pack share (their prefix) is dropped alike for all of them.
    """
    layout = layout_for(kwargs)
    if layout.kept and _ATTEND is not None and query.device.type == "cpu" and not torch.is_grad_enabled():
        return _attention_after_beginning(module, query, key, value, layout, scaling), None
    key, value = _with_beginning(module, key, value, layout.kept)
    b, heads, _, d = query.shape
    repeats = heads // key.shape[1]
    if query.device.type != "cpu" and repeats > 1:  # a GPU's fused kernels take a mask or groups, not both
        key, value, repeats = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1), 1
    grouped: Any = {"scale": scaling, "enable_gqa": repeats > 1, "dropout_p": dropout}
    n, longest = layout.queries.shape

    def gathered(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return tensor[:, :, places].transpose(1, 2).reshape(b * n, tensor.shape[1], places.shape[1], d)

    out = query.new_empty(b, query.shape[2], heads, d)
    if n:
        q, k, v = gathered(query, layout.queries), gathered(key, layout.keys), gathered(value, layout.keys)
        mask = layout.mask.repeat(b, 1, 1, 1) if b > 1 else layout.mask
        items = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **grouped)
        every = items.reshape(b, n, heads, longest, d).transpose(2, 3)
        out[:, layout.places] = every[:, layout.item, layout.offset]
    for prefix in layout.prefixes:
        part = F.scaled_dot_product_attention(
            query[:, :, prefix], key[:, :, prefix], value[:, :, prefix], is_causal=True, **grouped
        )
        out[:, prefix] = part.transpose(1, 2)
    return out, None


def _attention_after_beginning(  # noqa: PLR0917 -- as above
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
) -> torch.Tensor:
    """`segment_attention` where all items go on from one kept prefix, in two parts that cost no copy of it per item.

    All T queries attend to the prefix at once, each item's to its own tokens; the two softmaxes are joined by their
    log-sum-exps: out = w own + (1 - w) prefix, w = sigmoid(lse_own - lse_prefix).
    """
    prefix = _prefix_in_use.get()
    assert prefix is not None
    repeats = query.shape[1] // key.shape[1]
    attend: Any = _ATTEND
    b, heads, _, d = query.shape
    n, longest = layout.queries.shape

    def own(tensor: torch.Tensor) -> torch.Tensor:
        every = tensor[:, :, layout.queries].transpose(1, 2).reshape(b * n, tensor.shape[1], longest, d)
        return every.repeat_interleave(heads // tensor.shape[1], dim=1)

    before = [part.repeat_interleave(repeats, dim=1) for part in prefix.keys_and_values[module]]
    out, lse = attend(query, before[0].expand(b, -1, -1, -1), before[1].expand(b, -1, -1, -1), scale=scaling)
    own_out, own_lse = attend(
        own(query), own(key), own(value), 0.0, True, scale=scaling
    )  # filled up behind, so causal is all
    places, item, offset = layout.places, layout.item, layout.offset
    own_out = own_out.reshape(b, n, heads, longest, d).transpose(2, 3)[:, item, offset]
    own_lse = own_lse.reshape(b, n, heads, longest).transpose(2, 3)[:, item, offset]
    out, lse = out.transpose(1, 2), lse.reshape(b, heads, -1).transpose(1, 2)
    weight = torch.sigmoid(own_lse - lse[:, places])[..., None]
    joined = torch.empty_like(out)
    joined[:, places] = (out[:, places] + weight * (own_out - out[:, places])).to(out.dtype)
    return joined


def _with_beginning(
    module: Any, key: torch.Tensor, value: torch.Tensor, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values after those of the prefix in use; where it is what is being computed, they are kept."""
    prefix = _prefix_in_use.get()
    if prefix is None:
        return key, value
    if not kept:
        prefix.keys_and_values[module] = key, value
        return key, value
    before = prefix.keys_and_values[module]
    return torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)


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


def compute_prefix(model: Any, tokens: tuple[int, ...], device: torch.device) -> PrefixCache:
    """The prefix `tokens`, with keys and values of every layer, inside `segments`; for one row of tokens."""
    length, none = len(tokens), torch.zeros(0, 0, dtype=torch.long)
    mask, nowhere = none.bool(), none.flatten()
    layout = Layout((slice(0, length),), none, none, mask[:, None, None, :], mask, nowhere, nowhere, nowhere)
    last = torch.tensor([length - 1])
    row = Pack(torch.tensor([tokens]), torch.arange(length)[None], last, torch.zeros(0, 0), (), layout).to(device)
    prefix = PrefixCache(tokens)
    packed_answer_logits(model, row, prefix=prefix)
    return prefix


def packed_answer_logits(model: Any, pack: Pack, rows: int = 1, prefix: PrefixCache | None = None) -> torch.Tensor:
    """(rows, m, vocabulary) logits, float32 or better, of the pack's predictions, inside `segments`.

    `rows` > 1 repeats the row of tokens, for models that do something else in each row. `prefix` is what the pack goes on
    from, if anything.
    """
    tokens = (_layout_in_use, _layout_in_use.set(pack.layout)), (_prefix_in_use, _prefix_in_use.set(prefix))
    try:
        logits = model(
            input_ids=pack.input_ids.expand(rows, -1),
            position_ids=pack.position_ids.expand(rows, -1),
            logits_to_keep=pack.answer_index,
            use_cache=False,
        ).logits
    finally:
        for variable, token in tokens:
            variable.reset(token)  # type: ignore[arg-type]
    return at_least_float32(logits)
