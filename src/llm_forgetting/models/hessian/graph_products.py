"""Hessian-vector products by differentiating the graph of the gradient, for any model whose kernels have second derivatives."""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from llm_forgetting.curvature.operators import Along, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.perturbation import adding
from llm_forgetting.models.hessian.micro_batches import MicroBatches
from llm_forgetting.models.language.language_model import LanguageModel

Tensors = tuple[torch.Tensor, ...]
Change = Callable[[str, torch.Tensor], torch.Tensor]


class GraphProducts:
    """Exact products. The model's own adapter is off; the factors are applied beside the frozen weights."""

    def __init__(self, model: LanguageModel, items: MicroBatches, factors: WeightUpdate) -> None:
        self._model = model
        self._items = items
        self.factors = factors
        self.evaluations = 0

    def _losses(self, change: Change | None = None, factors: WeightUpdate | None = None) -> Iterator[torch.Tensor]:
        """The share of every micro-batch in the objective, with factors and further changes that may want gradients."""
        layers = target_layers(self._model.peft_model)
        used = self.factors if factors is None else factors

        def added(name: str, x: torch.Tensor) -> torch.Tensor:
            A, B = used[name].A, used[name].B
            x = x.to(torch.promote_types(A.dtype, x.dtype))
            low_rank = F.linear(F.linear(x, A.to(x)), B.to(x))
            return low_rank if change is None else low_rank + change(name, x)

        with adding(layers, added), torch.enable_grad():
            yield from self._items.losses()

    @torch.no_grad()
    def loss(self, at: WeightUpdate) -> float:
        """The objective at other factors."""
        return sum(float(part.detach()) for part in self._losses(factors=at))

    def gradient(self, at: WeightUpdate | None = None) -> FactorStep:
        """See `Products`; at other factors, if given."""
        leaves = _leaves(self.factors if at is None else at)
        total = None
        for loss in self._losses(factors=leaves):
            total = _sum(total, torch.autograd.grad(loss, flat(leaves)))
        return _like(leaves, total)

    def weight_gradient(self, offset: Weights) -> Weights:
        """The gradient in the merged weights, (d_out, d_in) per module, at the factors moved by `offset`."""
        leaves, total = {name: torch.zeros_like(V, requires_grad=True) for name, V in offset.items()}, None
        for loss in self._losses(lambda name, x: F.linear(x, leaves[name] + offset[name])):
            total = _sum(total, torch.autograd.grad(loss, list(leaves.values())))
        return dict(zip(leaves, total or (), strict=True))

    def hessian(self, step: FactorStep) -> FactorStep:
        """See `Products`."""
        self.evaluations += 1
        leaves, along, total = _leaves(self.factors), flat(step.factors), None
        for loss in self._losses(factors=leaves):
            gradient = torch.autograd.grad(loss, flat(leaves), create_graph=True)
            slope = torch.stack([(g * v).sum() for g, v in zip(gradient, along, strict=True)]).sum()
            total = _sum(total, torch.autograd.grad(slope, flat(leaves)))
        return _like(leaves, total)

    def along_update(self, update: WeightUpdate) -> Along:
        """See `Products`."""
        self.evaluations += 1
        loss = slope = curvature = 0.0
        t = torch.zeros((), dtype=next(iter(update.values())).B.dtype, device=self._model.device, requires_grad=True)
        for part in self._losses(lambda name, x: t * F.linear(F.linear(x, update[name].A), update[name].B)):
            (first,) = torch.autograd.grad(part, t, create_graph=True)
            (second,) = torch.autograd.grad(first, t)
            loss, slope, curvature = (
                loss + float(part.detach()),
                slope + float(first.detach()),
                curvature + float(second),
            )
        return Along(loss, slope, curvature)

    def weight_hessian(self, direction: Weights) -> Weights:
        """See `Products`."""
        self.evaluations += 1
        leaves = {name: torch.zeros_like(V, requires_grad=True) for name, V in direction.items()}
        total = None
        for loss in self._losses(lambda name, x: F.linear(x, leaves[name])):
            gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
            slope = torch.stack([(g * V).sum() for g, V in zip(gradient, direction.values(), strict=True)]).sum()
            total = _sum(total, torch.autograd.grad(slope, list(leaves.values())))
        return dict(zip(leaves, total or (), strict=True))


def _leaves(factors: WeightUpdate) -> WeightUpdate:
    return WeightUpdate(
        {
            n: Factors(f.B.detach().clone().requires_grad_(), f.A.detach().clone().requires_grad_())
            for n, f in factors.items()
        }
    )


def flat(factors: Mapping[str, Factors]) -> list[torch.Tensor]:
    return [part for pair in factors.values() for part in (pair.B, pair.A)]


def _sum(total: Tensors | None, new: Tensors) -> Tensors:
    return new if total is None else tuple(a + b for a, b in zip(total, new, strict=True))


def _like(factors: WeightUpdate, tensors: Tensors | None) -> FactorStep:
    flat = iter(tensors or ())
    return FactorStep({name: Factors(B=next(flat), A=next(flat)) for name in factors})
