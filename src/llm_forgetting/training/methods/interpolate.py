"""Weight interpolation (WiSE-FT, Wortsman et al. 2022): after a task the update moves part of the way back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llm_forgetting.config.rules import at_least
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.lowrank import truncated
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.ranks import ranks_of, set_update
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.training.method import Method, Start
from llm_forgetting.training.methods.o_lora import rank_problems


@dataclass(frozen=True)
class CutOptions:
    """Option of methods that move a task's update afterwards.

    Args:
        rank: The result is cut to this rank by singular values; 0 keeps it exact, and ranks add up.
    """

    rank: int = at_least(0, default=0)


Cut = TypeVar("Cut", bound=CutOptions)


class Between(Method[Cut], ABC):
    """After a task delta W = (1 - a) delta W_before + a delta W_after, a by module."""

    low_rank = True
    title = ""
    _before: WeightUpdate
    _error = 0.0

    @abstractmethod
    def shares(self, modules: Sequence[str]) -> dict[str, float]:
        """a of every module."""

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """What would need the adapter as training left it."""
        yield from super().problems(config)
        yield from rank_problems(self.name, config)

    def begin(self, start: Start) -> None:
        """Keep the adapter before the task."""
        self._before = start.model.adapter_factors()

    def end(self, model: LanguageModel) -> None:
        """Move the adapter."""
        self._error = set_between(model, self._before, self.shares(list(self._before)), self.options.rank)

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """Rank of what is saved, and the relative error of cutting it."""
        ranks = ranks_of(model.peft_model, model.adapter)
        return {"rank": float(max(ranks.values())), "truncation_error": self._error}


@dataclass(frozen=True)
class InterpolateOptions(CutOptions):
    """Options of the interpolation.

    Args:
        share: a of (1 - a) delta W_before + a delta W_after: 0 undoes the task, 1 changes nothing.
        rank: The result is cut to this rank by singular values; 0 keeps it exact, and ranks add up.
    """

    share: float = at_least(0, default=0.5, most=1)


class Interpolate(Between[InterpolateOptions]):
    """delta W = (1 - a) delta W_before + a delta W_after, the same a in every module."""

    Options = InterpolateOptions

    def shares(self, modules: Sequence[str]) -> dict[str, float]:
        """The same for all."""
        return dict.fromkeys(modules, self.options.share)


def set_between(model: AdaptedModel, before: WeightUpdate, shares: Mapping[str, float], rank: int) -> float:
    """Move the live adapter to (1 - a) delta W_before + a delta W_live, a by module.

    Args:
        model: Whose adapter moves.
        before: delta W_before.
        shares: a of every module.
        rank: What the result is cut to; 0 keeps it exact.

    Returns:
        |difference| / |delta W| of the cut.
    """
    live = model.adapter_factors()
    kept = {name: Factors(B=(1 - shares[name]) * pair.B, A=pair.A) for name, pair in before.items()}
    taken = {name: Factors(B=shares[name] * pair.B, A=pair.A) for name, pair in live.items()}
    whole = WeightUpdate.combine([(1.0, WeightUpdate(kept)), (1.0, WeightUpdate(taken))])
    most = {name: min(len(pair.A), len(pair.B), pair.A.shape[1]) for name, pair in whole.items()}
    cut = truncated(whole, {name: min(rank or size, size) for name, size in most.items()})
    set_update(model.peft_model, model.adapter, cut.update)
    return cut.relative_error if rank else 0.0


METHOD = Interpolate
