"""Elastic weight consolidation (Kirkpatrick et al. 2017) on delta W, so that it does not depend on how delta W is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from llm_forgetting.config.rules import above, at_least
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, target_layers
from llm_forgetting.models.adapter.differences import difference
from llm_forgetting.models.adapter.fisher import Diagonal, Fisher, Kronecker, diagonal_fisher, kronecker_fisher
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import generator
from llm_forgetting.training.method import Cost, Method, Start


@dataclass(frozen=True)
class EwcOptions:
    """Options of EWC.

    Args:
        strength: lambda of lambda / 2 sum over tasks of (delta W - delta W*)^T F (delta W - delta W*), in nats.
        fisher: `diagonal`, as large as the adapted weights in float32 for every earlier task, or `kronecker` (K-FAC): a
            d_in x d_in and a d_out x d_out matrix per module.
        items: Items of a task that its Fisher information is estimated from; 0 takes all.
    """

    strength: float = above(0, default=1.0)
    fisher: Literal["diagonal", "kronecker"] = "diagonal"
    items: int = at_least(0, default=0)


@dataclass(frozen=True)
class Anchored:
    """An earlier task: delta W* at its end, and its Fisher information there."""

    update: WeightUpdate
    fisher: Fisher


class Ewc(Method[EwcOptions]):
    """Each earlier task pulls delta W back to where it ended, by its empirical Fisher information there.

    The Fisher information of a task is estimated when the next one begins, from the items just learnt. What is kept for
    later tasks is that of the earlier ones; a run of two tasks keeps nothing.
    """

    Options = EwcOptions
    low_rank = True
    tasks: Sequence[Anchored] = ()
    _last = True

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """One Fisher matrix per earlier task; the diagonal's penalty forms a module's delta W, and its gradient."""
        if self.options.fisher == "kronecker":
            return Cost(adapter_copies=earlier, numbers=earlier * sum(m * m + n * n for m, n in modules))
        formed = 3 * max((m * n for m, n in modules), default=0)
        return Cost(adapter_copies=earlier, numbers=earlier * sum(m * n for m, n in modules) + formed)

    def begin(self, start: Start) -> None:
        """Read what was kept of earlier tasks, and estimate the Fisher information of the task just learnt."""
        self._last = start.last
        kept = [] if start.kept is None else [_read(path, start.model) for path in sorted(start.kept.iterdir())]
        items = () if start.previous is None else start.previous.train
        if start.previous is not None and self.options.items:
            rows = generator(start.seed, "ewc", start.previous.name).permutation(len(items))[: self.options.items]
            items = tuple(items[row] for row in sorted(rows))
        self.tasks = [*kept, Anchored(start.model.adapter_factors(), self.estimate(start.model, items))]

    def estimate(self, model: LanguageModel, items: Sequence[EncodedItem]) -> Fisher:
        """The Fisher information at the live checkpoint, from the right answers of `items`, in evaluation mode."""
        estimated = diagonal_fisher if self.options.fisher == "diagonal" else kronecker_fisher
        passes: list[Callable[[], torch.Tensor]] = [partial(_log_likelihood, model, item) for item in items]
        model.peft_model.eval()
        with model.computing(), torch.enable_grad():
            return estimated(target_layers(model.peft_model), passes)

    def penalty(self, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
        """Of the live adapter, whatever the items."""
        return self.penalty_at(model.lora.live())

    def penalty_at(self, update: WeightUpdate) -> torch.Tensor:
        """strength / 2 sum over tasks and modules of (delta W - delta W*)^T F (delta W - delta W*), nats."""
        terms = [
            fisher.quadratic(difference(update[name], task.update[name]))
            for task in self.tasks
            for name, fisher in task.fisher.items()
        ]
        return self.options.strength / 2 * torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def save(self, folder: Path) -> None:
        """Every earlier task's matrices in a file of its own; nothing after the last task."""
        for number, task in enumerate(() if self._last else self.tasks, start=1):
            parts = {f"{name}.{part}": t for name, pair in task.update.items() for part, t in vars(pair).items()}
            parts |= {f"{name}.{part}": t for name, fisher in task.fisher.items() for part, t in vars(fisher).items()}
            save_file(
                {key: t.contiguous().cpu() for key, t in parts.items()}, folder / f"task_{number:03d}.safetensors"
            )

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """The penalty in the end, nats."""
        return {"penalty": float(self.penalty_at(model.lora.live()))}


def _log_likelihood(model: LanguageModel, item: EncodedItem) -> torch.Tensor:
    return -answer_losses(model, [item], packed=False).sum()


def _read(path: Path, model: LanguageModel) -> Anchored:
    tensors = {key: tensor.to(model.device) for key, tensor in load_file(path).items()}
    names = [key.removesuffix(".B") for key in tensors if key.endswith(".B")]
    update = WeightUpdate({name: Factors(B=tensors[f"{name}.B"], A=tensors[f"{name}.A"]) for name in names})
    whole = {n: Diagonal(tensors[f"{n}.squares"]) for n in names if f"{n}.squares" in tensors}
    halves = {n: Kronecker(tensors[f"{n}.inputs"], tensors[f"{n}.outputs"]) for n in names if f"{n}.inputs" in tensors}
    return Anchored(update, {**whole, **halves})


METHOD = Ewc
