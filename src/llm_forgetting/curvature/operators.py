"""What a product says along one direction."""

from dataclasses import dataclass
from typing import Protocol

import torch

from llm_forgetting.landscape.factors import FactorStep, WeightUpdate

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Along:
    """Along a direction v at theta: `loss` f (nats), `slope` g.v and `curvature` v.Hv."""

    loss: float
    slope: float
    curvature: float


class Products(Protocol):
    """First and second derivatives at one point; `factors` are its coordinates, `evaluations` counts products so far."""

    factors: WeightUpdate
    evaluations: int

    def gradient(self) -> FactorStep:
        """g in the factors."""
        ...

    def hessian(self, step: FactorStep) -> FactorStep:
        """H v in the factors."""
        ...

    def along_update(self, update: WeightUpdate) -> Along:
        """Slope and curvature along a low-rank direction of the merged weights."""
        ...

    def weight_hessian(self, direction: Weights) -> Weights:
        """H V in the merged weights, for dense V (d_out, d_in) per module."""
        ...
