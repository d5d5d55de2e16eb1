"""Values over planes and lines through a checkpoint: fitted from few evaluations, or cell by cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.domains import Segment, square
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.nodes import CachedEvaluator
from llm_forgetting.landscape.spaces import Space
from llm_forgetting.landscape.spectral import NotSmoothError, Rule, SpectralSurface, fit, fit_surface

Losses = Callable[[Floats], Floats]
# Steps, in units of the distance, at which a line off the plane is evaluated; the centre is known already.
LINE_NODES = (-1.0, -0.5, 0.5, 1.0)
LINE_STEPS = 81


def axis(distance: float, cells: int) -> Floats:
    """`cells` (odd) even steps from -distance to distance, through an exact 0."""
    half = cells // 2
    return np.arange(-half, half + 1, dtype=np.float64) * (distance / half)


@dataclass(frozen=True)
class PlaneScan:
    """Values over a plane: result.values[i, j] (m,) at theta + alphas[i] d + betas[j] e.

    `points` (p, 2) and `measured` (p, m) are what was evaluated. `surface` is the fit behind `values`, None where every cell
    was evaluated; `note` says why a grid was taken after all.
    """

    alphas: Floats
    betas: Floats
    values: Floats
    points: Floats
    measured: Floats
    surface: SpectralSurface | None
    note: str | None


def scan_plane(
    nodes: CachedEvaluator,
    point: Callable[[Sequence[float]], WeightUpdate],
    losses: Losses,
    *,
    distance: float,
    cells: int,
    method: Literal["spectral", "grid"],
    rule: Rule,
    family: str = "plane",
) -> PlaneScan:
    """Scan [-distance, distance]^2; `point` maps (a, b) to theta + a d + b e.

    `spectral` fits a surface under `rule` and evaluates it on `cells` x `cells`; where a value is not finite nothing can be
    fitted, and a grid that costs about the rule's budget is taken instead. `grid` evaluates every cell.

    Returns:
        Values of all cells, what was evaluated, and the fit, if there is one.
    """
    note = None
    if method == "spectral":
        steps = axis(distance, cells)
        try:
            surface = fit_surface(lambda places: nodes.at(family, places, point), losses, square(distance), rule)
        except NotSmoothError as error:
            cells = max(5, 2 * ((int(rule.budget**0.5) - 1) // 2) + 1)
            note = f"{error}, so a grid of {cells} x {cells} cells was evaluated instead of a fit; more may lie between"
        else:
            values = surface.fit(_mesh(steps)).reshape(cells, cells, -1)
            # The checkpoint is the first node; a least-squares fit need not pass through it.
            values[cells // 2, cells // 2] = surface.values[0]
            return PlaneScan(steps, steps.copy(), values, surface.points, surface.values, surface, None)
    steps = axis(distance, cells)
    places = _mesh(steps)
    measured = nodes.at(family, places, point)
    return PlaneScan(steps, steps.copy(), measured.reshape(cells, cells, -1), places, measured, None, note)


def _mesh(steps: Floats) -> Floats:
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class LineScan:
    """Losses (directions, steps, K) along random directions, the first two those of the plane; `nodes` were evaluated."""

    steps: Floats
    losses: Floats
    nodes: Floats


def scan_lines(
    nodes: CachedEvaluator,
    space: Space,
    directions: Sequence[Any],
    plane: PlaneScan,
    losses: Losses,
    *,
    distance: float,
) -> LineScan:
    """Profiles along every direction: read off the plane for its own two, from four further evaluations each for the others.

    Values are interpolated per function, not per loss, by the polynomial through the four and the centre; where one of them is
    not finite, the losses themselves are, linearly.

    Returns:
        Losses (directions, steps, K) along all directions.
    """
    if plane.surface is not None:
        steps = axis(distance, LINE_STEPS)
        zero = np.zeros_like(steps)
        along = [plane.surface.fit(np.stack(pair, axis=1)) for pair in ((steps, zero), (zero, steps))]
        for values in along:
            values[LINE_STEPS // 2] = plane.values[len(plane.alphas) // 2, len(plane.betas) // 2]
    else:
        steps, half = plane.alphas, len(plane.alphas) // 2
        along = [plane.values[:, half], plane.values[half]]
    profiles = [losses(values) for values in along]
    centre = plane.values[len(plane.alphas) // 2, len(plane.betas) // 2]
    for number, direction in enumerate(directions[2:], start=2):
        known = evaluate_line(
            nodes,
            f"line {number}",
            lambda row, d=direction: space.point([(row[0], d)]),  # type: ignore[misc]
            centre,
            distance,
        )
        profiles.append(line_profile(*known, steps, losses))
    return LineScan(steps, np.stack(profiles), distance * np.array(LINE_NODES))


def evaluate_line(
    nodes: CachedEvaluator,
    family: str,
    point: Callable[[Sequence[float]], WeightUpdate],
    centre: Floats,
    distance: float,
) -> tuple[Floats, Floats]:
    """Steps (5,) along a line, and values (5, m) there: four evaluations, and the known ones (m,) of its centre."""
    steps, half = distance * np.array(LINE_NODES), len(LINE_NODES) // 2
    values = nodes.at(family, steps[:, None], point)
    return (
        np.concatenate([steps[:half], [0.0], steps[half:]]),
        np.concatenate([values[:half], centre[None], values[half:]]),
    )


def line_profile(places: Floats, values: Floats, steps: Floats, losses: Losses) -> Floats:
    """(steps, K) losses along a line from values (p, m) at p places: those of the polynomial through them, per function."""
    try:
        return losses(
            fit(Segment(float(places[0]), float(places[-1])), places[:, None], values, len(places) - 1)(steps[:, None])
        )
    except NotSmoothError:
        return np.stack([np.interp(steps, places, column) for column in losses(values).T], axis=1)
