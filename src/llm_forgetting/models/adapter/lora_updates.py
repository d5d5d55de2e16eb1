"""Updates of a plain LoRA adapter, delta W = s B A in linear modules: read, written and saved as factors."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llm_forgetting.files import write_text
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, at_least_float32
from llm_forgetting.models.adapter.attach import load_weights, saved_options, target_layers
from llm_forgetting.models.adapter.lora_options import is_plain
from llm_forgetting.models.adapter.perturbation import merged_weight
from llm_forgetting.models.adapter.saved_adapter import (
    CONFIG,
    Checkpoint,
    fitted,
    read_update,
    read_weights_at,
    update_from,
    weight_name,
    write_weights,
)


class LoraUpdates:
    """What reads, moves and keeps the trained part of a PEFT model with plain LoRA; all updates have its scale absorbed."""

    def __init__(self, peft_model: Any) -> None:
        self._model = peft_model
        self._adapter: str = peft_model.active_adapters[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbone's weights."""
        trained = {id(weight) for _, _, weight in self._weights()}
        dtype: torch.dtype = next(p.dtype for p in self._model.parameters() if id(p) not in trained)
        return dtype

    def live(self) -> WeightUpdate:
        """The live update as a function of the trained weights: what is computed from it has a gradient."""
        layers = target_layers(self._model).items()
        return WeightUpdate({name: live_factors(layer, self._adapter) for name, layer in layers})

    def update(self) -> WeightUpdate:
        """The live update, in float32 or better on the model's device; copies."""
        layers = target_layers(self._model).items()
        return WeightUpdate({name: factors_of(layer, self._adapter) for name, layer in layers})

    def update_of(self, checkpoint: Checkpoint) -> WeightUpdate:
        """The update of a folder, of a PEFT state dict at the live scale, of factors, or of None: zero; of the live shapes."""
        live = self.update()
        if checkpoint is None:
            return WeightUpdate.zero(live)
        if isinstance(checkpoint, str | os.PathLike):
            return fitted(read_update(Path(checkpoint)), live, f"the adapter in {checkpoint}")
        if all(isinstance(pair, Factors) for pair in checkpoint.values()):
            return fitted(dict(checkpoint), live, "the checkpoint")
        scales = self._scales()
        update = update_from(checkpoint, lambda module, rank: scales.get(module, 1.0), "the checkpoint")
        return fitted(update, live, "the checkpoint")

    def row_norms(self, update: WeightUpdate) -> dict[str, torch.Tensor]:
        """(d_out,) row norms of W + delta W of every module."""
        return {
            name: merged_weight(layer, update[name]).norm(dim=1) for name, layer in target_layers(self._model).items()
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A and B by the names that PEFT gives them in a saved adapter; not copied."""
        for module, factor, weight in self._weights():
            yield weight_name(module, factor), weight

    def hashed(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A and B by their module's name, in the order of names."""
        for module, _, weight in sorted(self._weights(), key=lambda own: own[0]):
            yield module, weight

    @torch.no_grad()
    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the adapter the weights that `state` had."""
        for name, weight in self.tensors():
            weight.copy_(state[name])

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Write the adapter as (A / factor, factor B)."""
        for _, name, weight in self._weights():
            weight.div_(factor) if name == "A" else weight.mul_(factor)

    def load(self, folder: Path) -> None:
        """Give the adapter the weights saved in `folder`; B is multiplied where its scale is not the live one."""
        load_weights(self._model, self._adapter, read_weights_at(folder, self._scales()), folder)

    def save(self, folder: Path, update: WeightUpdate) -> None:
        """Any delta W, of whatever ranks, as an adapter of scale 1."""
        ranks = {name: pair.A.shape[0] for name, pair in update.items()}
        settings = copy.deepcopy(self._model.peft_config[self._adapter])
        settings.r = settings.lora_alpha = max(ranks.values())
        settings.rank_pattern = settings.alpha_pattern = {n: rank for n, rank in ranks.items() if rank != settings.r}
        settings.use_rslora, settings.inference_mode = False, True
        settings.save_pretrained(str(folder))
        sort_names(folder)
        write_weights(folder, update)

    def _scales(self) -> dict[str, float]:
        return {name: float(layer.scaling[self._adapter]) for name, layer in target_layers(self._model).items()}

    def _pair(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.lora_A[self._adapter].weight, layer.lora_B[self._adapter].weight

    def _weights(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, layer in target_layers(self._model).items():
            for factor, weight in zip("AB", self._pair(layer), strict=True):
                yield name, factor, weight


def live_factors(layer: Any, adapter: str) -> Factors:
    """s B and A of a LoRA layer in float32 or better, with the graph to its weights."""
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Factors(B=at_least_float32(B) * layer.scaling[adapter], A=at_least_float32(A))


def factors_of(layer: Any, adapter: str) -> Factors:
    """The same as copies."""
    live = live_factors(layer, adapter)
    return Factors(B=live.B.detach(), A=live.A.detach().clone())


def reads_factors(folder: Path) -> bool:
    """Whether the update of a saved checkpoint is plain LoRA."""
    return (folder / CONFIG).is_file() and is_plain(saved_options(folder))


def sort_names(folder: Path) -> None:
    """Module names of adapter_config.json in one order: PEFT keeps them as a set and writes them in hash order."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True))
