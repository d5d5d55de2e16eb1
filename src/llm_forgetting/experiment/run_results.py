"""What a finished run says: typed values, pandas frames, surfaces, and a page for notebooks. No torch."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.results import Evaluations, ScanAxes, Surface
from llm_forgetting.report import rows
from llm_forgetting.report.html.files import REPORT, read_items
from llm_forgetting.report.notebook import Framed, card
from llm_forgetting.report.tables.run import forgetting_table

if TYPE_CHECKING:
    from pandas import DataFrame

Measure = Literal["accuracy", "loss"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty over items: standard error and 95% interval, None where items are too few for them."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    items: int

    def __str__(self) -> str:
        """`0.42 [0.24, 0.57]`, or with the standard error where there is no interval."""
        if self.low is not None and self.high is not None:
            return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}" if self.stderr is None else f"{self.value:.2f} ± {self.stderr:.2f}"


@dataclass(frozen=True)
class RunResults:
    """A finished run: `content` is its results.json, `folder` where everything is.

    Frames have one row per thing that was measured, with its errors beside it (NaN: not measured); losses are in nats.
    """

    content: Mapping[str, Any]
    folder: Path

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        return str(self.content["answer"])

    @property
    def warnings(self) -> Sequence[str]:
        """What should be known before a number is believed."""
        return list(self.content["warnings"])

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks in the order in which they were learnt."""
        return list(self.content["task_names"])

    def forgotten(self, task: str | None = None, *, measure: Measure = "loss", split: Split = "train") -> Estimate:
        """What the last checkpoint lost of an earlier task (the first, if none is named) since its own training.

        Accuracy lost, or loss gained in nats: positive is forgotten. `split`: items that were trained on, or held-out ones.
        """
        name = self.tasks[0] if task is None else task
        for row in rows.forgetting_rows(self.content):
            if (row["task"], row["measure"], row["split"]) == (name, measure, split) and row["forgetting"] is not None:
                return Estimate(
                    value=row["forgetting"],
                    stderr=row["forgetting_stderr"],
                    low=row["forgetting_low"],
                    high=row["forgetting_high"],
                    items=row["items"],
                )
        raise UserError(
            f"forgotten needs an earlier task of this run ({', '.join(self.tasks[:-1]) or 'it has none'}), a measure of "
            f"accuracy or loss and a split of train or test; was {name!r}, {measure!r}, {split!r}"
        )

    @cached_property
    def scores(self) -> "DataFrame":
        """Accuracy, loss and letter mass of every checkpoint on every task and split: the matrix R."""
        return _frame(rows.score_rows(self.content))

    @cached_property
    def forgetting(self) -> "DataFrame":
        """What was lost of every earlier task, in accuracy and loss, with 95% intervals."""
        return _frame(rows.forgetting_rows(self.content))

    @cached_property
    def landscape(self) -> "DataFrame":
        """Mean rise, curvature, basin and fit error of every loss surface."""
        return _frame(rows.landscape_rows(self.content))

    @cached_property
    def curvature(self) -> "DataFrame":
        """Extreme eigenvalues, trace and sharpness by checkpoint; empty without `curvature.spectrum`."""
        return _frame(rows.curvature_rows(self.content))

    @cached_property
    def forecasts(self) -> "DataFrame":
        """What slope and curvature forecast of every earlier task's loss, beside what was observed."""
        return _frame(rows.forecast_rows(self.content))

    @cached_property
    def training(self) -> "DataFrame":
        """Every optimiser step."""
        return _frame(rows.training_rows(self.content))

    @cached_property
    def items(self) -> "DataFrame":
        """items.jsonl: every item at every checkpoint, with the logits of its letters."""
        return _frame(read_items(self.folder))

    def surface(self, checkpoint: str | int = 1, task: str | None = None) -> Surface:
        """The loss surface of `task` (the first, if none is named) around a checkpoint: a name, or the number of its task."""
        name = f"after_task{checkpoint}" if isinstance(checkpoint, int) else checkpoint
        whose = self.tasks[0] if task is None else task
        found = self.content["landscapes"]
        if name not in found or whose not in found[name]["surfaces"]:
            known = "; ".join(f"{key}: {', '.join(landscape['surfaces'])}" for key, landscape in found.items())
            raise UserError(
                f"surface needs a checkpoint and a task that were scanned ({known}), was {name!r}, {whose!r}"
            )
        return _surface(found[name], found[name]["surfaces"][whose], seed=self.content["config"]["landscape"]["seed"])

    def checkpoint(self, after_task: int) -> Path:
        """The folder of the adapter after task number `after_task`, for `PeftModel.from_pretrained`."""
        return self.folder / f"checkpoint_after_task{after_task}"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / REPORT

    def show(self, height: int = 900) -> Framed:
        """report.html inside a notebook, `height` pixels high."""
        return Framed.of(self.report, height)

    def _repr_html_(self) -> str:
        """The answer and what was forgotten, for notebooks."""
        return card(self.answer, forgetting_table(self.content), self.report)


def open_run(folder: str | os.PathLike[str]) -> RunResults:
    """The results of a finished run, from its folder; UserError where it holds none."""
    path = Path(folder)
    try:
        content = json.loads((path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"open_run needs the folder of a finished run (results.json), {path} is not one: {error}"
        ) from error
    return RunResults(content, path)


def _frame(found: Sequence[Mapping[str, Any]]) -> "DataFrame":
    from pandas import DataFrame

    return DataFrame(list(found))


def _surface(landscape: Mapping[str, Any], surface: Mapping[str, Any], *, seed: int) -> Surface:
    def array(values: Any) -> Any:
        return np.asarray(values, dtype=float)

    fit, error = landscape["fit"] or {}, surface["error"] or {}
    evaluated = Evaluations(
        points=array(landscape["points"]),
        losses=array(surface["measured_loss"]),
        degree=fit.get("degree"),
        checks=fit.get("check_points", 0),
        error=error.get("largest"),
        relative_error=error.get("relative"),
        tolerance=fit.get("tolerance", 0.0),
        converged=fit.get("converged", True),
        note=landscape["note"],
    )
    unit = float(landscape["reference_norm"])
    cosine = landscape["direction_cosine"]
    along = ScanAxes(f"{landscape['space']} space", float(landscape["adapter_norm"]), (unit, unit), cosine, seed)
    return Surface(array(landscape["alphas"]), array(landscape["betas"]), array(surface["loss"]), evaluated, along)
