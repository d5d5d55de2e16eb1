"""Layer-wise scaling (LiNeS, Wang et al. 2024): a task's update is scaled down the more, the nearer a layer is to the input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llm_forgetting.config.rules import at_least
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.places import layer_number
from llm_forgetting.models.adapter.ranks import ranks_of
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.training.method import Method, Start
from llm_forgetting.training.methods.interpolate import set_between
from llm_forgetting.training.methods.o_lora import rank_problems


@dataclass(frozen=True)
class LinesOptions:
    """Options of the scaling.

    Args:
        first: What the update of the first layer is multiplied by.
        last: The same of the last layer; between them it grows linearly.
        rank: The result is cut to this rank by singular values; 0 keeps it exact, and ranks add up.
    """

    first: float = at_least(0, default=0.25, most=1)
    last: float = at_least(0, default=1.0, most=1)
    rank: int = at_least(0, default=0)


class Lines(Method[LinesOptions]):
    """delta W_before + a_l (delta W_after - delta W_before), a_l = first + (last - first) l / (L - 1) of layer l of L."""

    Options = LinesOptions
    low_rank = True
    title = ""
    _before: WeightUpdate
    _error = 0.0

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """What would need the adapter as training left it."""
        yield from super().problems(config)
        yield from rank_problems(self.name, config)

    def begin(self, start: Start) -> None:
        """Keep the adapter before the task."""
        self._before = start.model.adapter_factors()

    def shares(self, modules: Sequence[str]) -> dict[str, float]:
        """a of every module; 1 of one that is in no numbered layer."""
        numbers = {name: layer_number(name) for name in modules}
        deepest = max((number for number in numbers.values() if number is not None), default=0)
        slope = (self.options.last - self.options.first) / max(1, deepest)
        return {n: 1.0 if number is None else self.options.first + slope * number for n, number in numbers.items()}

    def end(self, model: LanguageModel) -> None:
        """Scale the update of the task."""
        self._error = set_between(model, self._before, self.shares(list(self._before)), self.options.rank)

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """Rank of what is saved, and the relative error of cutting it."""
        ranks = ranks_of(model.peft_model, model.adapter)
        return {"rank": float(max(ranks.values())), "truncation_error": self._error}


METHOD = Lines
