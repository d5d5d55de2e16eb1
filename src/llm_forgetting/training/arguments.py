"""Arguments of transformers' Trainer, and the names that it knows; settings of the environment are ignored."""

import difflib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.errors import UserError


def require_known_names(config: TrainingConfig) -> None:
    """Raise UserError for an optimiser or schedule that transformers does not know, before anything is loaded."""
    wanted: tuple[tuple[str, str, type[OptimizerNames] | type[SchedulerType]], ...] = (
        ("training.optimizer", config.optimizer, OptimizerNames),
        ("training.lr_scheduler", config.lr_scheduler, SchedulerType),
    )
    for path, name, known in wanted:
        names = [member.value for member in known]
        if name not in names:
            longer = [known for known in names if known.startswith(name)]
            near = (longer or difflib.get_close_matches(name, names) or names)[:4]
            raise UserError(
                f"{path} must be a name that transformers knows, was {name!r}; did you mean {', '.join(near)}?"
            )


def accelerate_settings() -> dict[str, str]:
    """What `accelerate config` or `accelerate launch` left in the environment, such as a precision that nobody chose here."""
    return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}


@contextmanager
def accelerate_settings_aside() -> Iterator[None]:
    """Within the block the environment has no such settings."""
    aside = accelerate_settings()
    for name in aside:
        del os.environ[name]
    try:
        yield
    finally:
        for name in accelerate_settings():
            del os.environ[name]
        os.environ.update(aside)


def _checkpointing() -> dict[str, Any]:
    """Trainer's arguments for recomputing activations; transformers renamed them in 5.x and warns about the old ones."""
    fields = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def trainer_arguments(  # noqa: PLR0917 -- one call, above
    config: TrainingConfig, steps: int, seed: int, scratch: Path, device: torch.device, trackers: Sequence[str]
) -> TrainingArguments:
    """Trainer's arguments for `steps` optimiser steps; UserError where it cannot take a name."""
    try:
        arguments = TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=config.num_epochs,
            learning_rate=config.learning_rate,
            optim=config.optimizer,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=math.ceil(config.warmup_ratio * steps),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            **(_checkpointing() if config.gradient_checkpointing else {}),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="epoch",
            save_total_limit=2,  # the one before is there until the last is whole
            report_to=list(trackers) or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            use_cpu=device.type == "cpu",
            seed=seed,
            data_seed=seed,
        )
        # Several GPUs would make Trainer wrap the model in DataParallel and multiply the batch size.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments
    except ValueError as error:
        raise unusable(config, "be names that transformers knows", error) from error


def unusable(config: TrainingConfig, demand: str, error: Exception) -> UserError:
    """What is said of an optimiser or schedule that `error` refuses."""
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"training.optimizer={config.optimizer!r} and training.lr_scheduler={config.lr_scheduler!r} must {demand}: {reason}"
    )
