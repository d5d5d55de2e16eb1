"""Float32 arithmetic over narrow weights: a layer's weight is widened when it is needed, multiplied, and forgotten.

Rounding to bfloat16 or float16 makes a loss rough on the scale of a landscape; weights of that precision do not, where the
arithmetic on them is float32. Quantised weights are dequantised in the same way.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from torch import nn

NARROW = (torch.bfloat16, torch.float16)
Forward = Callable[..., Any]


def wide_weight(layer: Any) -> torch.Tensor:
    """The weight of a layer as it lies there, in float32 where it is narrower; the weight itself where it is not."""
    weight = _dequantised(layer).detach()
    return weight.float() if weight.dtype in NARROW else weight


def _dequantised(layer: Any) -> torch.Tensor:
    # `dequantize_module_weight` puts another parameter into a layer of bitsandbytes. One of 8 bits then has no scales any more.
    kind = type(layer.weight).__name__
    if kind == "Int8Params":
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        rows: torch.Tensor = layer.weight.data.float()
        return rows.mul_(scales.to(rows.device).unsqueeze(1).mul(1 / 127))
    weight: torch.Tensor
    if kind == "Params4bit":
        weight = dequantize_bnb_weight(layer.weight)
    else:
        weight = layer.dequantize() if hasattr(layer, "dequantize") else dequantize_module_weight(layer)
    return weight


def is_quantised(layer: Any) -> bool:
    """Whether the weight of a layer is no plain tensor of floating-point numbers."""
    return (
        hasattr(layer, "dequantize")
        or not layer.weight.is_floating_point()
        or type(layer.weight).__module__.startswith("torchao")
    )


def is_widened(layer: Any) -> bool:
    """Whether `wide_weight` of a layer is a copy: its weight is narrow or quantised."""
    return is_quantised(layer) or layer.weight.dtype in NARROW


def is_exchanged(backbone: nn.Module) -> bool:
    """Whether some part of `backbone` computes otherwise within `widened`."""
    return any(_in_float32(module) is not None for module in backbone.modules())


def keep_layout(backbone: nn.Module) -> None:
    """Let 4-bit layers keep their weights as they lie.

    On CPUs with bfloat16 units bitsandbytes repacks them at the first forward pass in eval mode. Then it computes in bfloat16.
    Its backward pass, and code that dequantises the weights, would read wrong values.
    """
    module: Any
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class _Memory(threading.local):
    """Of a thread, for one float32 weight after the other."""

    kept: torch.Tensor | None = None


_MEMORY = _Memory()


def passing_weight(layer: Any) -> torch.Tensor:
    """`wide_weight` until the next call in this thread: on a CPU every widened weight has the same memory.

    Fresh pages would cost more there than widening and a product of 40 tokens together.
    """
    weight: torch.Tensor = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in NARROW or is_quantised(layer):
        return wide_weight(layer)
    if _MEMORY.kept is None or len(_MEMORY.kept) < weight.numel():
        with torch.inference_mode(False):
            _MEMORY.kept = torch.empty(weight.numel())
    return _MEMORY.kept[: weight.numel()].view(weight.shape).copy_(weight.detach())


class _FrozenProduct(torch.autograd.Function):
    """x W, or x W^T, of a frozen weight that is widened anew in every pass; differentiable in x any number of times."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module, transposed: bool) -> torch.Tensor:
        """x (..., n) -> (..., m)."""
        ctx.layer, ctx.transposed = layer, transposed
        weight = passing_weight(layer).to(x.dtype)
        return F.linear(x, weight if transposed else weight.T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """The same product the other way."""
        return _FrozenProduct.apply(grads[0], ctx.layer, not ctx.transposed), None, None  # type: ignore[no-untyped-call]


def frozen_product(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """x W^T, (..., d_in) -> (..., d_out), in the precision of x; no graph keeps W."""
    y: torch.Tensor = _FrozenProduct.apply(x, layer, True)  # type: ignore[no-untyped-call]
    return y


@contextmanager
def widened(backbone: nn.Module) -> Iterator[None]:
    """Within the block the narrow and the quantised layers of `backbone`, all of them frozen, compute in float32.

    Costs one float32 weight at a time, also in a backward pass. A float32 model is left alone.
    """
    exchanged = [(module, forward) for module in backbone.modules() if (forward := _in_float32(module)) is not None]
    before = [vars(module).get("forward") for module, _ in exchanged]
    try:
        for module, forward in exchanged:
            module.forward = forward
        yield
    finally:
        for (module, _), own in zip(exchanged, before, strict=True):
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


def _in_float32(module: nn.Module) -> Forward | None:
    """The forward of one module in float32; None where it computes in that anyway."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return _linear(module) if is_widened(module) else None
    narrow = [name for name, p in module.named_parameters(recurse=False) if p.dtype in NARROW]
    if not narrow:
        return None
    plain: Forward = module.forward
    if type(module) is nn.Embedding:
        return lambda ids: plain(ids).float()
    return _with_wide_parameters(module, narrow)


def _linear(module: Any) -> Forward:
    upright = isinstance(module, nn.Linear)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _FrozenProduct.apply(x.float(), module, upright)  # type: ignore[no-untyped-call]
        return y if module.bias is None else y + module.bias

    return forward


def _with_wide_parameters(module: nn.Module, names: list[str]) -> Forward:
    """Norms and the like: small, so that float32 copies may stay in a graph."""
    plain: Forward = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = {name: module._parameters[name] for name in names}
        try:
            wide = {name: parameter.detach().float() for name, parameter in own.items() if parameter is not None}
            module._parameters.update(wide)  # type: ignore[arg-type]
            return plain(*args, **kwargs)
        finally:
            module._parameters.update(own)

    return forward
