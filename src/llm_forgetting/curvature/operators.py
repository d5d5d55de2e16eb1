"""What a product says along one direction."""

from dataclasses import dataclass
from typing import Protocol

import torch

from llm_forgetting.landscape.directions import Direction
from llm_forgetting.landscape.lowrank import Update

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Along:
    """Along a direction v at theta: `loss` f (nats), `slope` g.v and `curvature` v.Hv."""

    loss: float
    slope: float
    curvature: float


class Products(Protocol):
    """First and second derivatives at one point; `factors` are its coordinates, `evaluations` counts products so far."""

    factors: Update
    evaluations: int

    def gradient(self) -> Direction:
        """g in the factors."""
        ...

    def hessian(self, step: Direction) -> Direction:
        """H v in the factors."""
        ...

    def along_update(self, update: Update) -> Along:
        """Slope and curvature along a low-rank direction of the merged weights."""
        ...

    def weight_hessian(self, direction: Weights) -> Weights:
        """H V in the merged weights, for dense V (d_out, d_in) per module."""
        ...
