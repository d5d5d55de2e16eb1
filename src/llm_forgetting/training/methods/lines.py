"""Layer-wise scaling (LiNeS, Wang et al. 2024): a task's update is scaled down the more, the nearer a layer is to the input."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_forgetting.config.rules import at_least
from llm_forgetting.models.adapter.places import layer_number
from llm_forgetting.training.methods.interpolate import Between, CutOptions


@dataclass(frozen=True)
class LinesOptions(CutOptions):
    """Options of the scaling.

    Args:
        first: What the update of the first layer is multiplied by.
        last: The same of the last layer; between them it grows linearly.
        rank: The result is cut to this rank by singular values; 0 keeps it exact, and ranks add up.
    """

    first: float = at_least(0, default=0.25, most=1)
    last: float = at_least(0, default=1.0, most=1)


class Lines(Between[LinesOptions]):
    """delta W_before + a_l (delta W_after - delta W_before), a_l = first + (last - first) l / (L - 1) of layer l of L."""

    Options = LinesOptions

    def shares(self, modules: Sequence[str]) -> dict[str, float]:
        """a of every module; 1 of one that is in no numbered layer."""
        numbers = {name: layer_number(name) for name in modules}
        deepest = max((number for number in numbers.values() if number is not None), default=0)
        slope = (self.options.last - self.options.first) / max(1, deepest)
        return {n: 1.0 if number is None else self.options.first + slope * number for n, number in numbers.items()}


METHOD = Lines
