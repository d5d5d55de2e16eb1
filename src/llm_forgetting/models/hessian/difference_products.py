"""Hessian-vector products by differences of gradients, for kernels and sharded models that have no second derivative."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch

from llm_forgetting.curvature.operators import DirectionalDerivatives, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.models.hessian.coordinates import moved
from llm_forgetting.models.hessian.graph_products import GraphProducts

# Step sizes tried on the first direction, in units of the factors' norm.
RELATIVE_STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
# Steps along an update and of the merged weights, in units of |delta W|; the former is the longest of several.
RELATIVE_PATH_STEP = 0.1
RELATIVE_WEIGHT_STEP = 1e-2
# Number of steps along an update, and how many times shorter each is than the one before.
PATH_STEPS, SHORTER = 4, 2.0
# The least of several changes is small by chance, too: on rough random models the true error was within this multiple in 97%.
CAUTION = 4.0


def extrapolated(central: Callable[[float], float], longest: float, rounding: float) -> tuple[float, float]:
    """Limit of central differences for shorter and shorter steps, by Ridders' method (1982).

    Their error is a series in h^2, of which Neville's scheme removes a term per column. The entry is taken whose error is
    the least: `CAUTION` times what it changed from both entries that it was made of, and what rounding makes of it.

    Args:
        central: Central difference at step h.
        longest: The longest of `PATH_STEPS` steps.
        rounding: Of a central difference at h, times h.

    Returns:
        The limit and its error.
    """
    table: list[list[float]] = []
    best = (math.nan, math.inf)
    for row in range(PATH_STEPS):
        h = longest / SHORTER**row
        table.append([central(h)])
        for column in range(1, row + 1):
            left, above = table[row][column - 1], table[row - 1][column - 1]
            entry = left + (left - above) / (SHORTER ** (2 * column) - 1)
            error = CAUTION * (max(abs(entry - left), abs(entry - above)) + rounding / h)
            table[row].append(entry)
            if error < best[1]:
                best = (entry, error)
    return best


class DifferenceProducts:
    """(g(theta + h v) - g(theta - h v)) / 2 h, of gradients that the model's own kernels compute.

    The first direction is tried with steps of several lengths, and the one whose product changes least to the next shorter
    length is kept: a longer one is bent, a shorter one rounded. That change, as a share of the product, is `error`.
    """

    def __init__(self, gradients: GraphProducts) -> None:
        self._gradients = gradients
        self._size = FactorStep(gradients.factors).norm()
        self._relative_step: float | None = None
        self.factors = gradients.factors
        self.error = math.nan

    def choice(self) -> tuple[float, float]:
        """The relative step that the first product chose, and `error`; NaN before it."""
        return (math.nan if self._relative_step is None else self._relative_step), self.error

    def choose(self, relative_step: float, error: float) -> None:
        """Take over the choice of an earlier process."""
        self._relative_step, self.error = relative_step, error

    def gradient(self) -> FactorStep:
        """Gradient in the factors, exact."""
        return self._gradients.gradient()

    def _difference(self, step: FactorStep, relative_step: float) -> FactorStep:
        h = relative_step * self._size / step.norm()
        ends = [
            self._gradients.gradient(moved(self.factors, FactorStep.combine([(sign * h, step)])))
            for sign in (1.0, -1.0)
        ]
        return FactorStep.combine([(1 / (2 * h), ends[0]), (-1 / (2 * h), ends[1])])

    def hessian(self, step: FactorStep) -> FactorStep:
        """H v by a difference of two gradients; the first product chooses the length of the step."""
        if self._relative_step is not None:
            return self._difference(step, self._relative_step)
        products = [self._difference(step, relative_step) for relative_step in RELATIVE_STEPS]
        changes = [
            FactorStep.combine([(1.0, longer), (-1.0, shorter)]).norm() / max(shorter.norm(), math.ulp(0.0))
            for longer, shorter in pairwise(products)
        ]
        best = min(range(len(changes)), key=changes.__getitem__)
        self._relative_step, self.error = RELATIVE_STEPS[best], changes[best]
        return products[best]

    def along_update(self, update: WeightUpdate) -> DirectionalDerivatives:
        """Loss and slope as they are; the curvature, with its error, from differences of slopes at several steps."""
        length = update.norm()
        loss, slope = self._gradients.slope(update, 0.0)
        if not length:
            return DirectionalDerivatives(loss, slope, 0.0, 0.0)
        longest = RELATIVE_PATH_STEP * (self.factors.norm() or length) / length

        def central(h: float) -> float:
            return (self._gradients.slope(update, h)[1] - self._gradients.slope(update, -h)[1]) / (2 * h)

        rounding = torch.finfo(self._gradients.dtype).eps * abs(slope)
        return DirectionalDerivatives(loss, slope, *extrapolated(central, longest, rounding))

    def weight_hessian(self, direction: Weights) -> Weights:
        """H V by a difference of two gradients `RELATIVE_WEIGHT_STEP` |delta W| away on either side."""
        h = RELATIVE_WEIGHT_STEP * self.factors.norm() / direction.norm()
        ends = [
            self._gradients.weight_gradient(Weights({name: sign * h * V for name, V in direction.items()}))
            for sign in (1.0, -1.0)
        ]
        forth, back = ends
        return Weights({name: (forth.pop(name) - back.pop(name)) / (2 * h) for name in direction})
