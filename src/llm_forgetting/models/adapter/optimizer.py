"""An optimiser with different learning rates of A and B."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer


def lora_plus_optimizer(
    model: Any, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any], ratio: float, weight_decay: float
) -> torch.optim.Optimizer:
    """PEFT's LoRA+ optimiser of the trained weights of `model`: B learns `ratio` times as fast as A.

    `arguments` are those of an optimiser of class `kind`, its learning rate `lr` among them.
    """
    rest = {name: value for name, value in arguments.items() if name != "lr"}
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, lr=arguments["lr"], loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **rest
    )
    return optimizer
