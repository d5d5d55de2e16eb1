"""Fine-tuning on one task, through transformers' Trainer."""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import from_plain, manifest
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem, prediction_weights, total_weight
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import OutOfMemoryRetry
from llm_forgetting.results import TrainingStep
from llm_forgetting.seeding import derive_seed, generator
from llm_forgetting.training.arguments import accelerate_settings_aside, trainer_arguments, unusable
from llm_forgetting.training.callbacks import Checksums, EpochEnd, Watch
from llm_forgetting.training.method import Methods
from llm_forgetting.training.random_numbers import rewinding

# Batches are cut from runs of this many batches sorted by length: little padding, yet other company every epoch.
BATCHES_PER_BUCKET = 4


class LengthBucketSampler(Sampler[int]):
    """Item indices in a new order every epoch, neighbours of like length; a function of (seed, epoch) alone.

    Shuffle, cut into runs of a few batches, sort each run by length, shuffle the batches. `batch_size` counts the items of
    an optimiser step, however many micro-batches it is split into. Trainer calls `set_epoch`, so a resumed run sees the order
    of an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of epoch `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = generator(self.seed, "order", self.epoch)
        order = rng.permutation(len(self.lengths)).tolist()
        run = self.batch_size * BATCHES_PER_BUCKET
        batches = []
        for start in range(0, len(order), run):
            ordered = sorted(order[start : start + run], key=lambda index: -self.lengths[index])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        # A short batch stays last: moved elsewhere it would shift the borders of all that follow.
        tail = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        batches = [batches[n] for n in rng.permutation(len(batches))] + tail
        return iter([index for batch in batches for index in batch])


class AnswerTrainer(Trainer):
    """Trainer whose loss is the mean full-vocabulary cross-entropy of the answer token, from answer-position logits.

    Methods add their penalties to that loss, and one of them may give the gradient of the sum in another way (SAM). Items are
    packed where the model allows it, except where activations are to be computed again in the backward pass, which would not
    know the pack.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        sampler: LengthBucketSampler,
        *,
        packed: bool,
        methods: Methods,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=language_model.peft_model, **kwargs)
        self._packed = packed
        self._methods = methods
        self._trained = [parameter for parameter in language_model.peft_model.parameters() if parameter.requires_grad]
        self._gradient = methods.gradient(self._trained)
        self._retry = OutOfMemoryRetry(language_model.device)
        # The loss of a micro-batch comes as its share of the step's mean; Trainer is not to divide it again.
        self.model_accepts_loss_kwargs = True
        self._language_model = language_model
        self._sampler = sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """That of a method which makes one; else Trainer's."""
        if self.optimizer is None:
            peft_model = self._language_model.peft_model
            chosen = self.get_optimizer_cls_and_kwargs(self.args, peft_model)
            self.optimizer = self._methods.optimizer(peft_model, *chosen)
        return super().create_optimizer(model)

    def get_batch_samples(  # type: ignore[override]  # a weight may be a fraction; it is only handed on
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], float]:
        """The micro-batches of an optimiser step, and the weight of all that is predicted in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(total_weight(batch["items"]) for batch in batches)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Mean over the batch's predictions of -log p(right token | those before), by their weights, and the methods'
        penalties, nats; times the share of the optimiser step's weight, `num_items_in_batch`, that the batch holds.
        """
        items, total = inputs["items"], total_weight(inputs["items"])
        losses, weights = answer_losses(self._language_model, items, packed=self._packed), prediction_weights(items)
        mean = losses.mean() if weights is None else (losses * weights.to(losses)).sum() / total
        loss = self._methods.penalised(mean, self._language_model, items)
        loss = loss * (total / (num_items_in_batch or total))
        return (loss, losses) if return_outputs else loss

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Adds the gradient of a batch, in halves where memory runs out; with SAM the step's last batch leaves the gradient at
        the ascended weights.
        """
        backward: Callable[..., torch.Tensor] = super().training_step
        step = partial(
            self._piecewise,
            tuple(inputs["items"]),
            lambda piece: backward(model, {"items": list(piece)}, num_items_in_batch or total_weight(inputs["items"])),
        )
        if self._gradient is None:
            return step()
        return self._gradient.add(step, last=self.accelerator.sync_gradients)

    def _piecewise(
        self, items: tuple[EncodedItem, ...], backward: Callable[[tuple[EncodedItem, ...]], torch.Tensor]
    ) -> torch.Tensor:
        """The sum of what `backward` returns for the pieces; one that does not fit leaves no gradient and no random number."""
        losses = []

        def compute(places: tuple[int, ...]) -> None:
            rewind = rewinding(self._language_model.device)
            before = [None if parameter.grad is None else parameter.grad.clone() for parameter in self._trained]
            try:
                losses.append(backward(tuple(items[place] for place in places)))
            except (MemoryError, RuntimeError):
                rewind()
                for parameter, gradient in zip(self._trained, before, strict=True):
                    parameter.grad = gradient
                raise

        self._retry.run(tuple(range(len(items))), compute)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _get_train_sampler(self, train_dataset: object = None) -> LengthBucketSampler:
        return self._sampler


def optimizer_steps(items: int, config: TrainingConfig) -> int:
    """Optimiser steps of one fine-tuning phase."""
    batches = math.ceil(items / config.batch_size)
    return math.ceil(batches / config.gradient_accumulation_steps) * config.num_epochs


@accelerate_settings_aside()
def fine_tune(
    model: LanguageModel,
    items: Sequence[EncodedItem],
    config: TrainingConfig,
    *,
    stream: str,
    scratch: Path,
    methods: Methods | None = None,
    trackers: Sequence[str] = (),
    advance: Callable[[int, str], None] = lambda steps, text: None,
    record: Callable[[int], None] = lambda epoch: None,
    note: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[TrainingStep, ...]:
    """Train the live adapter on `items` with a fresh optimiser and schedule; returns the log, one entry per step.

    `methods` have begun; the items that they add are among `items`, and `config` is as they change it.
    `trackers` are names for Trainer's `report_to`. `record` is called at the end of every epoch (numbered from 1), while the
    live adapter is what that epoch made of it. `callbacks` are transformers' own; they may look, and must change nothing.

    `stream` names the random stream of item order and dropout. `scratch` holds Trainer's private resume files (one per
    epoch; optimiser and RNG states): a phase that was killed goes on from the last whole epoch, and `note` hears where the last
    is damaged. The caller deletes it.
    """
    seed = derive_seed(config.seed, "training", stream) % 2**32
    per_step = config.batch_size * config.gradient_accumulation_steps
    sampler = LengthBucketSampler([len(item.input_ids) for item in items], per_step, seed)
    steps = optimizer_steps(len(items), config)
    if model.device.type not in (
        "cpu",
        "cuda",
    ):  # of another device Trainer must be told, or it takes the model to the CPU
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(model.device)
    trainer = AnswerTrainer(
        model,
        sampler,
        args=trainer_arguments(config, steps, seed, scratch, model.device, trackers),
        train_dataset=list(items),
        packed=not config.gradient_checkpointing,
        methods=methods or Methods(),
        data_collator=lambda batch: {"items": batch},
        callbacks=[Watch(advance), EpochEnd(record), *callbacks, Checksums()],
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    try:
        trainer.create_optimizer_and_scheduler(steps)
    except (ImportError, TypeError, ValueError) as error:
        raise unusable(config, "work without another package or further arguments", error) from error
    try:
        with model.computing():
            trainer.train(resume_from_checkpoint=_last_checkpoint(scratch, note))
    finally:
        model.peft_model.eval()
    return tuple(from_plain(TrainingStep, entry) for entry in trainer.state.log_history if "loss" in entry)


def _last_checkpoint(scratch: Path, note: Callable[[str], None]) -> str | None:
    """The newest resume folder that is as it was saved, None where there is none; those that are not are removed."""
    saved = sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in saved if _is_whole(path)]
    if whole != saved:
        start = f"goes on from {whole[-1].name}" if whole else "starts again"
        note(f"a resume file in {scratch} is damaged or was not written whole: training {start}")
    for path in set(saved) - set(whole):
        shutil.rmtree(path)
    return str(whole[-1]) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return (checkpoint / manifest.MANIFEST).is_file() and not manifest.damaged(checkpoint)
    except UserError:
        return False
