"""LoRA+ (Hayou et al. 2024): B has a higher learning rate than A, by PEFT's `create_loraplus_optimizer`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_forgetting.config.rules import above
from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.models.adapter.optimizer import lora_plus_optimizer
from llm_forgetting.training.method import Method


@dataclass(frozen=True)
class LoraPlusOptions:
    """Options of LoRA+.

    Args:
        ratio: Learning rate of B by that of A, which is training.learning_rate.
        tasks: `all` tasks, or the `later` ones alone.
    """

    ratio: float = above(0, default=16.0)
    tasks: Literal["all", "later"] = "all"


class LoraPlus(Method[LoraPlusOptions]):
    """Trainer's optimiser with two learning rates."""

    Options = LoraPlusOptions
    low_rank = True
    title = ""
    _weight_decay = 0.0

    def acts(self, number: int) -> bool:
        """On all tasks, or from the second on."""
        return self.options.tasks == "all" or number > 1

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """As they are; the optimiser needs the weight decay."""
        self._weight_decay = config.weight_decay
        return config

    def optimizer(
        self, model: Any, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        """PEFT's."""
        return lora_plus_optimizer(model, kind, arguments, self.options.ratio, self._weight_decay)


METHOD = LoraPlus
