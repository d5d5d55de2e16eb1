"""The plane through three checkpoints in delta-W space, where every point is an adapter of at most three ranks together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.between_records import TrajectoryPoint
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.nodes import CachedEvaluator, Objective, cached
from llm_forgetting.landscape.spectral import NotSmoothError, Rule, SpectralSurface, fit_surface

# Updates in float32 that differ by less than this share of their size differ by rounding.
SAME = 1e-6


@dataclass(frozen=True)
class Projection:
    """Coordinates of an update on the plane and what is left over: |delta W - its image|_F."""

    a: float
    b: float
    residual: float


class CheckpointPlane:
    """origin + a u + b v: u from the origin to `first`, v the part of the way to `second` that is orthogonal to u.

    Both axes are of length 1 in the Frobenius product over all modules, so distances on the plane are distances of delta W.
    Only the three updates are kept; a point is their linear combination, by concatenation.
    """

    def __init__(self, origin: WeightUpdate, first: WeightUpdate, second: WeightUpdate) -> None:
        self._updates = (origin, first, second)
        g = [[x.inner(y) for y in self._updates] for x in self._updates]

        def product(x: tuple[float, ...], y: tuple[float, ...]) -> float:
            return sum(x[i] * y[j] * g[i][j] for i in range(3) for j in range(3))

        w = (-1.0, 1.0, 0.0)
        length = math.sqrt(max(product(w, w), 0.0))
        size = math.sqrt(max(g[i][i] for i in range(3)))
        if length <= SAME * size:
            raise UserError("the checkpoints of a plane must differ; the first two are the same update")
        u = tuple(x / length for x in w)
        w = (-1.0, 0.0, 1.0)
        along = product(u, w)
        across = tuple(x - along * y for x, y in zip(w, u, strict=True))
        height = math.sqrt(max(product(across, across), 0.0))
        if height <= SAME * max(size, length):
            raise UserError("the checkpoints of a plane must not lie on one line; use a path instead")
        self._axes = (u, tuple(x / height for x in across))
        self.corners = ((0.0, 0.0), (length, 0.0), (along, height))

    def update(self, a: float, b: float) -> WeightUpdate:
        """delta W at (a, b)."""
        u, v = self._axes
        weights = [float(n == 0) + a * u[n] + b * v[n] for n in range(3)]
        return WeightUpdate.combine(list(zip(weights, self._updates, strict=True)))

    def project(self, update: WeightUpdate) -> Projection:
        """The nearest point of the plane."""
        products = [update.inner(other) - self._updates[0].inner(other) for other in self._updates]
        a, b = (sum(x * y for x, y in zip(axis, products, strict=True)) for axis in self._axes)
        origin = self._updates[0]
        offset = update.inner(update) - 2 * update.inner(origin) + origin.inner(origin)
        return Projection(a, b, math.sqrt(max(offset - a**2 - b**2, 0.0)))


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of a triangle: both axes, the mask (a, b) of cells `inside`, and the places (c, 2) of those."""

    alphas: Floats
    betas: Floats
    inside: NDArray[np.bool_]
    places: Floats

    @classmethod
    def of(cls, domain: Triangle, cells: int) -> "Cells":
        """About `cells` cells along the longer side of the bounding box of `domain`."""
        alphas, betas = domain.axes(cells)
        places = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
        inside = domain.contains(places.reshape(-1, 2)).reshape(places.shape[:2])
        return cls(alphas, betas, inside, places[inside])

    def spread(self, values: Floats) -> Floats:
        """(a, b) values (c,) of the cells inside, NaN elsewhere."""
        surface = np.full(self.inside.shape, np.nan)
        surface[self.inside] = values
        return surface


@dataclass(frozen=True, eq=False)
class ScannedPlane:
    """Values (c, m) of the cells inside the triangle; `points` (p, 2) and `measured` (p, m) are what was evaluated for them.

    `surface` is the fit behind `values`, None where every cell was evaluated; `note` says why a grid was taken after all.
    `at_checkpoints` (3, K) are true losses, `error_at_checkpoints` (K,) the fit's largest errors there, nats.
    """

    cells: Cells
    values: Floats
    points: Floats
    measured: Floats
    surface: SpectralSurface | None
    note: str | None
    at_checkpoints: Floats
    error_at_checkpoints: Floats | None
    trajectory: tuple[TrajectoryPoint, ...]


def scan_checkpoint_plane(
    objective: Objective,
    plane: CheckpointPlane,
    domain: Triangle,
    *,
    cells: int,
    rule: Rule | None,
    fallback_cells: int | None = None,
    point: Callable[[Sequence[float]], WeightUpdate] | None = None,
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
    journal: Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> ScannedPlane:
    """The tasks' losses on the plane through three checkpoints, within `domain`.

    Args:
        objective: Losses of the tasks.
        plane: The plane.
        domain: Region of it, in its coordinates.
        cells: Cells along the longer side.
        rule: Rule of the fit; None evaluates every cell.
        fallback_cells: Cells that are evaluated where values are not finite and nothing can be fitted; None: an error.
        point: From coordinates (a, b) to what is evaluated; None: delta W there.
        trajectory: Updates to be projected onto the plane, by name, loaded one at a time; each costs an evaluation.
        journal: File that keeps every evaluation.
        advance: Called for every evaluation.

    Returns:
        Values of the cells inside, what was evaluated, and the fit with its measured errors.

    Raises:
        NotSmoothError: A value is not finite, and no `fallback_cells` are given.
    """
    corners, at = np.array(plane.corners), point or (lambda row: plane.update(*row))
    with cached(objective, journal, advance) as nodes:
        evaluate = partial(nodes.at, "checkpoint plane", point=at)
        grid, note, surface = Cells.of(domain, cells), None, None
        try:
            surface = None if rule is None else fit_surface(evaluate, objective.losses, domain, rule)
        except NotSmoothError as error:
            if fallback_cells is None:
                raise
            grid = Cells.of(domain, fallback_cells)
            note = f"{error}, so {len(grid.places)} cells were evaluated instead of a fit; more may lie between"
        values = evaluate(grid.places) if surface is None else surface.fit(grid.places)
        true = objective.losses(evaluate(corners))
        visited = enumerate((trajectory or {}).items())
        visits = tuple(_visit(name, n, load, objective, nodes, plane, domain, surface) for n, (name, load) in visited)
    return ScannedPlane(
        cells=grid,
        values=values,
        points=grid.places if surface is None else surface.points,
        measured=values if surface is None else surface.values,
        surface=surface,
        note=note,
        at_checkpoints=true,
        error_at_checkpoints=_errors_at(corners, true, objective, domain, surface),
        trajectory=visits,
    )


def _errors_at(
    corners: Floats, true: Floats, objective: Objective, domain: Triangle, surface: SpectralSurface | None
) -> Floats | None:
    """(K,) largest errors of the fit at the checkpoints within `domain`, of `true` losses (3, K)."""
    if surface is None:
        return None
    within = domain.contains(corners)
    return np.asarray(np.abs(objective.losses(surface.fit(corners[within])) - true[within]).max(axis=0))


def _visit(  # noqa: PLR0917 -- one call, above
    name: str,
    number: int,
    load: Callable[[], WeightUpdate],
    objective: Objective,
    nodes: CachedEvaluator,
    plane: CheckpointPlane,
    domain: Triangle,
    surface: SpectralSurface | None,
) -> TrajectoryPoint:
    """True losses of an update, and those of its image on the plane where that lies within `domain`."""
    image = plane.project(load())
    place = np.array([[image.a, image.b]])
    true = objective.losses(nodes.at("trajectory", np.array([[number]]), lambda row: load()))[0]
    inside = surface is not None and domain.contains(place)[0]
    return TrajectoryPoint(
        name=name,
        **asdict(image),
        loss=dict(zip(objective.names, map(float, true), strict=True)),
        in_plane_loss=dict(zip(objective.names, map(float, objective.losses(surface.fit(place))[0]), strict=True))
        if surface is not None and inside
        else None,
    )
