"""How flat the loss is around one's own model: `flatness`, the number that a training script logs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack, overload

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.metrics import basin_radius, mean_rise
from llm_forgetting.landscape.nodes import CachedEvaluator, Objective, cached
from llm_forgetting.landscape.results import Flatness
from llm_forgetting.landscape.scan import LINE_STEPS, axis, evaluate_line, line_profile
from llm_forgetting.models.any_module.directions import DirectionOptions, ScanDirections, SpaceName, scan_directions
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    ModuleObjective,
    Progress,
    SpaceOptions,
    Tasks,
    measuring,
    refuse_distance,
    silent,
    unwrap_single_task,
)


class FlatnessOptions(SpaceOptions, total=False):
    """Keywords of `flatness`."""

    directions: int
    tau: float
    seed: int
    progress: Progress | None


@overload
def flatness(
    model: torch.nn.Module, loss: Loss, batches: Tasks, **options: Unpack[FlatnessOptions]
) -> dict[str, Flatness]: ...
@overload
def flatness(model: torch.nn.Module, loss: Loss, batches: Batches, **options: Unpack[FlatnessOptions]) -> Flatness: ...
def flatness(
    model: torch.nn.Module,
    loss: Loss,
    batches: Batches | Tasks,
    *,
    directions: int = 8,
    distance: float = 1.0,
    tau: float = 0.1,
    seed: int = 0,
    space: SpaceName | None = None,
    parameters: Sequence[str] | None = None,
    reference_norm: float | None = None,
    progress: Progress | None = None,
) -> Flatness | dict[str, Flatness]:
    """Mean rise of the loss at `distance` from `model` as it stands, over random directions, with its standard error.

    Costs 4 evaluations per direction, 1 for the centre, and 2 passes to see that the batches are the same every time. `tau`
    (nats) is the rise that bounds the basin. All other arguments are those of `scan_plane`. A small LoRA update looks flat in
    adapter space, where distances count in its own norm: give `reference_norm` to compare checkpoints.

    Returns:
        The numbers, or those of every task where `batches` are by task.

    Raises:
        UserError: Something does not fit, in one line; or fewer than two directions are asked for.
    """
    refuse_distance(distance)
    if directions < 2:
        raise UserError(f"directions must be at least 2 (a single one has no standard error), was {directions}")
    options = DirectionOptions("random", seed, space, parameters, None, reference_norm)
    with measuring(model, loss, batches) as losses:
        around = scan_directions(model, losses, directions, options)
        objective = ModuleObjective(losses, around.perturbed)
        with cached(objective, advance=progress or silent) as nodes:
            profiles = _profiles(nodes, objective, around, directions, distance)
    steps = axis(distance, LINE_STEPS)
    by_task = {}
    for index, name in enumerate(losses.names):
        centre, ends, lines = float(profiles.centre[index]), profiles.ends[:, :, index], profiles.losses[:, :, index]
        rise = mean_rise(centre, ends)
        with np.errstate(invalid="ignore"):  # a diverged end is not finite in the result, without a warning
            rises = ends.mean(axis=1) - centre
        by_task[name] = Flatness(
            centre=centre,
            mean_rise=rise.value,
            mean_rise_stderr=rise.stderr,
            rises=tuple(map(float, rises)),
            basin_radius=basin_radius(steps, lines, tau),
            tau=tau,
            distance=distance,
            steps=steps,
            losses=lines,
            along=around.along(seed),
            evaluations=profiles.evaluations,
        )
    return unwrap_single_task(by_task)


@dataclass(frozen=True)
class _Profiles:
    """`centre` (tasks,) and `ends` (directions, 2, tasks) as measured; `losses` (directions, steps, tasks) on the polynomials
    through the centre and four points of each line.
    """

    centre: Floats
    ends: Floats
    losses: Floats
    evaluations: int


def _profiles(
    nodes: CachedEvaluator, objective: Objective, around: ScanDirections, directions: int, distance: float
) -> _Profiles:
    steps, ends, losses = axis(distance, LINE_STEPS), [], []
    (centre,) = nodes.at("centre", np.zeros((1, directions)), around.point)
    for k in range(directions):

        def point(row: Sequence[float], k: int = k) -> WeightUpdate:
            return around.point([row[0] if n == k else 0.0 for n in range(directions)])

        places, values = evaluate_line(nodes, f"line {k}", point, centre, distance)
        ends.append(values[[0, -1]])
        losses.append(line_profile(places, values, steps, objective.losses))
    return _Profiles(centre, np.stack(ends), np.stack(losses), nodes.evaluations)
