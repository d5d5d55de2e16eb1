"""Several adapters merged into one, by PEFT's `add_weighted_adapter`."""

from collections.abc import Sequence
from typing import Any, Literal

import peft
import torch
from torch import nn

from llm_forgetting.landscape.gauge import Factors

Combination = Literal["linear", "svd", "ties", "dare_linear", "cat"]


def merged(
    pairs: Sequence[Factors], weights: Sequence[float], combination: Combination, density: float, seed: int
) -> Factors:
    """One module's adapters merged.

    Args:
        pairs: Factors of every adapter, of scale 1; of the same rank but for `svd` and `cat`.
        weights: One per adapter.
        combination: PEFT's combination_type. `linear`, `ties` and `dare_linear` combine A and B each for itself, so they
            depend on how delta W is written; `svd` and `cat` combine delta W.
        density: Share of the entries that `ties` and `dare_linear` keep.
        seed: Of the entries that `dare_linear` keeps.

    Returns:
        Factors of scale 1, of the rank of the first adapter; of `cat`, of all ranks together.
    """
    alone = nn.Module()
    d_out, d_in = len(pairs[0].B), pairs[0].A.shape[1]
    alone.layer = nn.Linear(d_in, d_out, bias=False)
    names = [f"task{n}" for n in range(1, len(pairs) + 1)]
    settings = [peft.LoraConfig(r=len(pair.A), lora_alpha=len(pair.A), target_modules=["layer"]) for pair in pairs]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model: Any = peft.get_peft_model(alone, settings[0], adapter_name=names[0])
        for name, setting in zip(names[1:], settings[1:], strict=True):
            model.add_adapter(name, setting)
        layer = model.base_model.model.layer
        for name, pair in zip(names, pairs, strict=True):
            layer.lora_A[name].weight.copy_(pair.A)
            layer.lora_B[name].weight.copy_(pair.B)
        sparse = {"density": density} if combination in ("ties", "dare_linear") else {}
        rank = {"svd_rank": len(pairs[0].A)} if combination == "svd" else {}
        model.add_weighted_adapter(names, list(weights), "merged", combination_type=combination, **sparse, **rank)
        scale = layer.scaling["merged"]
        A, B = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
        return Factors(B=(scale * B.detach()).to(pairs[0].B), A=A.detach().to(pairs[0].A))
