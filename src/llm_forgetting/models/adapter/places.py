"""Where the parameters of a backbone are, whatever PEFT has wrapped around them, and other values in their places."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from llm_forgetting.landscape.factors import WEIGHT, WeightUpdate
from llm_forgetting.landscape.spaces import NoisyUpdate
from llm_forgetting.models.adapter.interrupts import defer_interrupts
from llm_forgetting.models.adapter.saved_adapter import PREFIX


def layer_number(name: str) -> int | None:
    """The number of the layer that a module or parameter is in, by the first number in its dotted name; None: in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter of the backbone where a module has it; `turned` where the module keeps a linear map as (d_in, d_out)."""

    module: nn.Module
    leaf: str
    parameter: nn.Parameter
    turned: bool

    def upright(self, weight: torch.Tensor) -> torch.Tensor:
        """(d_out, d_in) of the weight as the module keeps it, and the other way round; what is no matrix as it is."""
        return weight.T if self.turned and weight.dim() == 2 else weight

    def now(self) -> torch.Tensor:
        """What is in the place at the moment: the parameter, or what was put there."""
        value = self.module._parameters[self.leaf]
        assert value is not None
        return value

    def put(self, tensor: torch.Tensor) -> None:
        """Let the module have another tensor for its parameter, which is not written."""
        self.module._parameters[self.leaf] = tensor  # type: ignore[assignment]


def places_of(model: Any) -> dict[str, Place]:
    """Every parameter of a backbone by its name there; a tied one has several. PEFT's own parameters are none of them."""
    found: dict[str, Place] = {}
    _collect(model, "", found)
    return {name.removeprefix(PREFIX): place for name, place in found.items()}


def _collect(module: Any, name: str, found: dict[str, Place]) -> None:
    if isinstance(module, BaseTunerLayer):
        return _collect(module.get_base_layer(), name, found)
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _collect(module.original_module, name, found)
    turned = type(module).__name__ == "Conv1D"
    for leaf, parameter in module.named_parameters(recurse=False):
        found[f"{name}.{leaf}".removeprefix(".")] = Place(module, leaf, parameter, turned)
    for child, part in module.named_children():
        _collect(part, f"{name}.{child}".removeprefix("."), found)
    return None


@contextmanager
def exchanging(
    places: Mapping[str, list[Place]], origin: Callable[[str], torch.Tensor], others: list[str], dtype: torch.dtype
) -> Iterator[Callable[[WeightUpdate], None]]:
    """A setter that puts W + delta W into the place of every parameter W that an update changes; W is never written.

    Args:
        places: By parameter name where its value is needed; several where it is tied.
        origin: From a parameter's name to W, upright, from which updates are counted.
        others: Parameters whose live value is not W: they are moved by every update, to W where it does not name them.
        dtype: Precision of what is put there.

    Yields:
        The setter. Costs one copy of the changed parameters; on leaving, the parameters themselves are in their places.
    """
    moved: dict[str, None] = {}

    def restore() -> None:
        for name in moved:
            for place in places[name]:
                place.put(place.parameter)
        moved.clear()

    @torch.no_grad()
    def move(update: WeightUpdate) -> None:
        restore()
        for name in dict.fromkeys([*others, *update.parameters]):
            value = moved_weight(origin(name).to(dtype), update, name)
            moved[name] = None
            for place in places[name]:
                place.put(place.upright(value).contiguous())

    try:
        yield move
    finally:
        with defer_interrupts():
            for place in chain.from_iterable(places.values()):
                place.put(place.parameter)


Line = tuple[list[Place], torch.Tensor, torch.Tensor]


def lines_along(places: Mapping[str, list[Place]], update: WeightUpdate, dtype: torch.dtype) -> list[Line]:
    """Per parameter that an update changes its places, what is there now, and its change, as the module keeps them."""
    lines = []
    for name in update.parameters:
        change, where = update.change(name), places[name]
        if change is not None:
            lines.append((where, where[0].now().detach().to(dtype), where[0].upright(change).to(dtype)))
    return lines


def moved_weight(weight: torch.Tensor, update: WeightUpdate, name: str) -> torch.Tensor:
    """W + delta W of one parameter, upright; noise of weight space included."""
    change = update.change(name)
    value = weight.clone() if change is None else weight + change.to(weight)
    pair = update.get(name.removesuffix(WEIGHT))
    if isinstance(pair, NoisyUpdate) and name.endswith(WEIGHT):
        for rows, block in pair.blocks():
            value[rows] += block.to(value)
    return value
