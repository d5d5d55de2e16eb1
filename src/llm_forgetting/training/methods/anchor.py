"""L2 anchor: delta W is held to what it was before the task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llm_forgetting.config.rules import above
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.differences import difference
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.results import AnchorRecord, InterventionRecord
from llm_forgetting.training.method import Cost, Method, Start


@dataclass(frozen=True)
class AnchorOptions:
    """Options of the anchor.

    Args:
        strength: a of a / 2 |delta W - delta W_before|^2, nats per squared Frobenius unit.
    """

    strength: float = above(0, default=0.1)


class Anchor(Method[AnchorOptions]):
    """strength / 2 |delta W - delta W_start|_F^2 is added to the loss, in nats."""

    Options = AnchorOptions
    low_rank = True
    start: WeightUpdate

    title = ""

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """The factors before the task."""
        return Cost(adapter_copies=1)

    def begin(self, start: Start) -> None:
        """Hold on to the live adapter."""
        self.start = start.model.adapter_factors()

    def squared_distance(self, update: WeightUpdate) -> torch.Tensor:
        """|delta W - delta W_start|_F^2 over all modules, gauge-invariant; with a graph where `update` has one."""
        terms = []
        for name, pair in update.items():
            moved = difference(pair, self.start[name])
            terms.append(((moved.B.T @ moved.B) * (moved.A @ moved.A.T)).sum())
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def penalty(self, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
        """Of the live adapter, whatever the items."""
        return self.penalty_at(model.lora.live())

    def penalty_at(self, update: WeightUpdate) -> torch.Tensor:
        """strength / 2 |delta W - delta W_start|_F^2, nats."""
        return self.options.strength / 2 * self.squared_distance(update)

    def record(self, before: InterventionRecord, model: AdaptedModel) -> InterventionRecord:
        """Where the adapter ended."""
        squared = max(float(self.squared_distance(model.lora.live())), 0.0)
        strength = self.options.strength
        return replace(before, anchor=AnchorRecord(strength, strength / 2 * squared, math.sqrt(squared)))


METHOD = Anchor
