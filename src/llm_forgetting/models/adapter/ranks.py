"""Ranks of a live adapter changed: for methods that add an adapter per task, or leave one of another rank."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.attach import target_layers
from llm_forgetting.models.adapter.saved_adapter import PREFIX


def set_ranks(peft_model: Any, ranks: Mapping[str, int], adapter: str) -> None:
    """Give every layer's A and B as many rows and columns as `ranks` says, filled with 0 where that is another number.

    The scale s of a layer stays, and the adapter's settings say so when it is saved. Layers that have their rank are not
    touched.
    """
    layers = target_layers(peft_model)
    changed = {n: layer for n, layer in layers.items() if ranks[n] != len(layer.lora_A[adapter].weight)}
    for name, layer in changed.items():
        A, B, rank = layer.lora_A[adapter], layer.lora_B[adapter], ranks[name]
        layer.r[adapter] = A.out_features = B.in_features = rank
        A.weight = nn.Parameter(A.weight.new_zeros(rank, A.in_features), requires_grad=A.weight.requires_grad)
        B.weight = nn.Parameter(B.weight.new_zeros(B.out_features, rank), requires_grad=B.weight.requires_grad)
    if changed:
        _say_ranks(peft_model.peft_config[adapter], layers, ranks, adapter)


def _say_ranks(settings: Any, layers: Mapping[str, Any], ranks: Mapping[str, int], adapter: str) -> None:
    """PEFT's settings of the ranks, with the alphas that keep the scales."""

    def alpha(name: str) -> float:
        scale = float(layers[name].scaling[adapter])
        return scale * (math.sqrt(ranks[name]) if settings.use_rslora else ranks[name])

    first = next(iter(layers))
    settings.r, settings.lora_alpha = ranks[first], alpha(first)
    settings.rank_pattern = {name: rank for name, rank in ranks.items() if rank != settings.r}
    settings.alpha_pattern = {name: alpha(name) for name in layers if alpha(name) != settings.lora_alpha}


@torch.no_grad()
def set_update(peft_model: Any, adapter: str, update: Mapping[str, Factors]) -> None:
    """Make an update, whose scale is 1, the live adapter, of whatever ranks it has."""
    layers = target_layers(peft_model)
    set_ranks(peft_model, {name: len(pair.A) for name, pair in update.items()}, adapter)
    for name, layer in layers.items():
        layer.lora_A[adapter].weight.copy_(update[name].A)
        layer.lora_B[adapter].weight.copy_(update[name].B / layer.scaling[adapter])


@torch.no_grad()
def extend(peft_model: Any, adapter: str, fresh: Mapping[str, Factors]) -> None:
    """Put new rows beneath every A and new columns beside every B; what was there keeps every bit."""
    layers = target_layers(peft_model)
    before = {n: [part[adapter].weight.clone() for part in (y.lora_A, y.lora_B)] for n, y in layers.items()}
    set_ranks(peft_model, {name: len(A) + len(fresh[name].A) for name, (A, _) in before.items()}, adapter)
    for name, layer in layers.items():
        A, B = before[name]
        layer.lora_A[adapter].weight.copy_(torch.cat([A, fresh[name].A]))
        layer.lora_B[adapter].weight.copy_(torch.cat([B, fresh[name].B], dim=1))


def ranks_of(peft_model: Any, adapter: str) -> dict[str, int]:
    """The rank of every layer of the live adapter."""
    return {name: len(layer.lora_A[adapter].weight) for name, layer in target_layers(peft_model).items()}


def saved_ranks(state: Mapping[str, Any]) -> dict[str, int]:
    """The ranks of a saved adapter, or of one kept in memory, from the shapes of its A."""
    ends = {name: name.removesuffix(".lora_A.weight").removeprefix(PREFIX) for name in state}
    return {module: state[name].shape[0] for name, module in ends.items() if name.endswith(".lora_A.weight")}


def fresh_factors(peft_model: Any, adapter: str, ranks: Mapping[str, int], seed: int) -> dict[str, Factors]:
    """A as PEFT draws it, Kaiming-uniform, and B = 0, in the place and precision of the live ones."""
    draw = torch.Generator().manual_seed(seed)
    fresh = {}
    for name, layer in target_layers(peft_model).items():
        A, B, rank = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, ranks[name]
        drawn = (2 * torch.rand(rank, A.shape[1], generator=draw) - 1) / math.sqrt(A.shape[1])
        fresh[name] = Factors(B=B.detach().new_zeros(len(B), rank), A=drawn.to(A))
    return fresh
