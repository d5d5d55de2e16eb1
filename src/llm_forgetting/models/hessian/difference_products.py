"""Hessian-vector products by differences of gradients, for kernels and sharded models that have no second derivative."""

import math
from itertools import pairwise

import numpy as np
import torch

from llm_forgetting.curvature.operators import Along, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.metrics import second_derivative
from llm_forgetting.models.hessian.coordinates import moved
from llm_forgetting.models.hessian.graph_products import GraphProducts

# Lengths of the step that are tried out on the first direction, in units of the factors' norm.
LADDER = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
STRIDE = 0.05
WEIGHT_SHARE = 1e-2


class DifferenceProducts:
    """(g(theta + h v) - g(theta - h v)) / 2 h, of gradients that the model's own kernels compute.

    The first direction is tried with steps of several lengths, and the one whose product changes least to the next shorter
    length is kept: a longer one is bent, a shorter one rounded. That change, as a share of the product, is `error`.
    """

    def __init__(self, gradients: GraphProducts) -> None:
        self._gradients = gradients
        self._size = FactorStep(gradients.factors).norm()
        self._share: float | None = None
        self.factors = gradients.factors
        self.evaluations = 0
        self.error = math.nan

    def gradient(self) -> FactorStep:
        """See `Products`."""
        return self._gradients.gradient()

    def _difference(self, step: FactorStep, share: float) -> FactorStep:
        h = share * self._size / step.norm()
        ends = [
            self._gradients.gradient(moved(self.factors, FactorStep.combine([(sign * h, step)])))
            for sign in (1.0, -1.0)
        ]
        return FactorStep.combine([(1 / (2 * h), ends[0]), (-1 / (2 * h), ends[1])])

    def hessian(self, step: FactorStep) -> FactorStep:
        """See `Products`."""
        self.evaluations += 1
        if self._share is not None:
            return self._difference(step, self._share)
        found = [self._difference(step, share) for share in LADDER]
        changes = [
            FactorStep.combine([(1.0, longer), (-1.0, shorter)]).norm() / max(shorter.norm(), math.ulp(0.0))
            for longer, shorter in pairwise(found)
        ]
        best = min(range(len(changes)), key=changes.__getitem__)
        self._share, self.error = LADDER[best], changes[best]
        return found[best]

    def along_update(self, update: WeightUpdate) -> Along:
        """See `Products`; from three losses, a twentieth of the update apart."""
        self.evaluations += 1
        before, centre, after = (
            self._gradients.loss(WeightUpdate.combine([(1.0, self.factors), (t, update)]))
            for t in (-STRIDE, 0.0, STRIDE)
        )
        slope, curvature = second_derivative(np.array([before, centre, after]), STRIDE)
        return Along(centre, slope, curvature)

    def weight_hessian(self, direction: Weights) -> Weights:
        """See `Products`; the step is the share `WEIGHT_SHARE` of |delta W|, tried out on nothing."""
        self.evaluations += 1
        size = math.sqrt(sum(float(V.square().sum(dtype=torch.float64)) for V in direction.values()))
        h = WEIGHT_SHARE * self.factors.norm() / size
        ends = [
            self._gradients.weight_gradient({name: sign * h * V for name, V in direction.items()})
            for sign in (1.0, -1.0)
        ]
        return {name: (ends[0][name] - ends[1][name]) / (2 * h) for name in direction}
