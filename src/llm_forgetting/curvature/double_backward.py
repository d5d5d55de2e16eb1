"""Gradient and Hessian-vector product of a loss by differentiating the graph of its gradient."""

from collections.abc import Sequence

import torch

Derivatives = Sequence[torch.Tensor | None]


def double_backward(
    loss: torch.Tensor, leaves: Sequence[torch.Tensor], step: Sequence[torch.Tensor]
) -> tuple[Derivatives, Derivatives]:
    """Gradient g and product H v of a scalar loss.

    Args:
        loss: Scalar with a graph; it is freed.
        leaves: What is differentiated for.
        step: v, a tensor per leaf.

    Returns:
        g and H v, a tensor per leaf; None where the loss, or its slope g.v, does not depend on the leaf.
    """
    gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    slopes = [(g * v).sum() for g, v in zip(gradient, step, strict=True) if g is not None and g.requires_grad]
    if not slopes:
        return gradient, [None] * len(leaves)
    return gradient, torch.autograd.grad(torch.stack(slopes).sum(), leaves, allow_unused=True)


def add_derivatives(total: Sequence[torch.Tensor], derivatives: Derivatives) -> None:
    """Adds derivatives to running sums in place; None adds nothing."""
    for part, derivative in zip(total, derivatives, strict=True):
        if derivative is not None:
            part.add_(derivative)
