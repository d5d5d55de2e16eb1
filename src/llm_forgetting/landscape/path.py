"""Linear paths between two checkpoints in delta-W space."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.between_records import StartDerivatives
from llm_forgetting.landscape.domains import Segment
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.metrics import Barrier, barrier, second_derivative
from llm_forgetting.landscape.nodes import Objective, cached
from llm_forgetting.landscape.spectral import Rule, SpectralSurface, fit_surface

PATH_STEPS = 101

# The path is fitted from a little before its start, where it is to be differentiated: at the end of a fit its second derivative
# is the worst of it.
LEAD = 0.1

# Step of the differences that differentiate fitted paths, in t: fits are smooth, so their error is 1e-4 of what they differ.
DIFFERENCE = 1e-3

# From one bowl into another the loss is steep: lower degrees were never enough, and eight check points cost more than they.
PATH_FIRST_DEGREE = 12


def interpolate(first: WeightUpdate, second: WeightUpdate, t: float) -> WeightUpdate:
    """delta W_1 + t (delta W_2 - delta W_1), of the two ranks together."""
    return WeightUpdate.combine([(1 - t, first), (t, second)]) if t != 1 else second


@dataclass(frozen=True, eq=False)
class FittedPath:
    """Values (s, m) at `steps` (s,) in t from 0 to 1, from the fit `surface`; `update_norm` is |delta W_2 - delta W_1|_F.

    `barriers` and `at_start`, the derivatives in t at the start, are those of the K tasks, nats.
    """

    steps: Floats
    values: Floats
    surface: SpectralSurface
    update_norm: float
    barriers: tuple[Barrier, ...]
    at_start: tuple[StartDerivatives, ...]


def scan_path(
    objective: Objective,
    first: WeightUpdate,
    second: WeightUpdate,
    rule: Rule,
    *,
    journal: Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> FittedPath:
    """The tasks' losses along the straight path from `first` to `second`, fitted under `rule` from degree 12 on.

    Args:
        objective: Losses of the tasks.
        first: delta W at t = 0.
        second: delta W at t = 1.
        rule: Tolerance, check points and budget of the fit.
        journal: File that keeps every evaluation.
        advance: Called for every evaluation.

    Returns:
        Values along the path, the fit, and barrier and start derivatives of every task.

    A value that is not finite raises NotSmoothError.
    """
    with cached(objective, journal, advance) as nodes:
        surface = fit_surface(
            lambda places: nodes.at("path", places, lambda row: interpolate(first, second, row[0])),
            objective.losses,
            Segment(-LEAD, 1.0),
            replace(rule, first_degree=PATH_FIRST_DEGREE),
        )
    steps = np.linspace(0, 1, PATH_STEPS)
    values = surface.fit(steps[:, None])
    return FittedPath(
        steps=steps,
        values=values,
        surface=surface,
        update_norm=WeightUpdate.combine([(1.0, second), (-1.0, first)]).norm(),
        barriers=tuple(barrier(steps, losses) for losses in objective.losses(values).T),
        at_start=_start_derivatives(objective, surface),
    )


def _start_derivatives(objective: Objective, surface: SpectralSurface) -> tuple[StartDerivatives, ...]:
    """First and second derivative of every task's loss at t = 0; errors are their change with one degree less."""
    places = np.array([[-DIFFERENCE], [0.0], [DIFFERENCE]])
    fine, coarse = (objective.losses(fit(places)).T for fit in (surface.fit, surface.previous))
    derivatives = []
    for losses, other_losses in zip(fine, coarse, strict=True):
        slope, curvature = second_derivative(losses, DIFFERENCE)
        other_slope, other_curvature = second_derivative(other_losses, DIFFERENCE)
        derivatives.append(
            StartDerivatives(slope, abs(slope - other_slope), curvature, abs(curvature - other_curvature))
        )
    return tuple(derivatives)


def selection_mask(count: int, pool: int) -> NDArray[np.bool_]:
    """(count,) items of a task, drawn from `pool`, that select the repair t*; the others of the pool evaluate it.

    All of them where at least as many others are left, else every second one, beginning with the first.

    Returns:
        (count,) True for the items that select.
    """
    return np.ones(count, dtype=bool) if pool >= 2 * count else np.asarray(np.arange(count) % 2 == 0)
