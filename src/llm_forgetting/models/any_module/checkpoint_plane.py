"""The loss on the plane through three checkpoints of one's own model: `checkpoint_plane`."""

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.nodes import CachedEvaluator
from llm_forgetting.landscape.results import CheckpointSurface
from llm_forgetting.landscape.spectral import NotSmoothError, Rule, fit_surface
from llm_forgetting.models.any_module.checkpoints import Checkpoints, PlaneCheckpoints, named, plane_checkpoints
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    GRID_CELLS,
    PLANE_CHECKS,
    Measured,
    Method,
    Progress,
    Tasks,
    cells_of,
    identity,
    measuring,
    nodes_at,
    rule,
    unwrap_single_task,
)

FAMILY = "checkpoint plane"


# fmt: off
@overload
def checkpoint_plane(
    model: torch.nn.Module, loss: Loss, batches: Tasks, *, checkpoints: Checkpoints, margin: float = ...,
    method: Method = ..., resolution: int | None = ..., tolerance: float = ..., max_evaluations: int = ..., seed: int = ...,
    progress: Progress | None = ...,
) -> dict[str, CheckpointSurface]: ...
@overload
def checkpoint_plane(
    model: torch.nn.Module, loss: Loss, batches: Batches, *, checkpoints: Checkpoints, margin: float = ...,
    method: Method = ..., resolution: int | None = ..., tolerance: float = ..., max_evaluations: int = ..., seed: int = ...,
    progress: Progress | None = ...,
) -> CheckpointSurface: ...
# fmt: on
def checkpoint_plane(
    model: torch.nn.Module,
    loss: Loss,
    batches: Any,
    *,
    checkpoints: Checkpoints,
    margin: float = 0.1,
    method: Method = "spectral",
    resolution: int | None = None,
    tolerance: float = 0.01,
    max_evaluations: int = 60,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
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

    Raises UserError, in one line, where something does not fit, or where the checkpoints lie on a line.
    """
    if margin < 0:
        raise UserError(f"margin must be at least 0, was {margin}")
    wanted = rule(tolerance, max_evaluations, PLANE_CHECKS, 2, seed)
    cells = cells_of(method, resolution)
    names = named(checkpoints)
    with measuring(model, loss, batches) as losses:
        corners = plane_checkpoints(model, list(names.values()))
        domain = Triangle(corners.plane.corners).widened(margin)
        with corners.perturbed() as move:
            nodes = nodes_at(losses, move, progress)
            found = _scan(nodes, corners, domain, wanted, fitted=method == "spectral", cells=cells)
            at_corners = nodes.at(FAMILY, np.array(corners.plane.corners), corners.point)
    fitted = found.measured.fitted
    errors = None if fitted is None else np.abs(fitted.fit(np.array(corners.plane.corners)) - at_corners).max(axis=0)
    return unwrap_single_task(
        {
            name: CheckpointSurface(
                alphas=found.alphas,
                betas=found.betas,
                losses=found.spread(index),
                inside=found.inside,
                checkpoints=dict(zip(names, corners.plane.corners, strict=True)),
                at_checkpoints=dict(zip(names, map(float, at_corners[:, index]), strict=True)),
                error_at_checkpoints=None if errors is None else float(errors[index]),
                evaluated=found.measured.of_task(index, tolerance),
                description=corners.description,
            )
            for index, name in enumerate(losses.names)
        }
    )


@dataclass(frozen=True)
class _Scan:
    """Losses (cells inside, tasks) of the cells inside the triangle, and what was measured for them."""

    alphas: Floats
    betas: Floats
    inside: np.ndarray
    losses: Floats
    measured: Measured

    def spread(self, index: int) -> Floats:
        """(alphas, betas) losses of one task, NaN outside."""
        surface = np.full(self.inside.shape, np.nan)
        surface[self.inside] = self.losses[:, index]
        return surface


def _scan(
    nodes: CachedEvaluator, corners: PlaneCheckpoints, domain: Triangle, wanted: Rule, *, fitted: bool, cells: int
) -> _Scan:
    note = None
    alphas, betas, inside, places = _cells(domain, cells)
    if fitted:
        try:
            surface = fit_surface(lambda where: nodes.at(FAMILY, where, corners.point), identity, domain, wanted)
        except NotSmoothError as error:
            alphas, betas, inside, places = _cells(domain, GRID_CELLS)
            note = f"{error}, so {len(places)} cells were evaluated instead of a fit"
        else:
            measured = Measured(surface.points, surface.values, surface)
            return _Scan(alphas, betas, inside, surface.fit(places), measured)
    losses = nodes.at(FAMILY, places, corners.point)
    return _Scan(alphas, betas, inside, losses, Measured(places, losses, None, note))


def _cells(domain: Triangle, cells: int) -> tuple[Floats, Floats, np.ndarray, Floats]:
    """Both axes, which of their cells lie inside, and the places (p, 2) of those."""
    alphas, betas = domain.axes(cells)
    mesh = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    inside = domain.contains(mesh.reshape(-1, 2)).reshape(mesh.shape[:2])
    return alphas, betas, inside, mesh[inside]
