"""The control that changes no function: B is multiplied and A divided by one number before the task."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llm_forgetting.config.rules import above
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.results import InterventionRecord
from llm_forgetting.training.method import Method, Start


@dataclass(frozen=True)
class RescaleOptions:
    """Options of the rescaling.

    Args:
        factor: What B is multiplied and A divided by.
    """

    factor: float = above(0, default=2.0)


class Rescale(Method[RescaleOptions]):
    """Other sharpness of A and B, the same function."""

    Options = RescaleOptions

    title = ""

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """All weights have no factors."""
        if config.lora is None or config.lora.rewrites:
            yield "needs an adapter whose A and B are all trained; leave it out"

    def begin(self, start: Start) -> None:
        """Rescale the live adapter."""
        start.model.lora.rescale(self.options.factor)

    def record(self, before: InterventionRecord, model: AdaptedModel) -> InterventionRecord:
        """The factor."""
        return replace(before, rescale=self.options.factor)


METHOD = Rescale
