"""The plane through three checkpoints in delta-W space, where every point is an adapter of at most three ranks together."""

import math
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate

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
