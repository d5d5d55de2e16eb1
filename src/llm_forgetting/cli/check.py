"""`llm-forgetting check DIR --max-forgetting X`: an exit status for pipelines."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.cli.parser import Parser
from llm_forgetting.errors import UserError

if TYPE_CHECKING:
    from llm_forgetting.forgetting.limits import LimitedForgetting
    from llm_forgetting.forgetting.records import Probe
    from llm_forgetting.forgetting.scores import Measure
    from llm_forgetting.report.tables.run import Table

KEPT, FORGOTTEN, CANNOT_BE_SAID = 0, 1, 3
"""Exit statuses; 2 is that of every mistake in a command."""


def check(arguments: list[str]) -> int:
    """`llm-forgetting check`: 0 if forgetting is shown to be within the limit, 1 if shown to be above, 3 if neither."""
    parser = Parser(
        "llm-forgetting check",
        description="Hold the forgetting of a finished run, or of an evaluation of a pair A B, against a limit. Exit status: "
        "0, every earlier task and every probe is shown to have lost at most the limit; 1, one is shown to have lost more; 3, "
        "neither can be said with this many items. Shown means that the whole 95% interval lies on one side.",
    )
    parser.add_argument(
        "folder", metavar="DIR", help="the folder of a finished run, or of `llm-forgetting evaluate A B`"
    )
    parser.add_argument(
        "--max-forgetting", "--max_forgetting", dest="limit", type=_limit, required=True, metavar="X",
        help="the most that may be lost: a share of the items (0.1), with --measure loss nats",
    )  # fmt: skip
    parser.add_argument(
        "--task", action="append", metavar="NAME", help="only this task or probe; may be given again; default all"
    )
    parser.add_argument("--measure", choices=["accuracy", "loss"], default="accuracy", help="default accuracy")
    parser.add_argument(
        "--split", choices=["test", "train"], default="test", help="of a run: held-out (default) or trained items"
    )
    options = parser.parse_args(arguments)
    from llm_forgetting.report.tables.run import SPLIT_WORDS
    from llm_forgetting.report.terminal import Terminal

    folder = Path(options.folder)
    checked = _chosen(_losses(folder, options.measure, options.split, options.limit), options.task)
    split = SPLIT_WORDS[options.split] if (folder / "results.json").is_file() else ""
    Terminal().show_table(_table(checked, options.measure, options.limit, split))
    outcomes = {task.outcome for task in checked}
    if "forgotten" in outcomes:
        return FORGOTTEN
    return CANNOT_BE_SAID if "cannot be said" in outcomes else KEPT


def _limit(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _losses(folder: Path, measure: "Measure", split: str, limit: float) -> "list[LimitedForgetting]":
    """What every task has lost, by the folder's results."""
    from llm_forgetting.forgetting.limits import LimitedForgetting
    from llm_forgetting.results import read_evaluation, read_results

    if (folder / "results.json").is_file():
        results = read_results(folder)
        tasks = getattr(getattr(results.forgetting, split), measure).tasks
        found = [
            LimitedForgetting(task.name, task.n, _number(task.absolute.value), task.absolute.interval, limit)
            for task in tasks
        ]
        found += _of_probes(results.probes or (), measure, limit)
        if not found:
            raise UserError(
                f"check needs two tasks or more, of which the earlier are forgotten, or probes; the run in {folder} has one "
                "task"
            )
        return found
    if not (folder / "evaluation.json").is_file():
        raise UserError(
            f"check needs the folder of a finished run (results.json) or of an evaluation of a pair (evaluation.json), "
            f"{folder} holds neither"
        )
    changes = read_evaluation(folder).changes
    if changes is None:
        raise UserError(
            f"check needs an evaluation of two checkpoints, {folder} is one of a single one; make it by: evaluate A B"
        )
    sign = -1.0 if measure == "accuracy" else 1.0
    losses = []
    for task in changes:
        change = task.loss if measure == "loss" else task.held_out or task.accuracy
        interval = change.interval if change.interval is None or sign > 0 else -change.interval
        losses.append(LimitedForgetting(task.name, change.n, 0.0 + sign * change.value, interval, limit))
    return losses


def _of_probes(probes: "Sequence[Probe]", measure: "Measure", limit: float) -> "list[LimitedForgetting]":
    """What tasks that are never trained on lost from the base model to the last checkpoint: of right answers, or in nats."""
    from llm_forgetting.forgetting.limits import LimitedForgetting

    several = [probe.name for probe in probes]
    sign, found = -1.0 if measure == "accuracy" else 1.0, []
    for probe in probes:
        first = probe.changes[0] if probe.changes else None
        if first is not None and (change := first.loss if measure == "loss" else first.transitions and first.score):
            name = f"{probe.name} ({probe.measure})" if several.count(probe.name) > 1 else probe.name
            interval = change.interval if change.interval is None or sign > 0 else -change.interval
            found.append(LimitedForgetting(name, change.n, 0.0 + sign * change.value, interval, limit))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _chosen(tasks: "list[LimitedForgetting]", names: Sequence[str] | None) -> "list[LimitedForgetting]":
    known = [task.task for task in tasks]
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"--task must be one of {', '.join(known)}, was {unknown[0]}")
    return [task for task in tasks if not names or task.task in names]


def _table(tasks: "list[LimitedForgetting]", measure: "Measure", limit: float, split: str) -> "Table":
    """`split`: in words, of a run's items; empty for an evaluation's."""
    from llm_forgetting.report.tables.run import Table

    rows = []
    for task in tasks:
        interval = f"{task.interval.low:+.3f} to {task.interval.high:+.3f}" if task.interval else "none below 40 items"
        more = f"; about {task.items_needed:,} items would tell" if task.items_needed is not None else ""
        said = task.outcome + (more if task.outcome == "cannot be said" else "")
        rows.append((task.task, str(task.n), f"{task.value:+.3f}", interval, said))
    unit = "share of items" if measure == "accuracy" else "nats"
    other = "; --split train asks of trained ones" if split == "held-out" else ""
    return Table(
        f"Forgetting, at most {limit:g} allowed ({unit})",
        ("task", "items", "lost", "95% interval", "shown"),
        tuple(rows),
        "kept: the whole interval is at most the limit. forgotten: all of it is above. Intervals are over items."
        + (f" Items of tasks are {split} ones{other}." if split else ""),
    )
