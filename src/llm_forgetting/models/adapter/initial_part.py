"""Initialisations that take a part s B0 A0 out of the frozen weights (PiSSA, OLoRA), as plain LoRA on the original weights.

Training W - s B0 A0 + s B A from (B0, A0) on is training W + s [B, -B0] [A; A0], whose second half stays as it is: an adapter
of twice the rank, which is what PEFT converts such an adapter to when it is to be shared. W is never written.
"""

import copy
from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import nn

from llm_forgetting.config.sections import LoraConfig
from llm_forgetting.errors import UserError

# The part is computed anew when a checkpoint is loaded, perhaps by another library of linear algebra.
TOLERANCE = 1e-3


def begin_with_weights(layers: Mapping[str, Any], lora: LoraConfig, adapter: str = "default") -> None:
    """Give LoRA layers of twice the rank the factors [B0, -B0], [A0; A0], the second half of which gets no gradient.

    Weights that are not there (on the meta device) are left out. UserError where a layer has too few rows or columns.
    """
    for name, layer in layers.items():
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        rank = len(A) // 2
        if rank > min(len(B), A.shape[1]):
            raise UserError(
                f"lora.init={lora.init} needs a rank of at most the smallest side of every adapted weight, {name} is "
                f"{len(B)} x {A.shape[1]} and its rank {rank}; lower lora.rank"
            )
        if A.device.type == "meta" or layer.get_base_layer().weight.device.type == "meta":
            continue
        B0, A0 = _part_of(layer, lora, rank, adapter)
        with torch.no_grad():
            A.copy_(torch.cat([A0, A0]))
            B.copy_(torch.cat([B0, -B0], dim=1))
        A.register_hook(lambda g, rank=rank: torch.cat([g[:rank], torch.zeros_like(g[rank:])]))
        B.register_hook(lambda g, rank=rank: torch.cat([g[:, :rank], torch.zeros_like(g[:, rank:])], dim=1))


def _part_of(layer: Any, lora: LoraConfig, rank: int, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B0 and A0 of one layer, as PEFT initialises a layer like it."""
    alone = nn.Module()
    alone.layer = copy.deepcopy(layer.get_base_layer())
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=layer.scaling[adapter] * (rank**0.5 if lora.use_rslora else rank),
        use_rslora=lora.use_rslora,
        target_modules=["layer"],
        init_lora_weights=lora.init,
        fan_in_fan_out=layer.fan_in_fan_out,
    )
    made: Any = peft.get_peft_model(alone, settings).base_model.model.layer
    return made.lora_B["default"].weight.detach(), made.lora_A["default"].weight.detach()


def initial_parts(layers: Mapping[str, Any], adapter: str = "default") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The second halves of B and A of every layer; copies."""
    return {name: _second_halves(layer, adapter) for name, layer in layers.items()}


def require_initial_parts(
    layers: Mapping[str, Any],
    parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    what: str,
    adapter: str = "default",
) -> None:
    """UserError where the second halves of the factors are no longer, or not, the part that was taken out of the weights."""
    for name, (B0, A0) in parts.items():
        B, A = _second_halves(layers[name], adapter)
        taken = B0 @ A0
        if not (B @ A - taken).norm() <= TOLERANCE * taken.norm():
            raise UserError(
                f"{what} must hold what lora.init takes out of this backbone's weights, in {name} it does not; it was "
                f"trained on another backbone or from another initialisation"
            )


def _second_halves(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
    rank = len(A) // 2
    return B[:, rank:].clone(), A[rank:].clone()
