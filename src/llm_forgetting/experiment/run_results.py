"""What a finished run says: typed values, pandas frames, surfaces, and a page for notebooks. No torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from llm_forgetting.errors import UserError
from llm_forgetting.files import from_plain, to_plain
from llm_forgetting.files.manifest import read_checked
from llm_forgetting.forgetting.frontier import matched_forgetting
from llm_forgetting.forgetting.records import Line
from llm_forgetting.landscape.results import Surface
from llm_forgetting.report import rows
from llm_forgetting.report.notebook import WithReport, summary_html
from llm_forgetting.report.tables.run import forgetting_table
from llm_forgetting.results import Results, read_items

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
class RunResults(WithReport):
    """A finished run: `content` is its results.json, `folder` where everything is.

    Frames have one row per thing that was measured, with its errors beside it (NaN: not measured); losses are in nats.
    """

    content: Mapping[str, Any]
    folder: Path

    @cached_property
    def record(self) -> Results:
        """`content` as typed records; UserError where it is not what this version writes."""
        return from_plain(Results, self.content, file=str(self.folder / "results.json"))

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        return self.record.answer

    @property
    def warnings(self) -> Sequence[str]:
        """What should be known before a number is believed."""
        return list(self.record.warnings)

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks in the order in which they were learnt."""
        return list(self.record.task_names)

    def forgotten(self, task: str | None = None, *, measure: Measure = "loss", split: Split = "train") -> Estimate:
        """What the last checkpoint lost of an earlier task since its own training.

        Args:
            task: Name of the task; the first, if none is named.
            measure: Accuracy lost (a share), or loss gained (nats).
            split: Items that were trained on, or held-out ones.

        Returns:
            The estimate; positive is forgotten.

        Raises:
            UserError: The run has no such task, measure or split.
        """
        name = self.tasks[0] if task is None else task
        for scores in self.record.forgetting.splits:
            for measured in (scores.accuracy, scores.loss):
                for forgetting in measured.tasks if (scores.split, measured.measure) == (split, measure) else ():
                    lost, interval = forgetting.absolute, forgetting.absolute.interval
                    if forgetting.name == name and lost.value is not None:
                        low, high = (None, None) if interval is None else (interval.low, interval.high)
                        return Estimate(lost.value, lost.stderr, low, high, forgetting.n)
        raise UserError(
            f"forgotten needs an earlier task of this run ({', '.join(self.tasks[:-1]) or 'it has none'}), a measure of "
            f"accuracy or loss and a split of train or test; was {name!r}, {measure!r}, {split!r}"
        )

    @cached_property
    def scores(self) -> "DataFrame":
        """Accuracy, loss and letter mass of every checkpoint on every task and split: the matrix R."""
        return _frame(rows.score_rows(self.record))

    @cached_property
    def forgetting(self) -> "DataFrame":
        """What was lost of every earlier task, in accuracy and loss, with 95% intervals."""
        return _frame(rows.forgetting_rows(self.record))

    @cached_property
    def probes(self) -> "DataFrame":
        """Scores of every checkpoint on the tasks that are never trained on, with what was lost and gained until the last."""
        return _frame(rows.probe_rows(self.record))

    @cached_property
    def landscape(self) -> "DataFrame":
        """Mean rise, curvature, basin and fit error of every loss surface."""
        return _frame(rows.landscape_rows(self.record))

    @cached_property
    def curvature(self) -> "DataFrame":
        """Extreme eigenvalues, trace and sharpness by checkpoint; empty without `curvature.spectrum`."""
        return _frame(rows.curvature_rows(self.record))

    @cached_property
    def forecasts(self) -> "DataFrame":
        """What slope and curvature forecast of every earlier task's loss, beside what was observed."""
        return _frame(rows.forecast_rows(self.record))

    @cached_property
    def training(self) -> "DataFrame":
        """Every optimiser step."""
        return _frame(rows.training_rows(self.record))

    @cached_property
    def during(self) -> "DataFrame":
        """Scores at fractions of every training; empty without `evaluation.during`."""
        return _frame(rows.during_rows(self.record))

    @cached_property
    def frontier(self) -> "DataFrame":
        """What was forgotten by the time that so much was learnt, of every training; empty without `evaluation.during`."""
        return _frame(rows.frontier_rows(self.record))

    def forgetting_at(self, learning: float, task: str | None = None, measure: Measure = "loss") -> Estimate | None:
        """Forgetting of an earlier task (the first, if none is named) in the last training, where `learning` was reached.

        Args:
            learning: How much of the last task is learnt by then: nats, or with `accuracy` a share of right answers.
            task: An earlier task or a probe.
            measure: In which both are counted.

        Returns:
            What was forgotten, with its interval over items; None where so much was never learnt.

        Raises:
            UserError: For a run that was not scored on the way, and for a task or probe that was not.
        """
        during = self.record.training[-1].during
        known = {} if during is None else {each.task: each for each in during.old}
        whose = self.tasks[0] if task is None else task
        if during is None or whose not in known:
            said = ", ".join(known) or "none, without evaluation.during and an earlier task"
            raise UserError(
                f"forgetting_at needs a task that was scored while the last was learnt ({said}), was {whose!r}"
            )
        new, old = during.gains(known[whose], measure)
        found = matched_forgetting(new, old, learning, seed=self.record.config.data.seed)
        if found is None:
            return None
        low, high = (None, None) if found.interval is None else (found.interval.low, found.interval.high)
        return Estimate(found.forgetting, None, low, high, old.shape[1])

    @cached_property
    def items(self) -> "DataFrame":
        """items.jsonl: every item at every checkpoint, with the logits of its letters."""
        return _frame(to_plain(read_items(self.folder), list[Line]))

    def surface(self, checkpoint: str | int = 1, task: str | None = None) -> Surface:
        """The loss surface of `task` (the first, if none is named) around a checkpoint: a name, or the number of its task."""
        name = f"after_task{checkpoint}" if isinstance(checkpoint, int) else checkpoint
        whose = self.tasks[0] if task is None else task
        landscapes = self.record.landscapes
        if name not in landscapes or whose not in landscapes[name].surfaces:
            known = "; ".join(f"{key}: {', '.join(landscape.surfaces)}" for key, landscape in landscapes.items())
            raise UserError(
                f"surface needs a checkpoint and a task that were scanned ({known or 'none, by landscape.tasks: none'}), was "
                f"{name!r}, {whose!r}"
            )
        return landscapes[name].surface(whose, seed=self.record.config.landscape.seed)

    def checkpoint(self, after_task: int) -> Path:
        """The folder of the adapter after task number `after_task`, for `PeftModel.from_pretrained`."""
        return self.folder / f"checkpoint_after_task{after_task}"

    def __repr__(self) -> str:
        """The answer and the folder."""
        return f"<RunResults in {self.folder}: {shorten(str(self.content.get('answer')), 200)}>"

    def _repr_html_(self) -> str:
        """The answer and what was forgotten, for notebooks."""
        return summary_html(self.answer, forgetting_table(self.record), self.report)


def open_run(folder: str | os.PathLike[str]) -> RunResults:
    """The results of a finished run, from its folder; UserError where it holds none."""
    path = Path(folder)
    try:
        return RunResults(read_checked(dict, path, "results.json"), path)
    except UserError as error:
        raise UserError(
            f"open_run needs the folder of a finished run (results.json), {path} is not one: {error}"
        ) from error


def _frame(table: Sequence[Mapping[str, Any]]) -> "DataFrame":
    from pandas import DataFrame

    return DataFrame(list(table))
