"""Updates that are more than s B A in linear modules: those of any PEFT adapter, as PEFT itself merges them.

An adapter that PEFT can merge changes weights of the backbone by a delta W that depends on its own parameters, and often on W
(DoRA). It is read layer by layer: a copy of the layer is merged, and W is subtracted. Trained biases and whole trained modules
(`modules_to_save`) are changes of their parameters.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.dense import Dense, Held
from llm_forgetting.landscape.factors import WEIGHT, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, at_least_float32
from llm_forgetting.models.adapter.attach import adapter_weights, attach_saved, load_weights
from llm_forgetting.models.adapter.lora_updates import factors_of
from llm_forgetting.models.adapter.places import Place, moved_weight, places_of
from llm_forgetting.models.adapter.saved_adapter import PREFIX, Checkpoint, read_weights
from llm_forgetting.models.adapter.widened import is_quantised

State = Mapping[str, torch.Tensor]


class DenseUpdates(Protocol):
    """What reads, moves and keeps the trained part of a model where that is not plain LoRA.

    `places` are where the value of a parameter is needed, `others` the parameters whose live value is not that from which
    updates are counted, `trained` how many numbers are trained.
    """

    places: Mapping[str, list[Place]]
    others: list[str]
    trained: int

    def origin(self, parameter: str) -> torch.Tensor:
        """The value of a parameter from which updates are counted, upright."""
        ...

    def update(self) -> WeightUpdate:
        """The live update; nothing that happens to the model later changes it."""
        ...

    def read(self, folder: Path) -> WeightUpdate:
        """The update of a saved checkpoint of any kind, on this backbone."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trained weights by name; not copied."""
        ...

    def set_state(self, state: State) -> None:
        """Give the model the trained weights that `state` had."""
        ...

    def load(self, folder: Path) -> None:
        """Give the model the trained weights saved in `folder`."""
        ...


class Merging:
    """A tuner layer as it is now; its adapter's parameters are copied, the frozen weight is not."""

    def __init__(self, layer: Any) -> None:
        self._layer = copy.deepcopy(layer, _shared(layer.get_base_layer()))

    def merged(self, leaf: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A parameter of the base layer before and after PEFT merges the active adapters into a float32 copy of it."""
        parameters = self._layer.get_base_layer().parameters()
        wide = {id(p): nn.Parameter(at_least_float32(p.detach()).clone(), requires_grad=False) for p in parameters}
        layer = copy.deepcopy(self._layer, wide)
        before = getattr(layer.get_base_layer(), leaf).detach().clone()
        layer.merge(safe_merge=False)
        return before, getattr(layer.get_base_layer(), leaf).detach()


class MergedChange:
    """delta W of a tuner layer, by merging a copy of the layer whenever it is read."""

    def __init__(self, merging: Merging, place: Place) -> None:
        self._merging = merging
        self._place = place

    @property
    def shape(self) -> torch.Size:
        """Of the weight, upright."""
        return self._place.upright(self._place.parameter).shape

    @torch.no_grad()
    def read(self) -> torch.Tensor:
        """W' - W, upright."""
        before, after = self._merging.merged(self._place.leaf)
        return self._place.upright(after - before)


class PeftUpdates:
    """`DenseUpdates` of a PEFT model with adapters of any kind that PEFT can merge."""

    def __init__(self, peft_model: Any) -> None:
        self._model = peft_model
        self._adapter: str = peft_model.active_adapters[0]
        self._places = places_of(peft_model)
        self.places: Mapping[str, list[Place]] = {name: [place] for name, place in self._places.items()}
        biased = any(
            getattr(peft_model.peft_config[name], "bias", "none") != "none" for name in peft_model.active_adapters
        )
        # Biases are trained in their places, also where adapters are switched off.
        self.others = [name for name in self._places if biased and "bias" in name]
        self._origin = {name: self._places[name].parameter.detach().clone() for name in self.others}
        self._layers = {name.removeprefix(PREFIX): layer for name, layer in tuner_layers(peft_model).items()}
        self._saved = {
            name.removeprefix(PREFIX): module
            for name, module in peft_model.named_modules()
            if isinstance(module, ModulesToSaveWrapper) and module.active_adapters
        }
        for name, layer in self._layers.items():
            if is_quantised(layer.get_base_layer()):
                raise UserError(
                    f"an adapter that is not plain LoRA needs weights that are not quantised, {name} is; load the backbone "
                    f"without quantisation"
                )
        own = [p for layer in [*self._layers.values(), *self._saved.values()] for p in layer.parameters()]
        frozen = {id(place.parameter) for name, place in self._places.items() if name not in self.others}
        self.trained = sum(p.numel() for p in {id(p): p for p in own}.values() if id(p) not in frozen)

    def origin(self, parameter: str) -> torch.Tensor:
        """The backbone's own value."""
        place = self._places[parameter]
        return place.upright(self._origin.get(parameter, place.parameter.detach()))

    @torch.no_grad()
    def update(self) -> WeightUpdate:
        """Factors of layers that are plain LoRA, dense changes of all others and of biases and whole modules."""
        factors: dict[str, Factors] = {}
        dense: dict[str, Dense] = {}
        for name, layer in self._layers.items():
            if is_plain_layer(layer):
                factors[name] = factors_of(layer, layer.active_adapters[0])
                continue
            merging = Merging(layer)
            for leaf, parameter in layer.get_base_layer().named_parameters(recurse=False):
                if parameter.dim() > 1:
                    dense[f"{name}.{leaf}"] = MergedChange(merging, self._places[f"{name}.{leaf}"])
                else:
                    before = self._origin.get(f"{name}.{leaf}", parameter.detach())
                    dense[f"{name}.{leaf}"] = Held(at_least_float32(merging.merged(leaf)[1] - before))
        for name in self.others:
            own, live = self._origin[name], self._places[name].parameter.detach()
            dense.setdefault(name, Held(at_least_float32(live) - at_least_float32(own)))
        for name, wrapper in self._saved.items():
            for leaf, parameter in wrapper.modules_to_save[wrapper.active_adapters[0]].named_parameters():
                place = self._places[f"{name}.{leaf}"]
                change = at_least_float32(parameter.detach()) - at_least_float32(place.parameter.detach())
                dense[f"{name}.{leaf}"] = Held(place.upright(change))
        return WeightUpdate(factors, dense)

    def read(self, folder: Path) -> WeightUpdate:
        """The update of a saved adapter of any kind, its own settings."""
        bare = copy.deepcopy(self._model, _shared(self._model)).unload()
        for name, place in places_of(bare).items():  # whole trained modules stay in place when PEFT unloads
            own = self._places[name].parameter
            place.put(nn.Parameter(self._origin[name].clone()) if name in self._origin else own)
        updates = PeftUpdates(attach_saved(bare, folder))
        updates.load(folder)
        return updates.update()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that PEFT saves of the adapter."""
        yield from adapter_weights(self._model, self._adapter).items()

    def set_state(self, state: State) -> None:
        """As PEFT loads it."""
        import peft

        peft.set_peft_model_state_dict(self._model, dict(state), adapter_name=self._adapter)

    def load(self, folder: Path) -> None:
        """As PEFT loads it; UserError where it does not fit."""
        load_weights(self._model, self._adapter, read_weights(folder, matrices=False), folder)


def dense_update_of(dense: DenseUpdates, checkpoint: Checkpoint) -> WeightUpdate:
    """The update of a folder, of trained weights by name, of factors, or of None: zero."""
    if checkpoint is None:
        return WeightUpdate({})
    if isinstance(checkpoint, str | os.PathLike):
        return dense.read(Path(checkpoint))
    if isinstance(checkpoint, WeightUpdate):
        return checkpoint
    if all(isinstance(pair, Factors) for pair in checkpoint.values()):
        return WeightUpdate(checkpoint)
    before = {name: weight.detach().cpu().clone() for name, weight in dense.tensors()}
    try:
        dense.set_state(checkpoint)
        return dense.update()
    finally:
        dense.set_state(before)


def dense_row_norms(dense: DenseUpdates, update: WeightUpdate) -> dict[str, torch.Tensor]:
    """Row norms of W + delta W of every changed parameter of two and more dimensions."""
    norms = {}
    for name in update.parameters:
        weight = at_least_float32(dense.origin(name))
        if weight.dim() > 1:
            norms[name.removesuffix(WEIGHT)] = moved_weight(weight, update, name).flatten(1).norm(dim=1)
    return norms


def save_whole(backbone: Any, dense: DenseUpdates, folder: Path, update: WeightUpdate) -> None:
    """W + delta W of all parameters as a model that transformers loads, in the backbone's precision."""
    state: dict[str, torch.Tensor] = {}
    values: dict[int, torch.Tensor] = {}
    for name, places in dense.places.items():
        place = places[0]
        value = moved_weight(at_least_float32(dense.origin(name)), update, name)
        state[name] = place.upright(value).to(place.parameter.dtype).contiguous().cpu()
        tied = values.setdefault(id(place.parameter), state[name])
        if not torch.equal(tied, state[name]):
            raise UserError(
                f"a model that is saved as a whole must keep its tied weights the same, this update unties {name}; train "
                f"without lora.modules_to_save on tied weights"
            )
        state[name] = tied
    backbone.save_pretrained(folder, state_dict=state)


def tuner_layers(peft_model: Any) -> dict[str, Any]:
    """Every layer that an active adapter changes, by its name in the PEFT model."""
    return {
        name: module
        for name, module in peft_model.named_modules()
        if isinstance(module, BaseTunerLayer) and not set(module.active_adapters).isdisjoint(_adapters_of(module))
    }


def _adapters_of(layer: Any) -> set[str]:
    return {name for names in layer.adapter_layer_names for name in getattr(layer, names, {})}


def is_plain_layer(layer: Any) -> bool:
    """Whether delta W of a layer is s B A of its one active adapter."""
    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    if name not in layer.lora_A or not isinstance(layer.lora_A[name], nn.Linear):  # AdaLoRA has parameters there
        return False
    return name not in layer.lora_variant and not layer.lora_bias.get(name)


def _shared(module: nn.Module) -> dict[int, Any]:
    """What a copy of a module has in common with it: frozen weights, whose memory counts."""
    return {id(p): p for p in module.parameters() if p.dim() > 1 and not p.requires_grad}
