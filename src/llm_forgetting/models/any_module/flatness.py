"""How flat the loss is around one's own model: `flatness`, the number that a training script logs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.metrics import basin_radius, mean_rise
from llm_forgetting.landscape.nodes import CachedEvaluator
from llm_forgetting.landscape.results import Flatness
from llm_forgetting.landscape.scan import LINE_NODES, LINE_STEPS, axis, line_profile
from llm_forgetting.models.any_module.directions import DirectionOptions, ScanDirections, SpaceName, scan_directions
from llm_forgetting.models.any_module.losses import Batches, Loss
from llm_forgetting.models.any_module.scan_options import (
    Progress,
    Tasks,
    identity,
    measuring,
    nodes_at,
    refuse_distance,
    unwrap_single_task,
)


# fmt: off
@overload
def flatness(
    model: torch.nn.Module, loss: Loss, batches: Tasks, *, directions: int = ..., distance: float = ..., tau: float = ...,
    seed: int = ..., space: SpaceName | None = ..., parameters: Sequence[str] | None = ...,
    reference_norm: float | None = ..., progress: Progress | None = ...,
) -> dict[str, Flatness]: ...
@overload
def flatness(
    model: torch.nn.Module, loss: Loss, batches: Batches, *, directions: int = ..., distance: float = ..., tau: float = ...,
    seed: int = ..., space: SpaceName | None = ..., parameters: Sequence[str] | None = ...,
    reference_norm: float | None = ..., progress: Progress | None = ...,
) -> Flatness: ...
# fmt: on
def flatness(
    model: torch.nn.Module,
    loss: Loss,
    batches: Any,
    *,
    directions: int = 8,
    distance: float = 1.0,
    tau: float = 0.1,
    seed: int = 0,
    space: SpaceName | None = None,
    parameters: Sequence[str] | None = None,
    reference_norm: float | None = None,
    progress: Progress | None = None,
) -> Any:
    """Mean rise of the loss at `distance` from `model` as it stands, over random directions, with its standard error.

    Costs 4 evaluations per direction, 1 for the centre, and 2 passes to see that the batches are the same every time. `tau`
    (nats) is the rise that bounds the basin. All other arguments are those of `scan_plane`. A small LoRA update looks flat in
    adapter space, where distances count in its own norm: give `reference_norm` to compare checkpoints.
    """
    refuse_distance(distance)
    if directions < 2:
        raise UserError(f"directions must be at least 2 (a single one has no standard error), was {directions}")
    options = DirectionOptions("random", seed, space, parameters, None, reference_norm)
    with measuring(model, loss, batches) as losses:
        around = scan_directions(model, losses, directions, options)
        with around.perturbed() as move:
            profiles = _profiles(nodes_at(losses, move, progress), around, directions, distance)
    steps = axis(distance, LINE_STEPS)
    found = {}
    for index, name in enumerate(losses.names):
        centre, ends, lines = float(profiles.centre[index]), profiles.ends[:, :, index], profiles.losses[:, :, index]
        rise = mean_rise(centre, ends)
        with np.errstate(invalid="ignore"):  # a diverged end is not finite in the result, without a warning
            rises = ends.mean(axis=1) - centre
        found[name] = Flatness(
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
    return unwrap_single_task(found)


@dataclass(frozen=True)
class _Profiles:
    """`centre` (tasks,) and `ends` (directions, 2, tasks) as measured; `losses` (directions, steps, tasks) on the polynomials
    through the centre and four points of each line.
    """

    centre: Floats
    ends: Floats
    losses: Floats
    evaluations: int


def _profiles(nodes: CachedEvaluator, around: ScanDirections, directions: int, distance: float) -> _Profiles:
    places, steps = distance * np.array(LINE_NODES), axis(distance, LINE_STEPS)
    half = len(places) // 2
    ends, losses = [], []
    (centre,) = nodes.at("centre", np.zeros((1, directions)), around.point)
    for k in range(directions):
        measured = nodes.at(f"line {k}", np.outer(places, np.eye(directions)[k]), around.point)
        known = np.concatenate([measured[:half], centre[None], measured[half:]])
        ends.append(measured[[0, -1]])
        losses.append(line_profile(np.concatenate([places[:half], [0.0], places[half:]]), known, steps, identity))
    return _Profiles(centre, np.stack(ends), np.stack(losses), nodes.evaluations)
