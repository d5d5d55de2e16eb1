"""O-LoRA (Wang et al. 2023): a new adapter per task, beside frozen earlier ones and orthogonal to them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.hooks import RemovableHandle

from llm_forgetting.config.rules import at_least
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, target_layers
from llm_forgetting.models.adapter.ranks import extend, fresh_factors, ranks_of
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import derive_seed
from llm_forgetting.training.method import Cost, Method, Start

CHANGES_RANKS = ("interpolate", "lines", "new_adapter", "o_lora")
"""Methods that leave an adapter of another rank: of two, each would undo the other's work."""


@dataclass(frozen=True)
class OLoraOptions:
    """Options of O-LoRA; the originals are called lamda_1 and lamda_2.

    Args:
        strength: Weight of the sum of |A_old A_new^T| over modules.
        norm: Weight of the sum of the norms of every new A and B.
    """

    strength: float = at_least(0, default=0.5)
    norm: float = at_least(0, default=0.0)


class OLora(Method[OLoraOptions]):
    """A new adapter of the first one's rank per task; earlier ones are frozen.

    All stand side by side in one adapter whose rank grows: delta W = s [B_1, B_2, ...] [A_1; A_2; ...].
    """

    Options = OLoraOptions
    low_rank = True
    adapter_per_task = True
    _old: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}
    _handles: Sequence[RemovableHandle] = ()

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """What would move or need the frozen part."""
        yield from super().problems(config)
        yield from rank_problems(self.name, config)
        if config.training.weight_decay:
            yield "needs training.weight_decay=0: earlier adapters must stay as they are"

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """Earlier adapters, their gradients and the optimiser's moments, and a copy of them."""
        return Cost(adapter_copies=5 * earlier)

    def begin(self, start: Start) -> None:
        """Put a fresh adapter beside the earlier ones, which get no gradient from here on."""
        model, name = start.model.peft_model, start.model.adapter
        self._old = {
            n: (layer.lora_A[name].weight.detach().clone(), layer.lora_B[name].weight.detach().clone())
            for n, layer in target_layers(model).items()
        }
        ranks = {n: rank // (start.number - 1) for n, rank in ranks_of(model, name).items()}
        extend(model, name, fresh_factors(model, name, ranks, derive_seed(start.seed, "o_lora", start.number)))
        handles = []
        for n, layer in target_layers(model).items():
            rank = len(self._old[n][0])
            A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
            handles.append(A.register_hook(lambda g, r=rank: torch.cat([torch.zeros_like(g[:r]), g[r:]])))
            handles.append(B.register_hook(lambda g, r=rank: torch.cat([torch.zeros_like(g[:, :r]), g[:, r:]], dim=1)))
        self._handles = handles

    def penalty(self, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
        """Of the live adapter, whatever the items."""
        orthogonality, norms = self._terms(model)
        return self.options.strength * orthogonality + self.options.norm * norms

    def _terms(self, model: AdaptedModel) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of |A_old A_new^T|, and of the norms of the new factors."""
        overlaps, norms = [], []
        for n, layer in target_layers(model.peft_model).items():
            A_old = self._old[n][0]
            A, B = (part[model.adapter].weight for part in (layer.lora_A, layer.lora_B))
            overlaps.append((A_old @ A[len(A_old) :].T).abs().sum())
            norms += [A[len(A_old) :].norm(), B[:, len(A_old) :].norm()]
        return torch.stack(overlaps).sum(), torch.stack(norms).sum()

    @property
    def moves(self) -> bool:
        """False: the same function is written in another way."""
        return False

    def end(self, model: LanguageModel) -> None:
        """Earlier adapters may be trained again; UserError where an optimiser moved them all the same."""
        for handle in self._handles:
            handle.remove()
        for n, layer in target_layers(model.peft_model).items():
            A_old, B_old = self._old[n]
            rank = len(A_old)
            A, B = layer.lora_A[model.adapter].weight, layer.lora_B[model.adapter].weight
            if not (torch.equal(A[:rank], A_old) and torch.equal(B[:, :rank], B_old)):
                raise UserError(
                    "training.methods.o_lora needs an optimiser that leaves weights without a gradient alone, "
                    "training.optimizer moved earlier adapters; set it to adamw_torch or sgd"
                )

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """Overlap sum |A_old A_new^T| in the end, and the largest rank."""
        return {
            "overlap": float(self._terms(model)[0]),
            "rank": float(max(ranks_of(model.peft_model, model.adapter).values())),
        }


def rank_problems(name: str, config: ExperimentConfig) -> Iterator[str]:
    """Why a method that changes ranks cannot work with the rest of a configuration."""
    others = [other for other in CHANGES_RANKS if other in config.training.methods and other != name]
    if others:
        yield f"and training.methods.{others[0]} both change the adapter that is saved; leave one of them out"
    if config.lora is not None and config.lora.rewrites:
        yield f"needs lora.init=true or gaussian, was {config.lora.init}: its part of the weights must stay as it is"


METHOD = OLora
