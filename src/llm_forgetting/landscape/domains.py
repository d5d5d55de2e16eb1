"""Where losses are asked for: segments for lines and paths, rectangles for planes, triangles for three checkpoints."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llm_forgetting.arrays import Floats


class Domain(Protocol):
    """A region of the line or plane that is an affine image of a reference region inside [-1, 1]^d."""

    @property
    def shape(self) -> str:
        """`segment`, `square`, `triangle` or `truncated`: which reference region."""
        ...

    def unit(self, points: Floats) -> Floats:
        """(p, d) coordinates in the reference region."""
        ...

    def place(self, unit: Floats) -> Floats:
        """(p, d) points of the domain from coordinates in the reference region."""
        ...


@dataclass(frozen=True)
class Segment:
    """[low, high] of one coordinate; the reference region is [-1, 1]."""

    low: float
    high: float
    shape: str = "segment"

    def unit(self, points: Floats) -> Floats:
        """(p, 1) coordinates in [-1, 1]."""
        return np.asarray((2 * points - self.low - self.high) / (self.high - self.low))

    def place(self, unit: Floats) -> Floats:
        """(p, 1) points of the segment; 0 becomes its exact centre, -1 and 1 its ends."""
        return np.asarray((self.low + self.high) / 2 + unit * ((self.high - self.low) / 2))


@dataclass(frozen=True)
class Rectangle:
    """[low_x, high_x] x [low_y, high_y]; the reference region is [-1, 1]^2."""

    low: tuple[float, float]
    high: tuple[float, float]
    shape: str = "square"

    def unit(self, points: Floats) -> Floats:
        """(p, 2) coordinates in [-1, 1]^2."""
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray((2 * points - low - high) / (high - low))

    def place(self, unit: Floats) -> Floats:
        """(p, 2) points of the rectangle; (0, 0) becomes its exact centre."""
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray((low + high) / 2 + unit * ((high - low) / 2))


def square(distance: float) -> Rectangle:
    """[-distance, distance]^2."""
    return Rectangle((-distance, -distance), (distance, distance))


# Share of the way from the first corner to the others' side that a truncated triangle lacks.
TRUNCATION = 0.2


@dataclass(frozen=True)
class Triangle:
    """A triangle by its corners; the reference region has the corners (-1, -1), (1, -1), (-1, 1).

    A truncated one ends before its first corner, at `TRUNCATION` of the way from there to the opposite side.
    """

    corners: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    truncated: bool = False

    @property
    def shape(self) -> str:
        """`triangle` or `truncated`."""
        return "truncated" if self.truncated else "triangle"

    @property
    def outline(self) -> Floats:
        """(3 or 4, 2) corners of the region."""
        first, *others = (np.array(corner, dtype=np.float64) for corner in self.corners)
        if not self.truncated:
            return np.stack([first, *others])
        near = [first + TRUNCATION * (other - first) for other in others]
        return np.stack([near[0], *others, near[1]])

    @property
    def _edges(self) -> tuple[Floats, Floats]:
        first, second, third = (np.array(corner, dtype=np.float64) for corner in self.corners)
        return first, np.stack([second - first, third - first])

    def unit(self, points: Floats) -> Floats:
        """(p, 2) coordinates in the reference triangle."""
        origin, edges = self._edges
        return np.asarray(2 * (points - origin) @ np.linalg.inv(edges) - 1)

    def place(self, unit: Floats) -> Floats:
        """(p, 2) points of the triangle."""
        origin, edges = self._edges
        return np.asarray(origin + (unit + 1) / 2 @ edges)

    def contains(self, points: Floats) -> np.ndarray:
        """(p,) whether points lie in the region, its border included."""
        weights = (self.unit(points) + 1) / 2
        total = weights.sum(axis=1)
        least = TRUNCATION if self.truncated else 0.0
        return np.asarray((weights >= -1e-9).all(axis=1) & (total <= 1 + 1e-9) & (total >= least - 1e-9))

    def axes(self, cells: int) -> tuple[Floats, Floats]:
        """Even steps over the region's bounding box, of one width in both axes, about `cells` along the longer side."""
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        step = float((high - low).max()) / (cells - 1)
        first, second = (np.linspace(a, b, max(3, 1 + round((b - a) / step))) for a, b in zip(low, high, strict=True))
        return first, second

    def widened(self, margin: float) -> "Triangle":
        """The triangle stretched from its centroid by 1 + 2 `margin`: every height grows by twice the margin in all."""
        corners = np.array(self.corners)
        centroid = corners.mean(axis=0)
        first, second, third = (tuple(map(float, c)) for c in centroid + (1 + 2 * margin) * (corners - centroid))
        return Triangle(((first[0], first[1]), (second[0], second[1]), (third[0], third[1])), self.truncated)


def mesh(shape: str, points: int) -> Floats:
    """(p, d) evenly spaced points of a reference region, its border included, `points` along each side."""
    axis = np.linspace(-1, 1, points)
    if shape == "segment":
        return axis[:, None]
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    if shape == "square":
        return np.asarray(grid)
    total = (grid.sum(axis=1) + 2) / 2
    least = TRUNCATION if shape == "truncated" else 0.0
    return np.asarray(grid[(total <= 1 + 1e-9) & (total >= least - 1e-9)])


def random_points(shape: str, random: np.random.Generator, count: int) -> Floats:
    """(count, d) random points of a reference region, denser towards its border, where fits err most, and well spread.

    Chebyshev density in every coordinate on segment and square, Dirichlet(1/2, 1/2, 1/2) on the triangle (squeezed into what
    is left of a truncated one). A Latin hypercube (McKay et al. 1979): each of `count` equally likely slices of every
    coordinate holds one point, so none is left unlooked at.

    Returns:
        (count, d) points of the reference region.
    """
    dimensions = 1 if shape == "segment" else 2
    slices = np.stack([random.permutation(count) for _ in range(dimensions)], axis=1)
    uniform = (slices + random.uniform(size=(count, dimensions))) / count
    if shape in ("segment", "square"):
        return np.asarray(np.cos(np.pi * uniform))
    # Squares of the coordinates of a random unit vector.
    first, angle = uniform[:, 0] ** 2, np.pi / 2 * uniform[:, 1]
    total = 1 - first
    if shape == "truncated":
        total = TRUNCATION + (1 - TRUNCATION) * total
    weights = np.stack([total * np.cos(angle) ** 2, total * np.sin(angle) ** 2], axis=1)
    return np.asarray(2 * weights - 1)
