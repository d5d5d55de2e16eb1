"""A new adapter per task, each trained on the base model, and all of them merged after every task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_forgetting.config.rules import above
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.lowrank import read_update, write_update
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.merging import Combination, merged
from llm_forgetting.models.adapter.ranks import fresh_factors, set_update
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import derive_seed
from llm_forgetting.training.method import Cost, Method, Start
from llm_forgetting.training.methods.o_lora import rank_problems


@dataclass(frozen=True)
class NewAdapterOptions:
    """Options of merging.

    Args:
        merge: PEFT's combination_type: `linear`, `ties` and `dare_linear` combine A and B each for itself, `svd` (cut to
            lora.rank) and `cat` (ranks add up) combine delta W.
        weights: Whether the adapters' weights are 1 / number of tasks (`mean`) or 1 (`sum`).
        density: Share of the entries that `ties` and `dare_linear` keep.
    """

    merge: Combination = "svd"
    weights: Literal["mean", "sum"] = "mean"
    density: float = above(0, default=0.5, most=1)


class NewAdapter(Method[NewAdapterOptions]):
    """Every task is learnt by a fresh adapter on the base model; what is measured and saved is the merge of all so far."""

    Options = NewAdapterOptions
    low_rank = True
    adapter_per_task = True
    _adapters: Sequence[WeightUpdate] = ()
    _last = True
    _seed = 0

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """What would need the adapter as training left it."""
        yield from super().problems(config)
        yield from rank_problems(self.name, config)

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """The earlier adapters."""
        return Cost(adapter_copies=earlier)

    def begin(self, start: Start) -> None:
        """Put the earlier adapters aside, and begin with a fresh one."""
        model, self._last = start.model, start.last
        self._seed = derive_seed(start.seed, "new_adapter", start.number)
        paths = [] if start.kept is None else sorted(start.kept.iterdir())
        own = [_as(read_update(path), model) for path in paths]
        self._adapters = own or [model.adapter_factors()]
        ranks = {name: len(pair.A) for name, pair in self._adapters[0].items()}
        set_update(model.peft_model, model.adapter, fresh_factors(model.peft_model, model.adapter, ranks, self._seed))

    def end(self, model: LanguageModel) -> None:
        """Merge the new adapter with the earlier ones."""
        self._adapters = [*self._adapters, model.adapter_factors()]
        weight = 1 / len(self._adapters) if self.options.weights == "mean" else 1.0
        update = {
            name: merged(
                [adapter[name] for adapter in self._adapters],
                [weight] * len(self._adapters),
                self.options.merge,
                self.options.density,
                derive_seed(self._seed, name),
            )
            for name in self._adapters[0]
        }
        set_update(model.peft_model, model.adapter, update)

    def save(self, folder: Path) -> None:
        """Every task's own adapter; nothing after the last task."""
        for number, adapter in enumerate(() if self._last else self._adapters, start=1):
            write_update(folder / f"task_{number:03d}.safetensors", adapter)

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """How many adapters were merged."""
        return {"adapters": float(len(self._adapters))}


def _as(update: WeightUpdate, model: AdaptedModel) -> WeightUpdate:
    """`update` in the order and place of the live one."""
    live = model.adapter_factors()
    return WeightUpdate({n: Factors(B=update[n].B.to(live[n].B), A=update[n].A.to(live[n].A)) for n in live})


METHOD = NewAdapter
