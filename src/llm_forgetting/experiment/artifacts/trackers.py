"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, ...): training through Trainer's `report_to`, the rest here.

A name is one of transformers' integrations. Where accelerate has a tracker of that name too, the scores, landscapes and
forgetting of every checkpoint go to it after the run, and the figures if it takes pictures.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_forgetting.errors import UserError
from llm_forgetting.report.rows import scalars
from llm_forgetting.results import Results

FOLDER = "tracking"
"""Where trackers that write files write, in the run folder."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that transformers does not know, or whose package is missing, before anything is loaded."""
    from transformers.integrations import integration_utils as known

    find: Any = known.get_available_reporting_integrations
    available = find() if names else []
    for name in names:
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise UserError(
                "output.trackers must be names that transformers' Trainer reports to "
                f"({', '.join(known.INTEGRATION_TO_CALLBACK)}), was {name!r}"
            )
        if name not in available:
            raise UserError(
                f"output.trackers={name!r} needs its package, which is not installed (usable now: "
                f"{', '.join(available) or 'none'}); install it, or leave the tracker out"
            )


@contextmanager
def training_tracked(folder: Path, stream: str) -> Iterator[None]:
    """While one task is trained, TensorBoard's callback writes into `folder/tracking/STREAM`, where the steps are its own."""
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder / FOLDER / stream)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def track(results: Results, names: Sequence[str], folder: Path) -> list[str]:
    """Send the numbers of every checkpoint (step 0 is the base model) and the figures; returns the trackers that took them.

    A tracker that accelerate does not know took the training only.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    numbers = scalars(results)
    taken = []
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            continue
        tracker: Any = _started(LOGGER_TYPE_TO_CLASS[name], folder)
        for step, values in enumerate(numbers):
            tracker.log(values, step=step)
        tracker.log({"answer": results.answer}, step=len(numbers) - 1)
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            for figure, picture in _pictures(results.figures, folder):
                tracker.log_images({figure: picture}, step=len(numbers) - 1, **layout)
        tracker.finish()
        taken.append(name)
    return taken


def _started(kind: Any, folder: Path) -> Any:
    """A tracker that writes beside the run, or (where the training opened one elsewhere) into the run that is open there."""
    from accelerate import PartialState

    PartialState()  # accelerate's trackers ask it whether they are the main process
    place = {"logging_dir": folder / FOLDER} if kind.requires_logging_directory else {}
    tracker = kind("run" if place else "llm-forgetting", **place)
    tracker.start()
    return tracker


def _pictures(figures: Sequence[str], folder: Path) -> Iterator[tuple[str, Any]]:
    """Every PNG figure of the run as (1, height, width, 3) bytes."""
    import numpy as np
    from PIL import Image

    for name in figures:
        if name.endswith(".png") and (folder / name).is_file():
            with Image.open(folder / name) as opened:
                yield name.removesuffix(".png"), np.asarray(opened.convert("RGB"))[None]
