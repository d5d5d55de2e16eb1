"""The loss on a plane through one's own model: `scan_plane`."""

from collections.abc import Sequence
from typing import Literal, Unpack, overload

import torch

from llm_forgetting.landscape.nodes import cached
from llm_forgetting.landscape.results import ScanAxes, Surface
from llm_forgetting.landscape.scan import PlaneScan
from llm_forgetting.landscape.scan import scan_plane as scan_engine
from llm_forgetting.models.any_module.directions import DirectionOptions, Directions, SpaceName, scan_directions
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    CHECKS,
    FitOptions,
    Measured,
    Method,
    ModuleObjective,
    Progress,
    SpaceOptions,
    Tasks,
    cells_of,
    fit_of,
    measuring,
    refuse_distance,
    rule,
    silent,
    unwrap_single_task,
)


class PlaneOptions(FitOptions, SpaceOptions, total=False):
    """Keywords of `scan_plane`."""

    directions: Directions
    method: Method
    resolution: int | None
    normalise: Literal["filter"] | None


@overload
def scan_plane(
    model: torch.nn.Module, loss: Loss, batches: Tasks, **options: Unpack[PlaneOptions]
) -> dict[str, Surface]: ...
@overload
def scan_plane(model: torch.nn.Module, loss: Loss, batches: Batches, **options: Unpack[PlaneOptions]) -> Surface: ...
def scan_plane(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches | Tasks,
    *,
    directions: Directions = "random",
    distance: float = 1.0,
    method: Method = "spectral",
    resolution: int | None = None,
    tolerance: float = 0.01,
    max_evaluations: int = 60,
    seed: int = 0,
    space: SpaceName | None = None,
    parameters: Sequence[str] | None = None,
    normalise: Literal["filter"] | None = None,
    reference_norm: float | None = None,
    progress: Progress | None = None,
) -> Surface | dict[str, Surface]:
    """The loss on a plane through `model` as it stands: losses[i, j] = L(theta + alphas[i] d + betas[j] e).

    Args:
        model: Any torch module or PEFT LoRA model. Afterwards everything in it is as before, bit for bit, also after an error
            or Ctrl-C: parameters, buffers, modes, `requires_grad`, random streams.
        loss: `loss(model, batch)`: a tensor of the items' losses, (sum, count), or a scalar mean (over predicted tokens where
            the batch has `labels`, else over items). None: `model(**batch).loss`, for transformers models and dict batches.
        batches: Anything that can be gone through several times in the same order; or a dict of such by task, then every task
            is measured at the same points and the result is a dict of surfaces. Moved to the model's device.
        directions: `random`; `gradient` (downhill along the gradient of the tasks' mean loss, then random, orthogonal); or
            given, (d, e): dicts of a tensor per parameter name, for exactly W + a d + b e, what is left out not moved;
            for PEFT models also delta W = B A per module (see `checkpoint_difference`).
        distance: The axes go from -distance to distance, in units of the norm of what is moved (of `reference_norm`), or of the
            given directions. Li et al. (2018) draw 1; the merged weights of a pretrained language model bear about 0.05.
        method: `spectral` fits a polynomial surface to few evaluations and measures its error; `grid` evaluates every cell.
        resolution: Cells along an axis, odd; None is 41 for spectral, 11 for grid.
        tolerance: A fit is good if its largest error at fresh random points is within this share of min(range, 2 nats).
        max_evaluations: The budget of a fit, whose `converged` says whether it sufficed.
        seed: Of random directions and check points.
        space: Of a PEFT model: `adapter` (default), the adapter's own reachable set in coordinates that do not depend on how A
            and B are written; or `weight`, the merged weights. A plain module's is `weight`: every parameter a matrix (first
            dimension, all others), a random direction's rows with the norms of its rows (filter normalisation).
        parameters: Shell-style patterns of what random directions of a plain module move; None: all floating-point parameters
            of at least two dimensions that require a gradient. Biases and the like are left alone.
        normalise: `filter` gives the rows of given directions the norms of the parameters' rows.
        reference_norm: Distance 1 of random and gradient directions, to compare checkpoints; None: the norm of what is moved.
        progress: Called after every evaluation.

    Returns:
        The surface, or one by task where `batches` are by task. What does not fit raises UserError, in one line.
    """
    refuse_distance(distance)
    cells, wanted = cells_of(method, resolution), rule(tolerance, max_evaluations, CHECKS, 2, seed)
    options = DirectionOptions(directions, seed, space, parameters, normalise, reference_norm)
    with measuring(model, loss, batches) as losses:
        around = scan_directions(model, losses, 2, options)
        with cached(ModuleObjective(losses, around.perturbed), advance=progress or silent) as nodes:
            scan = scan_engine(
                nodes, around.point, ModuleObjective.losses, distance=distance, cells=cells, method=method, rule=wanted
            )
    surfaces = {name: _surface(scan, index, tolerance, around.along(seed)) for index, name in enumerate(losses.names)}
    return unwrap_single_task(surfaces)


def _surface(scan: PlaneScan, index: int, tolerance: float, along: ScanAxes) -> Surface:
    """The surface of task number `index`."""
    fitted = scan.surface
    return Surface(
        alphas=scan.alphas,
        betas=scan.betas,
        losses=scan.values[:, :, index],
        evaluated=Measured(scan.points, scan.measured, fitted, scan.note).of_task(index, tolerance),
        along=along,
        fits=None if fitted is None else (fit_of(index, fitted.fit), fit_of(index, fitted.previous)),
    )
