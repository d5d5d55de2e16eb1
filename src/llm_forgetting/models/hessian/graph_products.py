"""Hessian-vector products by differentiating the graph of the gradient, for any model whose kernels have second derivatives."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F

from llm_forgetting.curvature.double_backward import Derivatives, add_derivatives, double_backward
from llm_forgetting.curvature.operators import DirectionalDerivatives, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.perturbation import adding
from llm_forgetting.models.hessian.micro_batches import MicroBatches, sparing
from llm_forgetting.models.language.language_model import LanguageModel

Change = Callable[[str, torch.Tensor], torch.Tensor]
Leaves = Sequence[torch.Tensor]


class GraphProducts:
    """Exact products. The model's own adapter is off; the factors are applied beside the frozen weights."""

    def __init__(self, model: LanguageModel, items: MicroBatches, factors: WeightUpdate) -> None:
        self._model = model
        self._items = items
        self.factors = factors
        self.dtype = model.dtype

    def _losses(self, change: Change | None = None, factors: WeightUpdate | None = None) -> Iterator[torch.Tensor]:
        """The share of every micro-batch in the objective, with factors and further changes that may want gradients."""
        used = self.factors if factors is None else factors

        def product(name: str, x: torch.Tensor) -> torch.Tensor:
            A, B = used[name].A, used[name].B
            x = x.to(torch.promote_types(A.dtype, x.dtype))
            added = F.linear(F.linear(x, A.to(x)), B.to(x))
            return added if change is None else added + change(name, x)

        with adding(target_layers(self._model.peft_model), product), torch.enable_grad():
            yield from self._items.losses()

    @sparing
    def gradient(self, at: WeightUpdate | None = None) -> FactorStep:
        """Gradient in the factors, at other ones if given."""
        leaves = _leaves(self.factors if at is None else at)
        tensors = flat(leaves)
        return _like(leaves, _summed(self._losses(factors=leaves), tensors, lambda loss: _gradient(loss, tensors)))

    @sparing
    def weight_gradient(self, offset: Weights) -> Weights:
        """Gradient in the merged weights, at the factors moved by `offset`."""
        leaves = _zeros(offset)
        tensors = list(leaves.values())
        losses = self._losses(lambda name, x: F.linear(x, leaves[name] + offset[name]))
        return Weights(zip(leaves, _summed(losses, tensors, lambda loss: _gradient(loss, tensors)), strict=True))

    @sparing
    def hessian(self, step: FactorStep) -> FactorStep:
        """H v by a graph of the gradient per micro-batch."""
        leaves = _leaves(self.factors)
        return _like(leaves, _products(self._losses(factors=leaves), flat(leaves), flat(step.factors)))

    @sparing
    def along_update(self, update: WeightUpdate) -> DirectionalDerivatives:
        """Two derivatives for t of the loss with t times the update added."""
        t, parts = self._along(update, 0.0)
        one = torch.ones_like(t, requires_grad=False)
        loss = slope = curvature = 0.0
        for part in parts:
            value = float(part.detach())
            (first,), (second,) = double_backward(part, [t], [one])
            loss, slope, curvature = loss + value, slope + _number(first), curvature + _number(second)
        return DirectionalDerivatives(loss, slope, curvature)

    @sparing
    def slope(self, update: WeightUpdate, at: float) -> tuple[float, float]:
        """The loss with t = `at` times the update added, and its derivative for t."""
        t, parts = self._along(update, at)
        pairs = [(float(part.detach()), *map(_number, _gradient(part, [t]))) for part in parts]
        return sum(loss for loss, _ in pairs), sum(slope for _, slope in pairs)

    def _along(self, update: WeightUpdate, at: float) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        t = torch.tensor(at, dtype=next(iter(update.values())).B.dtype, device=self._model.device, requires_grad=True)
        return t, self._losses(lambda name, x: t * F.linear(F.linear(x, update[name].A), update[name].B))

    @sparing
    def weight_hessian(self, direction: Weights) -> Weights:
        """H V by a graph of the gradient in the merged weights per micro-batch."""
        leaves = _zeros(direction)
        losses = self._losses(lambda name, x: F.linear(x, leaves[name]))
        return Weights(zip(leaves, _products(losses, list(leaves.values()), list(direction.values())), strict=True))


def _leaves(factors: WeightUpdate) -> WeightUpdate:
    return WeightUpdate(
        {
            n: Factors(f.B.detach().clone().requires_grad_(), f.A.detach().clone().requires_grad_())
            for n, f in factors.items()
        }
    )


def _zeros(like: Weights) -> Weights:
    return Weights({name: torch.zeros_like(V, requires_grad=True) for name, V in like.items()})


def flat(factors: Mapping[str, Factors]) -> list[torch.Tensor]:
    """B and A of every module."""
    return [part for pair in factors.values() for part in (pair.B, pair.A)]


def _gradient(loss: torch.Tensor, leaves: Leaves) -> Derivatives:
    return torch.autograd.grad(loss, leaves)


def _products(losses: Iterator[torch.Tensor], leaves: Leaves, step: Leaves) -> list[torch.Tensor]:
    return _summed(losses, leaves, lambda loss: double_backward(loss, leaves, step)[1])


def _summed(
    losses: Iterator[torch.Tensor], leaves: Leaves, differentiate: Callable[[torch.Tensor], Derivatives]
) -> list[torch.Tensor]:
    total = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
    for loss in losses:
        add_derivatives(total, differentiate(loss))
    return total


def _number(derivative: torch.Tensor | None) -> float:
    return 0.0 if derivative is None else float(derivative.detach())


def _like(factors: WeightUpdate, tensors: list[torch.Tensor]) -> FactorStep:
    parts = iter(tensors)
    return FactorStep({name: Factors(B=next(parts), A=next(parts)) for name in factors})
