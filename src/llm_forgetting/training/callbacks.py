"""What is done at the ends of steps and epochs of a training: progress, a loss that is no number, checksums."""

import math
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_forgetting.errors import UserError
from llm_forgetting.files import manifest


class Watch(TrainerCallback):
    """Tells the progress display, and stops a run whose loss is no longer a number."""

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self._advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Show the last loss."""
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
        """Raise UserError for a loss that is no number."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the training loss became {loss} at step {state.global_step}; lower training.learning_rate "
                f"(was {args.learning_rate:g}) or use model.dtype=float32"
            )


class EpochEnd(TrainerCallback):
    """Tells the caller that an epoch's weights stand."""

    def __init__(self, record: Callable[[int], None]) -> None:
        self._record = record

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Name the epoch, from 1."""
        self._record(round(state.epoch))


class Checksums(TrainerCallback):
    """Writes a manifest into every resume folder, when all else is in it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Of the folder just written."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (checkpoint / manifest.MANIFEST).unlink(missing_ok=True)
        manifest.record(checkpoint, manifest.folder_digests(checkpoint))
