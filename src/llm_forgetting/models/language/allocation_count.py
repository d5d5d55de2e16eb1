"""Memory and floating-point operations of a program that runs on a model without weights (`meta` tensors).

Floating-point tensors are shapes; integers and masks are real, because the program indexes with them. Every allocation is
counted while it is alive, so the peak is that of the program itself and not of a formula.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# What a number reads that has no value: not 0, by which programs divide, and less than any tolerance of a probe.
NUMBER = 1e-4
# PyTorch's CUDA allocator hands out multiples of this many bytes.
GRANULE = 512
_META = torch.device("meta")
_CPU = torch.device("cpu")
_aten: Any = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
Argument = Any  # of one of PyTorch's operators, or what it gives
Operator = Callable[..., Argument]


class AllocationCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes alive, their peak, and floating-point operations of what is computed within the block.

    `live`, `peak` in bytes; `flops` counts a multiplication and an addition as two. Host memory is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.flops = 0.0
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    def hold(self, module: nn.Module) -> None:
        """Count the parameters and buffers of `module`, which were made before."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._track(tensor)

    def restart(self) -> None:
        """Forget the peak and the operations so far; what is alive stays alive."""
        self.peak, self.flops = self.live, 0.0

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        self._alive[key] = size, weakref.ref(storage, lambda _: self._free(key))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        size, _ = self._alive.pop(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Argument, types: object, args: Sequence[Argument] = (), kwargs: Mapping[str, Argument] | None = None
    ) -> Argument:
        """One operation, computed on shapes where a tensor without numbers takes part in it."""
        given = dict(kwargs or {})
        if _is_composite(func):  # inference mode hands on whole ones
            with self:
                return func.decompose(*args, **given)
        out = self._computed(func, args, given)
        for tensor in _tensors((out,)):
            if tensor.is_meta or not tensor.is_floating_point():
                self._track(tensor)
        return out

    def _computed(self, func: Argument, args: Sequence[Argument], kwargs: dict[str, Argument]) -> Argument:
        tensors = list(_tensors((*args, *kwargs.values())))
        asked = kwargs.get("device")
        to_meta = asked is not None and torch.device(asked) == _META
        if not to_meta and not any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return _number(args[0].dtype)
        if func is _aten.equal.default:
            return True
        if func is _aten._to_copy.default:
            return _moved(func, args[0], kwargs, to_meta=to_meta, asked=asked)
        if func is _aten.copy_.default and not args[0].is_meta:
            return args[0].fill_(_number(args[0].dtype))
        if to_meta and not any(tensor.is_meta for tensor in tensors):
            made = func(*args, **kwargs)
            return made if made.is_floating_point() else func(*args, **{**kwargs, "device": _CPU})
        if func in _INDEXING:
            args = (args[0], _places(args[1]), *args[2:])
        on_meta = [_on_meta(argument) for argument in args]
        named = {name: _on_meta(value) for name, value in kwargs.items()}
        out = func(*on_meta, **named)
        counter = flop_registry.get(func._overloadpacket)
        if counter is not None:
            self.flops += counter(*on_meta, **named, out_val=out)
        return out


@cache
def _is_composite(func: Argument) -> bool:
    return bool(func._can_decompose()) and func._overloadpacket not in flop_registry


def _tensors(values: Sequence[Argument]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _number(dtype: torch.dtype) -> float | bool | int:
    if dtype == torch.bool:
        return True
    return NUMBER if dtype.is_floating_point else 0


def _moved(func: Operator, source: Tensor, kwargs: dict[str, Argument], *, to_meta: bool, asked: object) -> Tensor:
    """A copy on another device or of another type: floating-point numbers go to `meta`, integers stay real."""
    dtype = kwargs.get("dtype") or source.dtype
    if source.is_meta:
        if asked is None or to_meta:
            copied: Tensor = func(source, **kwargs)
            return copied
        return torch.full(source.shape, _number(dtype), dtype=dtype)
    if dtype.is_floating_point:
        return torch.empty_strided(source.shape, source.stride(), dtype=dtype, device=_META)
    real: Tensor = func(source, **{**kwargs, "device": _CPU})
    return real


def _places(index: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks in an index as the places that they stand for: how many those are is not known without numbers."""
    places: list[Tensor | None] = []
    for part in index:
        if part is not None and part.dtype == torch.bool and not part.is_meta:
            places += part.nonzero().unbind(1)
        else:
            places.append(part)
    return places


def _on_meta(value: Argument) -> Argument:
    if isinstance(value, Tensor):
        # A CPU tensor of no dimension takes part in operations on any device, as a number.
        return value if value.is_meta or value.dim() == 0 else value.to(_META)
    if isinstance(value, list | tuple):
        return [_on_meta(part) for part in value]
    return value


class _EfficientAttention(torch.autograd.Function):
    """What PyTorch's memory-efficient kernel allocates: the mask as a bias, the result, and the log-sum-exp."""

    @staticmethod
    def forward(  # noqa: PLR0917 -- of a Function
        ctx: Argument, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, count: AllocationCount
    ) -> Tensor:
        """query (b, heads, L, d), key and value (b, heads, K, d) -> (b, heads, L, d)."""
        *batch, length, d = query.shape
        ctx.count, ctx.products = count, query.numel() // d * key.shape[2] * d
        count.flops += 4 * ctx.products
        bias = () if mask is None else (query.new_empty(*mask.shape[:-1], -(-mask.shape[-1] // 16) * 16),)
        out = query.new_empty(*batch, length, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(*batch, length, dtype=torch.float32), *bias)
        return out

    @staticmethod
    def backward(ctx: Argument, *grads: Tensor) -> Argument:
        """Two and a half times the products of the forward pass."""
        query, key, value, *_ = ctx.saved_tensors
        ctx.count.flops += 10 * ctx.products
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None


def _attention(count: AllocationCount) -> Operator:
    """scaled_dot_product_attention, counted as the kernel that a GPU takes where that kernel is allowed."""
    plain = F.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Argument
    ) -> Argument:
        fused = torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        if not query.is_meta or not fused:
            return plain(query, key, value, attn_mask, **rest)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
        return _EfficientAttention.apply(query, key, value, attn_mask, count)  # type: ignore[no-untyped-call]

    return attend


@contextmanager
def counting() -> Iterator[AllocationCount]:
    """Within the block everything that is computed is counted."""
    count = AllocationCount()
    # Exchanged by name: a mode of PyTorch's functions is off in a backward pass, in which checkpointing calls it again.
    plain, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _attention(count)
    try:
        with count:
            yield count
    finally:
        F.scaled_dot_product_attention = plain
