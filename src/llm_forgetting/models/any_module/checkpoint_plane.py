"""The loss on the plane through three checkpoints of one's own model: `checkpoint_plane`."""

from typing import Required, Unpack, overload

import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.checkpoint_plane import ScannedPlane, scan_checkpoint_plane
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.results import CheckpointSurface
from llm_forgetting.models.any_module.checkpoints import Checkpoints, named, plane_checkpoints
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    CHECKS,
    GRID_CELLS,
    FitOptions,
    Measured,
    Method,
    ModuleObjective,
    Progress,
    Tasks,
    cells_of,
    measuring,
    rule,
    silent,
    unwrap_single_task,
)


class CheckpointPlaneOptions(FitOptions, total=False):
    """Keywords of `checkpoint_plane`."""

    checkpoints: Required[Checkpoints]
    margin: float
    method: Method
    resolution: int | None


@overload
def checkpoint_plane(
    model: torch.nn.Module, loss: Loss, batches: Tasks, **options: Unpack[CheckpointPlaneOptions]
) -> dict[str, CheckpointSurface]: ...
@overload
def checkpoint_plane(
    model: torch.nn.Module, loss: Loss, batches: Batches, **options: Unpack[CheckpointPlaneOptions]
) -> CheckpointSurface: ...
def checkpoint_plane(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches | Tasks,
    *,
    checkpoints: Checkpoints,
    margin: float = 0.1,
    method: Method = "spectral",
    resolution: int | None = None,
    tolerance: float = 0.01,
    max_evaluations: int = 60,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckpointSurface | dict[str, CheckpointSurface]:
    """The loss on the plane through three checkpoints, inside their triangle and a margin of its heights around it.

    Args:
        model: Any torch module or PEFT LoRA model; it is only borrowed, see `scan_plane`.
        loss: See `scan_plane`.
        batches: See `scan_plane`; by task, they give the bowls of all tasks on one plane.
        checkpoints: Three, in a list or by name: state dicts of a plain module; of a PEFT model folders of saved adapters, PEFT
            state dicts, or None for the bare backbone.
        margin: PrefixBatches of the triangle's heights around it.
        method: `spectral` fits a polynomial surface to few evaluations and measures its error; `grid` evaluates every cell.
        resolution: Cells along the longer axis; None is 41 for spectral, 11 for grid.
        tolerance: See `scan_plane`.
        max_evaluations: Budget of the fit; the three checkpoints come on top.
        seed: Of check points.
        progress: Called after every evaluation.

    Returns:
        The surface, or one by task where `batches` are by task.

    Raises:
        UserError: Something does not fit (in one line), or the checkpoints lie on a line.
    """
    if margin < 0:
        raise UserError(f"margin must be at least 0, was {margin}")
    wanted = rule(tolerance, max_evaluations, CHECKS, 2, seed)
    cells = cells_of(method, resolution)
    names = named(checkpoints)
    with measuring(model, loss, batches) as losses:
        corners = plane_checkpoints(model, list(names.values()))
        scan = scan_checkpoint_plane(
            ModuleObjective(losses, corners.perturbed),
            corners.plane,
            Triangle(corners.plane.corners).widened(margin),
            cells=cells,
            rule=wanted if method == "spectral" else None,
            fallback_cells=GRID_CELLS,
            point=corners.point,
            advance=progress or silent,
        )
    described = (dict(zip(names, corners.plane.corners, strict=True)), corners.description)
    return unwrap_single_task(
        {name: _surface(scan, index, tolerance, *described) for index, name in enumerate(losses.names)}
    )


def _surface(
    scan: ScannedPlane, index: int, tolerance: float, checkpoints: dict[str, tuple[float, float]], description: str
) -> CheckpointSurface:
    """The surface of task number `index`."""
    errors = scan.error_at_checkpoints
    return CheckpointSurface(
        alphas=scan.cells.alphas,
        betas=scan.cells.betas,
        losses=scan.cells.spread(scan.values[:, index]),
        inside=scan.cells.inside,
        checkpoints=checkpoints,
        at_checkpoints=dict(zip(checkpoints, map(float, scan.at_checkpoints[:, index]), strict=True)),
        error_at_checkpoints=None if errors is None else float(errors[index]),
        evaluated=Measured(scan.points, scan.measured, scan.surface, scan.note).of_task(index, tolerance),
        description=description,
    )
