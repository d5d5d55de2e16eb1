"""Quantisation as a perturbation: a model that computes with W + B A rounded to 4 or 8 bits, its own weights untouched."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.attach import target_layers
from llm_forgetting.models.adapter.interrupts import defer_interrupts
from llm_forgetting.models.adapter.linear_layers import between_embeddings
from llm_forgetting.models.adapter.perturbation import merged_weight
from llm_forgetting.models.adapter.widened import frozen_product, wide_weight

Kind = Literal["4bit", "8bit"]
# Weights of a block of NF4 that share a float32 scale.
BLOCK = 64


class Requantised(nn.Linear):
    """A linear layer that holds W as bitsandbytes packs it: blocks of NF4, or rows of int8."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kind: Kind) -> None:
        from bitsandbytes import functional

        super().__init__(weight.shape[1], weight.shape[0], bias is not None, "meta")
        self._functional: Any = functional
        weight = weight.contiguous()
        if kind == "8bit":
            packed, self._state, _ = self._functional.int8_vectorwise_quant(weight.half())
        else:
            packed, self._state = self._functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        self._kind = kind
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]

    def dequantize(self) -> Tensor:
        """(d_out, d_in) float32, as `widened` asks for it."""
        if self._kind == "8bit":
            wide: Tensor = self._functional.int8_vectorwise_dequant(self.weight.data, self._state)
        else:
            wide = self._functional.dequantize_4bit(self.weight.data, self._state)
        return wide

    def forward(self, x: Tensor) -> Tensor:
        """The product with what is left of W, in the precision of x."""
        y = frozen_product(x, self)
        return y if self.bias is None else y + self.bias


@contextmanager
def requantised(model: AdaptedModel, kind: Kind) -> Iterator[None]:
    """Within the block every layer between the embeddings computes with W + delta W rounded to `kind` and back, layer by layer.

    No weight is written: the layers stand aside and come back. Costs a copy of the weights in `kind`.
    """
    backbone, exchanged = model.backbone, list[tuple[str, nn.Module, nn.Module]]()
    with ExitStack() as stack:
        if model.dense is None:
            factors = model.adapter_factors()
            layers = target_layers(model.peft_model)
            stack.enter_context(model.without_adapter())
        else:
            stack.enter_context(model.perturbed())(model.adapter_factors())
            factors, layers = WeightUpdate({}), {}
        with torch.no_grad():
            for name, plain in between_embeddings(backbone):
                if any(part.startswith(("lora_", "modules_to_save")) for part in name.split(".")):
                    continue
                own = name.removesuffix(".base_layer")
                wide = merged_weight(layers[own], factors[own]) if own in layers else _upright(plain)
                exchanged.append((name, plain, Requantised(wide, plain.bias, kind)))
        try:
            for name, _, rounded in exchanged:
                backbone.set_submodule(name, rounded)
            yield
        finally:
            with defer_interrupts():
                for name, plain, _ in exchanged:
                    backbone.set_submodule(name, plain)


def _upright(layer: nn.Module) -> Tensor:
    weight = wide_weight(layer)
    return weight if isinstance(layer, nn.Linear) else weight.T
