"""Hessian-vector products by a tangent pass and one pass back (`tangent_pass`), at the cost of about four forward passes."""

from collections.abc import Callable, Mapping

import torch

from llm_forgetting.curvature.operators import DirectionalDerivatives, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, numbers
from llm_forgetting.models.hessian.micro_batches import MicroBatches, sparing
from llm_forgetting.models.hessian.tangent_operations import WeightTangent
from llm_forgetting.models.hessian.tangent_pass import TangentPass
from llm_forgetting.models.hessian.weight_tangents import AdapterTangent, DenseTangent, LowRankTangent
from llm_forgetting.models.language.packing import Pack

LogitsOf = Callable[[Pack], torch.Tensor]


class TangentProducts:
    """Exact products; `logits_of` is what `passed.stacked` yields, `dtype` the precision of the backbone."""

    def __init__(
        self, passed: TangentPass, logits_of: LogitsOf, items: MicroBatches, factors: WeightUpdate, dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        self._pass = passed
        self._logits_of = logits_of
        self._items = items
        self.factors = factors

    def run(self, tangents: Mapping[str, WeightTangent]) -> tuple[float, float]:
        """Run the pass over all items: loss and slope along `tangents`, which collect the rest."""
        self._pass.tangents = tangents
        loss = slope = 0.0
        with torch.enable_grad():
            for pack in self._items.packs:
                logits = self._logits_of(pack)
                items = self._items
                value, derivative, grad = _cross_entropy(
                    logits.detach(), items.answers(pack), items.weights(pack), items.total
                )
                logits.backward(grad)  # type: ignore[no-untyped-call]
                loss, slope = loss + value, slope + derivative
        return loss, slope

    @sparing
    def gradient(self) -> FactorStep:
        """Gradient in the factors, collected along a step of 0."""
        zero = FactorStep({n: Factors(torch.zeros_like(f.B), torch.zeros_like(f.A)) for n, f in self.factors.items()})
        tangents = self._adapter_tangents(zero)
        self.run(tangents)
        return FactorStep({name: tangent.gradient for name, tangent in tangents.items()})

    @sparing
    def hessian(self, step: FactorStep) -> FactorStep:
        """H v in the factors, collected along the step."""
        tangents = self._adapter_tangents(step)
        self.run(tangents)
        return FactorStep({name: tangent.product for name, tangent in tangents.items()})

    def _adapter_tangents(self, step: FactorStep) -> dict[str, AdapterTangent]:
        return {name: AdapterTangent(self.factors[name], step[name], self._dtype) for name in self.factors}

    @sparing
    def along_update(self, update: WeightUpdate) -> DirectionalDerivatives:
        """Derivatives along the update, collected as numbers."""
        tangents = {name: LowRankTangent(pair, self._dtype) for name, pair in update.items()}
        loss, slope = self.run(tangents)
        return DirectionalDerivatives(loss, slope, sum(numbers(tangent.curvature for tangent in tangents.values())))

    @sparing
    def weight_hessian(self, direction: Weights) -> Weights:
        """H V, collected as dense matrices."""
        tangents = {name: DenseTangent(matrix, self._dtype) for name, matrix in direction.items()}
        self.run(tangents)
        return Weights({name: tangent.product for name, tangent in tangents.items()})


def _cross_entropy(
    pair: torch.Tensor, answers: torch.Tensor, weights: torch.Tensor | None, total: float
) -> tuple[float, float, torch.Tensor]:
    """Sum of w (-log p(answer)) / total, its derivative, and the derivative's gradient, of logits (2, n, vocabulary)."""
    logits, tangent = pair
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    row = torch.arange(len(answers), device=answers.device)
    mean = (p * tangent).sum(dim=-1, keepdim=True)
    losses, slopes = -log_p[row, answers], mean[:, 0] - tangent[row, answers]
    grad = torch.stack([p * (tangent - mean), p]) / total
    grad[1, row, answers] -= 1 / total
    if weights is not None:
        losses, slopes = losses * weights, slopes * weights
        grad *= weights[:, None].to(grad)
    loss, slope = (values.sum(dtype=torch.float64) / total for values in (losses, slopes))
    return float(loss), float(slope), grad
