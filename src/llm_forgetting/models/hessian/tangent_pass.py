"""One pass of value and derivative side by side through a decoder of the Llama family, and one pass back.

transformers' own forward runs on a batch of two rows, the values and their derivatives along a direction; the modules that are
not linear are exchanged for `tangent_operations` meanwhile. Which models can do that is tried out, not read off their names.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.widened import is_quantised, passing_weight
from llm_forgetting.models.hessian.tangent_operations import Linear, RMSNorm, SegmentAttention, SwiGLU, WeightTangent
from llm_forgetting.models.language.packing import Pack, layout_for, packed_answer_logits, segments


class NoTangentPassError(Exception):
    """The model has a part whose derivative is not known here."""


class TangentPass:
    """A backbone whose linear layers `names` may have tangents, computing in `dtype`.

    Everything is as before when `stacked` is left.
    """

    def __init__(self, backbone: Any, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
        self._backbone = backbone
        self._dtype = dtype
        self._names = {id(layer): name for name, layer in layers.items()}
        self.tangents: Mapping[str, WeightTangent] = {}
        self.beside: Mapping[str, Factors] = {}
        self._anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def stacked(self) -> Iterator[Callable[[Pack], torch.Tensor]]:
        """A function from packs to answer logits (2, n, vocabulary): values, and derivatives along `tangents`."""
        exchanged = self._exchanges()
        try:
            for module, forward in exchanged:
                module.forward = forward
            with segments(self._backbone, differentiated_attention):
                yield lambda pack: packed_answer_logits(self._backbone, pack, 2)
        finally:
            for module, _ in exchanged:
                vars(module).pop("forward", None)

    def _exchanges(self) -> list[tuple[Any, Callable[..., torch.Tensor]]]:
        exchanges: list[tuple[Any, Callable[..., torch.Tensor]]] = []
        inside: set[int] = set()
        for module in self._backbone.modules():
            if id(module) in inside:
                continue
            exchange = self._exchange(module)
            if exchange is not None:
                if "forward" in vars(module):
                    raise NoTangentPassError(f"the forward of a {type(module).__name__} is already exchanged")
                exchanges.append((module, exchange))
                if not isinstance(module, nn.Linear) and not _is_gated(module):
                    inside |= {id(child) for child in module.modules()}
            elif next(module.parameters(recurse=False), None) is not None:
                raise NoTangentPassError(f"the derivative of {type(module).__name__} is not known")
        return exchanges

    def _exchange(self, module: Any) -> Callable[..., torch.Tensor] | None:
        if isinstance(module, nn.Linear):
            name = self._names.get(id(module), "")
            native = module.weight.dtype == self._dtype and not is_quantised(module)
            weight = partial(getattr, module, "weight") if native else lambda: passing_weight(module).to(self._dtype)
            return lambda x: Linear.apply(  # type: ignore[no-untyped-call]
                x, self._anchor, weight, module.bias, self.beside.get(name), self.tangents.get(name)
            )
        if isinstance(module, nn.Embedding):
            plain = module.forward
            return lambda ids: _constant(plain(ids).to(self._dtype))
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            if eps is None:
                raise NoTangentPassError(f"{type(module).__name__} does not say its eps")
            scale = _scale_of(module, float(eps), self._dtype)
            return lambda x: RMSNorm.apply(x, scale, float(eps))  # type: ignore[no-untyped-call]
        if _is_gated(module):
            activation = module.activation_fn if _is_fused(module) else module.act_fn
            if not isinstance(activation, nn.SiLU) and type(activation).__name__ != "SiLUActivation":
                raise NoTangentPassError(f"the derivatives of {type(activation).__name__} are not known")
            if _is_fused(module):
                return lambda x: module.down_proj(SwiGLU.apply(*module.gate_up_proj(x).chunk(2, dim=-1)))  # type: ignore[no-untyped-call]
            return lambda x: module.down_proj(SwiGLU.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-untyped-call]
        return None


def _is_gated(module: Any) -> bool:
    return _is_fused(module) or all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _is_fused(module: Any) -> bool:
    """Whether gate and values are the two halves of one product, as in Phi-3."""
    return all(hasattr(module, name) for name in ("gate_up_proj", "down_proj", "activation_fn"))


def _constant(embedded: torch.Tensor) -> torch.Tensor:
    """Tokens do not move."""
    return torch.stack([embedded[0], torch.zeros_like(embedded[0])])


@torch.no_grad()
def _scale_of(module: Any, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """c of a module that computes c x / sqrt(mean x^2 + eps), whatever it makes of its parameters."""
    ones = torch.ones_like(module.weight, dtype=dtype)
    scale: torch.Tensor = module(ones) * (1 + eps) ** 0.5
    return scale


def differentiated_attention(  # noqa: PLR0917 -- transformers' signature
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`segment_attention` of a pair: (2, heads, T, d) -> (2, T, heads, d)."""
    layout = layout_for(kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return SegmentAttention.apply(query, key, value, layout, scale), None  # type: ignore[no-untyped-call]
