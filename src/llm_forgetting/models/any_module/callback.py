"""Flatness while a transformers Trainer trains one's own model, and the way it went, on the plane of three checkpoints."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.results import Flatness, Trajectory
from llm_forgetting.models.any_module.checkpoints import Checkpoints, named, plane_checkpoints
from llm_forgetting.models.any_module.directions import SpaceName, as_adapted
from llm_forgetting.models.any_module.flatness import FlatnessOptions, flatness
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import Tasks, measuring, unwrap_single_task

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Recorded:
    """The model after `step` optimiser steps: its flatness by task (None for a fresh adapter, which has no directions), and
    what is trained, as a state dict or the safetensors file that holds it.
    """

    step: int
    epoch: float
    flatness: dict[str, Flatness] | None
    kept: dict[str, torch.Tensor] | Path

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict: of a PEFT model its adapter's, else trained parameters and floating-point buffers."""
        return dict(load_file(self.kept)) if isinstance(self.kept, Path) else self.kept


class FlatnessCallback(TrainerCallback):
    """Measures `flatness` during training, and records the way; the training itself is the same with and without it.

    Args:
        loss: See `scan_plane`; None for transformers models and dict batches.
        batches: Fixed batches, the same at every measurement; or by task.
        every: Measure after so many steps or epochs; always at the beginning and the end.
        unit: `steps` or `epochs`.
        directions: Random directions, the same every time; a measurement costs 4 evaluations for each, and 3.
        distance: In units of the norm of what is moved, or of `reference_norm`. That of a LoRA adapter grows from 0, so early
            measurements look at a small neighbourhood: give `reference_norm` to compare steps.
        tau: Rise of the loss that bounds the basin.
        seed: Of the directions.
        space: See `scan_plane`.
        parameters: See `scan_plane`.
        reference_norm: See `scan_plane`.
        folder: Keep the recorded states there as safetensors; None keeps them in memory.
        log: Called with the numbers of every measurement, for example `wandb.log`; they are in `state.log_history` anyway.

    The numbers are called `landscape/mean_rise`, `landscape/mean_rise_stderr`, `landscape/basin_radius`, `landscape/loss` and
    `landscape/norm`, by task `landscape/TASK/...`.
    """

    def __init__(
        self,
        loss: Loss,
        batches: Batches | Tasks,
        *,
        every: int = 50,
        unit: Literal["steps", "epochs"] = "steps",
        directions: int = 4,
        distance: float = 1.0,
        tau: float = 0.1,
        seed: int = 0,
        space: SpaceName | None = None,
        parameters: Sequence[str] | None = None,
        reference_norm: float | None = None,
        folder: str | os.PathLike[str] | None = None,
        log: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        if unit not in ("steps", "epochs") or every < 1:
            raise UserError(f"every must be at least 1 and unit 'steps' or 'epochs', were {every} and {unit!r}")
        self._loss, self._batches = loss, batches
        self._every, self._unit = every, unit
        self._options = FlatnessOptions(
            directions=directions,
            distance=distance,
            tau=tau,
            seed=seed,
            space=space,
            parameters=parameters,
            reference_norm=reference_norm,
        )
        self._folder = None if folder is None else Path(folder)
        self._log = log
        self._model: torch.nn.Module | None = None
        self.recorded: list[Recorded] = []

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """The first measurement."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UserError(
                "FlatnessCallback needs all parameters in one process, DeepSpeed and FSDP spread them; leave it out"
            )
        self.recorded = []
        self._record(state, kwargs["model"])

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """A measurement every so many steps."""
        if self._unit == "steps" and state.global_step % self._every == 0:
            self._record(state, kwargs["model"])

    def on_epoch_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """A measurement every so many epochs."""
        if self._unit == "epochs" and round(state.epoch) % self._every == 0:
            self._record(state, kwargs["model"])

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """The last measurement."""
        self._record(state, kwargs["model"])

    def _record(self, state: "TrainerState", model: torch.nn.Module) -> None:
        if not state.is_world_process_zero or (self.recorded and self.recorded[-1].step == state.global_step):
            return
        self._model = model
        by_task = self._measured(model)
        step, epoch = int(state.global_step), float(state.epoch or 0.0)
        self.recorded.append(Recorded(step, epoch, by_task, self._kept(model, step)))
        numbers: dict[str, float] = {}
        for task, measured in (by_task or {}).items():
            numbers |= measured.log(f"landscape/{task}/" if task else "landscape/")
        if numbers:
            state.log_history.append({"epoch": epoch, **numbers, "step": step})
        if numbers and self._log is not None:
            self._log(numbers)

    def _measured(self, model: torch.nn.Module) -> dict[str, Flatness] | None:
        adapted = as_adapted(model)
        if adapted is not None and not adapted.is_trained and self._options["space"] != "weight":
            return None
        result: Flatness | dict[str, Flatness] = flatness(model, self._loss, self._batches, **self._options)
        return {"": result} if isinstance(result, Flatness) else result

    def _kept(self, model: torch.nn.Module, step: int) -> dict[str, torch.Tensor] | Path:
        state = _trained_state(model)
        if self._folder is None:
            return state
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{step:08d}.safetensors"
        save_file(state, path, metadata={"format": "pt"})
        return path

    def project(self, checkpoints: Checkpoints | None = None) -> Trajectory | dict[str, Trajectory]:
        """Where the recorded points lie on the plane through three checkpoints, by default the first, the middle and the last
        recorded one: a `Trajectory`, or one by task.

        Costs two evaluations for every point: at the point itself, and at its image on the plane.

        Returns:
            The projected points, by task where the batches are.

        Raises:
            UserError: Fewer than three points are recorded and no checkpoints given, or nothing was trained.
        """
        if self._model is None or (checkpoints is None and len(self.recorded) < 3):
            raise UserError(
                f"a plane needs three recorded points (or checkpoints=), there are {len(self.recorded)}; train first"
            )
        corners_by_name = named(self._chosen() if checkpoints is None else checkpoints)
        with measuring(self._model, self._loss, self._batches) as losses:
            corners = plane_checkpoints(self._model, list(corners_by_name.values()))
            places, true, in_plane = [], [], []
            with corners.perturbed() as move:
                for record in self.recorded:
                    image = corners.plane.project(corners.update(record.state))
                    move(corners.place(record.state))
                    true.append(losses.values())
                    move(corners.point((image.a, image.b)))
                    in_plane.append(losses.values())
                    places.append((image.a, image.b, image.residual))
        located = np.array(places)
        return unwrap_single_task(
            {
                name: Trajectory(
                    steps=np.array([record.step for record in self.recorded]),
                    coordinates=located[:, :2],
                    residuals=located[:, 2],
                    losses=np.array(true)[:, index],
                    in_plane_losses=np.array(in_plane)[:, index],
                    checkpoints=dict(zip(corners_by_name, corners.plane.corners, strict=True)),
                    description=corners.description,
                )
                for index, name in enumerate(losses.names)
            }
        )

    def _chosen(self) -> dict[str, dict[str, torch.Tensor]]:
        chosen = (self.recorded[0], self.recorded[len(self.recorded) // 2], self.recorded[-1])
        return {f"step_{record.step}": record.state for record in chosen}


def _trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU of what training changes."""
    adapted = as_adapted(model)
    if adapted is not None:
        return adapted.adapter_state()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    saved = model.state_dict(keep_vars=True).keys()
    buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in {**trained, **buffers}.items()}
