"""Checkpoints of one's own model as points of a plane: state dicts of any module, or adapters of a PEFT model."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.saved_adapter import Checkpoint
from llm_forgetting.models.any_module.directions import GivenDirection, as_adapted
from llm_forgetting.models.any_module.parameters import DirectionBasis, moved, refuse_unmovable

if TYPE_CHECKING:
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel

Checkpoints = Mapping[str, Checkpoint] | Sequence[Checkpoint]
SMALLEST_VARIANCE = 1e-12  # of a unit that is dead; batch normalisation adds 1e-5


class PlaneCheckpoints(Protocol):
    """Three checkpoints of one model, and how to get to any point of their plane or to any other checkpoint."""

    plane: CheckpointPlane
    description: str

    def perturbed(self) -> AbstractContextManager[Callable[[WeightUpdate], None]]:
        """A setter that moves the model; afterwards it is as before."""
        ...

    def point(self, row: Sequence[float]) -> WeightUpdate:
        """The point (a, b) of the plane."""
        ...

    def place(self, checkpoint: Checkpoint) -> WeightUpdate:
        """A checkpoint itself."""
        ...

    def update(self, checkpoint: Checkpoint) -> WeightUpdate:
        """What the plane projects: the checkpoint as a vector in its coordinates."""
        ...


def named(checkpoints: Checkpoints) -> dict[str, Checkpoint]:
    """Checkpoints by name; `checkpoint_0` and so on where they have none. UserError unless they are three."""
    if isinstance(checkpoints, str | os.PathLike) or len(checkpoints) != 3:
        raise UserError(f"checkpoints must be three, in a list or by name, were {len(checkpoints)}")
    if isinstance(checkpoints, Mapping):
        return dict(checkpoints)
    return {f"checkpoint_{number}": checkpoint for number, checkpoint in enumerate(checkpoints)}


def plane_checkpoints(model: torch.nn.Module, checkpoints: Sequence[Checkpoint]) -> PlaneCheckpoints:
    """Three checkpoints of `model`."""
    adapted = as_adapted(model)
    return ModuleCheckpoints(model, checkpoints) if adapted is None else AdapterCheckpoints(adapted, checkpoints)


class AdapterCheckpoints:
    """Three adapters on one backbone: every point of their plane is an adapter of the three ranks together."""

    description = "delta W over all adapted modules"

    def __init__(self, model: "AdaptedModel", checkpoints: Sequence[Checkpoint]) -> None:
        self._model = model
        self.plane = CheckpointPlane(*map(self.update, checkpoints))

    def perturbed(self) -> AbstractContextManager[Callable[[WeightUpdate], None]]:
        """See `AdaptedModel.perturbed`."""
        return self._model.perturbed()

    def point(self, row: Sequence[float]) -> WeightUpdate:
        """delta W at (a, b)."""
        return self.plane.update(*row)

    def place(self, checkpoint: Checkpoint) -> WeightUpdate:
        """delta W of a checkpoint."""
        return self.update(checkpoint)

    def update(self, checkpoint: Checkpoint) -> WeightUpdate:
        """delta W of a checkpoint."""
        return self._model.update_of(checkpoint)


class ModuleCheckpoints:
    """Three state dicts of one module; what they leave out stays as the module has it.

    Distances are those of the parameters. Floating-point buffers (the statistics of batch normalisation) go along, so that at
    a checkpoint they are its own and its loss is the true one: running variances geometrically, as beyond the triangle they
    could become negative otherwise, all others linearly.
    """

    description = "the parameters; floating-point buffers go along"

    def __init__(self, module: torch.nn.Module, checkpoints: Sequence[Checkpoint]) -> None:
        self._known: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        # Tied tensors have several names and are moved once, by the first of them.
        first = {id(tensor): name for name, tensor in reversed(self._known.items())}
        self._own = {name: first[id(tensor)] for name, tensor in self._known.items()}
        states = [self._given(checkpoint) for checkpoint in checkpoints]
        used = [name for name in self._known if any(name in state for state in states)]
        parameters = dict(module.named_parameters())
        self._parameters = [name for name in used if name in parameters]
        refuse_unmovable({name: parameters[name] for name in self._parameters})
        self._live = {name: self._known[name].detach() for name in used}
        self._origin = {name: states[0].get(name, tensor).clone() for name, tensor in self._live.items()}
        self._edges = DirectionBasis([self._offset(state) for state in states[1:]])
        self._variances = {
            name: torch.stack([state.get(name, tensor) for state in states]).clamp_min(SMALLEST_VARIANCE).log()
            for name, tensor in self._live.items()
            if name.rpartition(".")[2] == "running_var"
        }
        self.plane = CheckpointPlane(*map(self.update, checkpoints))
        self._triangle = Triangle(self.plane.corners)

    def _given(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The floating-point tensors of a state dict, by their first names, in the model's precision and place."""
        if not isinstance(checkpoint, Mapping):
            raise UserError(f"a checkpoint of a plain module must be its state dict, was {type(checkpoint).__name__}")
        wrong = [name for name, value in checkpoint.items() if self._shape(name) != tuple(value.shape)]
        if wrong:
            raise UserError(
                f"a checkpoint must be a state dict of this model, {len(wrong)} of its tensors are not: {wrong[0]} is "
                f"{tuple(checkpoint[wrong[0]].shape)}, must be {self._shape(wrong[0])}"
            )
        return {
            self._own[name]: value.detach().to(self._known[name])
            for name, value in checkpoint.items()
            if self._known[name].is_floating_point() and self._known[name].numel()
        }

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._known[name].shape) if name in self._known else None

    def _offset(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """From the first checkpoint to `state`."""
        return {name: state.get(name, tensor) - self._origin[name] for name, tensor in self._live.items()}

    def perturbed(self) -> AbstractContextManager[Callable[[WeightUpdate], None]]:
        """See `moved`."""
        return moved(self._live, self._origin)

    def point(self, row: Sequence[float]) -> WeightUpdate:
        """The point (a, b), as offsets from the first checkpoint."""
        second, third = map(float, (self._triangle.unit(np.array([row]))[0] + 1) / 2)
        linear = self._edges.point([second, third])
        geometric = {
            name: torch.einsum("k,k...->...", logs.new_tensor([1 - second - third, second, third]), logs).exp()
            for name, logs in self._variances.items()
        }
        offsets = DirectionBasis([{name: v - self._origin[name] for name, v in geometric.items()}]).point([1.0])
        return WeightUpdate({**linear, **offsets})

    def place(self, checkpoint: Checkpoint) -> WeightUpdate:
        """A checkpoint, as offsets from the first."""
        state = self._given(checkpoint)
        foreign = sorted(state.keys() - self._live.keys())
        if foreign:
            raise UserError(f"a checkpoint must hold what the plane's do, {foreign[0]} is in none of them")
        return DirectionBasis([self._offset(state)]).point([1.0])

    def update(self, checkpoint: Checkpoint) -> WeightUpdate:
        """The parameters' part of `place`."""
        placed = self.place(checkpoint)
        return WeightUpdate({name: placed[name] for name in self._parameters})


def checkpoint_difference(model: torch.nn.Module, start: Checkpoint, end: Checkpoint) -> GivenDirection:
    """The direction from one checkpoint to another, for `scan_line` and `scan_plane`: at `start`, a step of 1 along it leads to
    `end`.

    State dicts of plain modules give a tensor per parameter (buffers are no parameters: they stay). Of a PEFT model, adapters
    (folders, PEFT state dicts, None for the bare backbone) give delta W_end - delta W_start = B A per module.

    Returns:
        The direction, as `scan_line` and `scan_plane` take it.

    Raises:
        UserError: A checkpoint is not one of this model.
    """
    adapted = as_adapted(model)
    if adapted is not None:
        first, second = (adapted.update_of(checkpoint) for checkpoint in (start, end))
        return WeightUpdate.combine([(1.0, second), (-1.0, first)])
    if not isinstance(start, Mapping) or not isinstance(end, Mapping):
        raise UserError("checkpoints of a plain module must be its state dicts")
    parameters = dict(model.named_parameters())
    return {
        name: end[name].detach().to(parameter) - start[name].detach().to(parameter)
        for name, parameter in parameters.items()
        if name in start and name in end
    }
