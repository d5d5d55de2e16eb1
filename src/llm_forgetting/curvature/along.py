"""What a product says along one direction."""

from dataclasses import dataclass

import torch

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Along:
    """Along a direction v at theta: `loss` f (nats), `slope` g.v and `curvature` v.Hv."""

    loss: float
    slope: float
    curvature: float
