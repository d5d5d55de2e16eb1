"""Fine-tuning on one task, through transformers' Trainer."""

import difflib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import from_plain, manifest
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem, prediction_weights, total_weight
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import OutOfMemoryRetry
from llm_forgetting.results import TrainingStep
from llm_forgetting.seeding import derive_seed, generator
from llm_forgetting.training.interventions import Interventions, TwoPasses, rewinding

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

    An anchor adds its penalty to that loss; SAM takes the gradient of their sum elsewhere. Items are packed where the model
    allows it, except where activations are to be computed again in the backward pass, which would not know the pack.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        sampler: LengthBucketSampler,
        *,
        packed: bool,
        interventions: Interventions,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=language_model.peft_model, **kwargs)
        self._packed = packed
        self._anchor = interventions.anchor
        self._trained = [parameter for parameter in language_model.peft_model.parameters() if parameter.requires_grad]
        self._two_passes = TwoPasses(interventions.sam, self._trained) if interventions.sam is not None else None
        self._retry = OutOfMemoryRetry(language_model.device)
        # The loss of a micro-batch comes as its share of the step's mean; Trainer is not to divide it again.
        self.model_accepts_loss_kwargs = True
        self._language_model = language_model
        self._sampler = sampler

    def get_batch_samples(  # type: ignore[override] -- a weight may be a fraction, and is only handed on
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
        """Mean over the batch's predictions of -log p(right token | those before), by their weights, and the anchor's penalty,
        nats; times the share of the optimiser step's weight, `num_items_in_batch`, that the batch holds.
        """
        losses, total = (
            answer_losses(self._language_model, inputs["items"], packed=self._packed),
            total_weight(inputs["items"]),
        )
        weights = prediction_weights(inputs["items"])
        loss = losses.mean() if weights is None else (losses * weights.to(losses)).sum() / total
        if self._anchor is not None:
            loss = loss + self._anchor.penalty(self._language_model.live_factors())
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
        if self._two_passes is None:
            return step()
        return self._two_passes.add(step, last=self.accelerator.sync_gradients)

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


class _Watch(TrainerCallback):
    """Tells the progress display, and stops a run whose loss is no longer a number."""

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self._advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        recent = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        self._advance(1, "" if recent is None else f"loss {recent:.3g}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the training loss became {loss} at step {state.global_step}; lower training.learning_rate "
                f"(was {args.learning_rate:g}) or use model.dtype=float32"
            )


class _EpochEnd(TrainerCallback):
    """Tells the caller that an epoch's weights stand."""

    def __init__(self, record: Callable[[int], None]) -> None:
        self._record = record

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._record(round(state.epoch))


class _Checksums(TrainerCallback):
    """Writes a manifest into every resume folder, when all else is in it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (checkpoint / manifest.MANIFEST).unlink(missing_ok=True)
        manifest.record(checkpoint, manifest.folder_digests(checkpoint))


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


def optimizer_steps(items: int, config: TrainingConfig) -> int:
    """Optimiser steps of one fine-tuning phase."""
    batches = math.ceil(items / config.batch_size)
    return math.ceil(batches / config.gradient_accumulation_steps) * config.num_epochs


def accelerate_settings() -> dict[str, str]:
    """What `accelerate config` or `accelerate launch` left in the environment, such as a precision that nobody chose here."""
    return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}


@contextmanager
def _accelerate_settings_aside() -> Iterator[None]:
    aside = accelerate_settings()
    for name in aside:
        del os.environ[name]
    try:
        yield
    finally:
        for name in accelerate_settings():
            del os.environ[name]
        os.environ.update(aside)


@_accelerate_settings_aside()
def fine_tune(
    model: LanguageModel,
    items: Sequence[EncodedItem],
    config: TrainingConfig,
    *,
    stream: str,
    scratch: Path,
    interventions: Interventions | None = None,
    trackers: Sequence[str] = (),
    advance: Callable[[int, str], None] = lambda steps, text: None,
    record: Callable[[int], None] = lambda epoch: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[TrainingStep, ...]:
    """Train the live adapter on `items` with a fresh optimiser and schedule; returns the log, one entry per step.

    Of `interventions`, SAM and anchor; replayed items are among `items`.
    `trackers` are names for Trainer's `report_to`. `record` is called at the end of every epoch (numbered from 1), while the
    live adapter is what that epoch made of it.

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
        args=_arguments(config, steps, seed, scratch, model.device, trackers),
        train_dataset=list(items),
        packed=not config.gradient_checkpointing,
        interventions=interventions or Interventions(),
        data_collator=lambda batch: {"items": batch},
        callbacks=[_Watch(advance), _EpochEnd(record), _Checksums()],
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    try:
        trainer.create_optimizer_and_scheduler(steps)
    except (ImportError, TypeError, ValueError) as error:
        raise _unusable(config, "work without another package or further arguments", error) from error
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


def _checkpointing() -> dict[str, Any]:
    """Trainer's arguments for recomputing activations; transformers renamed them in 5.x and warns about the old ones."""
    fields = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _arguments(  # noqa: PLR0917 -- one call, above
    config: TrainingConfig, steps: int, seed: int, scratch: Path, device: torch.device, trackers: Sequence[str]
) -> TrainingArguments:
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
        raise _unusable(config, "be names that transformers knows", error) from error


def _unusable(config: TrainingConfig, demand: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"training.optimizer={config.optimizer!r} and training.lr_scheduler={config.lr_scheduler!r} must {demand}: {reason}"
    )
