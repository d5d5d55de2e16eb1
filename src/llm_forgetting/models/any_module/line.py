"""The loss along a line through one's own model: `scan_line`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack, overload

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.domains import Segment
from llm_forgetting.landscape.nodes import CachedEvaluator, cached
from llm_forgetting.landscape.results import Line
from llm_forgetting.landscape.scan import LINE_STEPS, axis
from llm_forgetting.landscape.spectral import NotSmoothError, Rule, fit_surface
from llm_forgetting.models.any_module.directions import (
    DirectionOptions,
    GivenDirection,
    ScanDirections,
    SpaceName,
    scan_directions,
)
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    CHECKS,
    GRID_CELLS,
    FitOptions,
    Measured,
    ModuleObjective,
    Progress,
    SpaceOptions,
    Tasks,
    cells_of,
    measuring,
    refuse_distance,
    rule,
    silent,
    unwrap_single_task,
)


class LineOptions(FitOptions, SpaceOptions, total=False):
    """Keywords of `scan_line`."""

    direction: Literal["random", "gradient"] | GivenDirection
    steps: Sequence[float] | Floats | None
    resolution: int
    normalise: Literal["filter"] | None


@overload
def scan_line(
    model: torch.nn.Module, loss: Loss, batches: Tasks, **options: Unpack[LineOptions]
) -> dict[str, Line]: ...
@overload
def scan_line(model: torch.nn.Module, loss: Loss, batches: Batches, **options: Unpack[LineOptions]) -> Line: ...
def scan_line(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches | Tasks,
    *,
    direction: Literal["random", "gradient"] | GivenDirection = "random",
    distance: float = 1.0,
    steps: Sequence[float] | Floats | None = None,
    resolution: int = LINE_STEPS,
    tolerance: float = 0.01,
    max_evaluations: int = 40,
    seed: int = 0,
    space: SpaceName | None = None,
    parameters: Sequence[str] | None = None,
    normalise: Literal["filter"] | None = None,
    reference_norm: float | None = None,
    progress: Progress | None = None,
) -> Line | dict[str, Line]:
    """The loss along a line through `model` as it stands: losses[i] = L(theta + steps[i] d). See `scan_plane` for the rest.

    With `steps` exactly these are evaluated (0 to 1 along the difference of two checkpoints is the path between them); without,
    a polynomial is fitted on [-distance, distance] and given at `resolution` even steps.

    Returns:
        The line, or one by task where `batches` are by task.
    """
    refuse_distance(distance)
    wanted = rule(tolerance, max_evaluations, CHECKS, 1, seed)
    options = DirectionOptions(direction, seed, space, parameters, normalise, reference_norm)
    with measuring(model, loss, batches) as losses:
        around = scan_directions(model, losses, 1, options)
        with cached(ModuleObjective(losses, around.perturbed), advance=progress or silent) as nodes:
            if steps is None:
                scan = _fitted(nodes, around, distance, cells_of("spectral", resolution), wanted)
            else:
                scan = _stepwise(nodes, around, np.asarray(steps, dtype=np.float64).reshape(-1), None)
    return unwrap_single_task(
        {
            name: Line(
                steps=scan.steps,
                losses=scan.losses[:, index],
                evaluated=scan.measured.of_task(index, tolerance),
                along=around.along(seed),
            )
            for index, name in enumerate(losses.names)
        }
    )


@dataclass(frozen=True)
class _LineScan:
    """Losses (steps, tasks), and what was measured for them."""

    steps: Floats
    losses: Floats
    measured: Measured


def _fitted(nodes: CachedEvaluator, around: ScanDirections, distance: float, cells: int, wanted: Rule) -> _LineScan:
    try:
        fitted = fit_surface(
            lambda where: nodes.at("line", where, around.point),
            ModuleObjective.losses,
            Segment(-distance, distance),
            wanted,
        )
    except NotSmoothError as error:
        note = f"{error}, so {GRID_CELLS} steps were evaluated instead of a fit; more may lie between"
        return _stepwise(nodes, around, axis(distance, GRID_CELLS), note)
    steps = axis(distance, cells)
    return _LineScan(steps, fitted.fit(steps[:, None]), Measured(fitted.points, fitted.values, fitted))


def _stepwise(nodes: CachedEvaluator, around: ScanDirections, steps: Floats, note: str | None) -> _LineScan:
    losses = nodes.at("line", steps[:, None], around.point)
    return _LineScan(steps, losses, Measured(steps[:, None], losses, None, note))
