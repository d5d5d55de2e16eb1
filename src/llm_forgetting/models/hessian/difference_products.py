"""Hessian-vector products by differences of gradients, for kernels and sharded models that have no second derivative."""

import math
from itertools import pairwise

import numpy as np

from llm_forgetting.curvature.operators import DirectionalDerivatives, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.metrics import second_derivative
from llm_forgetting.models.hessian.coordinates import moved
from llm_forgetting.models.hessian.graph_products import GraphProducts

# Step sizes tried on the first direction, in units of the factors' norm.
RELATIVE_STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
# Step along an update, in units of its length, and of the merged weights, in units of |delta W|.
PATH_STEP = 0.05
RELATIVE_WEIGHT_STEP = 1e-2


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
        """Derivatives along the update from three losses, a twentieth of it apart."""
        before, centre, after = (
            self._gradients.loss(WeightUpdate.combine([(1.0, self.factors), (t, update)]))
            for t in (-PATH_STEP, 0.0, PATH_STEP)
        )
        slope, curvature = second_derivative(np.array([before, centre, after]), PATH_STEP)
        return DirectionalDerivatives(centre, slope, curvature)

    def weight_hessian(self, direction: Weights) -> Weights:
        """H V by a difference of two gradients `RELATIVE_WEIGHT_STEP` |delta W| away on either side."""
        h = RELATIVE_WEIGHT_STEP * self.factors.norm() / direction.norm()
        ends = [
            self._gradients.weight_gradient(Weights({name: sign * h * V for name, V in direction.items()}))
            for sign in (1.0, -1.0)
        ]
        return Weights({name: (ends[0][name] - ends[1][name]) / (2 * h) for name in direction})
