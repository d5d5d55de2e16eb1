"""Another learning rate from the second task on."""

from dataclasses import dataclass, replace

from llm_forgetting.config.rules import above
from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.training.method import Method


@dataclass(frozen=True)
class LearningRateOptions:
    """Options of the learning rate.

    Args:
        factor: What training.learning_rate is multiplied by.
    """

    factor: float = above(0, default=0.3)


class LearningRate(Method[LearningRateOptions]):
    """training.learning_rate times a factor."""

    Options = LearningRateOptions
    title = ""

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """With the other learning rate."""
        return replace(config, learning_rate=self.options.factor * config.learning_rate)


METHOD = LearningRate
