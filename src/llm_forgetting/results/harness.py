"""A folder that lm-evaluation-harness wrote with --output_path and --log_samples, and what changed between two. No torch."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_forgetting.errors import UserError
from llm_forgetting.files import Json
from llm_forgetting.forgetting.harness_logs import MetricChange, Sample, metric_changes, samples_of

_DATE = re.compile(r"(results|samples_(?P<task>.+))_(?P<date>\d{4}-\d{2}-\d{2}T[^_]+)\.jsonl?")


@dataclass(frozen=True)
class HarnessLog:
    """Latest evaluation in a folder: samples by task, the means and standard errors that the harness reports (`acc,none`,
    `acc_stderr,none`), and the settings of every task that should be the same in both (version, shots).
    """

    folder: Path
    date: str
    samples: Mapping[str, list[Sample]]
    reported: Mapping[str, Mapping[str, Json]]
    settings: Mapping[str, str]


@dataclass(frozen=True)
class HarnessChange:
    """Change of a metric, and the z of the harness' own comparison: from two standard errors, as if other documents had been
    asked; None where a standard error is not known or 0.
    """

    change: MetricChange
    unpaired_z: float | None


def is_harness_log(folder: Path) -> bool:
    """Whether the harness wrote into the folder, or into a folder in it, as it does with --output_path."""
    return bool(_results_files(folder))


def read_harness_log(folder: Path) -> HarnessLog:
    """The latest evaluation in a folder.

    UserError where there are those of several models, where samples were not logged, and for files that cannot be read.
    """
    files = _results_files(folder)
    if not files:
        raise UserError(f"{folder} must hold results_DATE.json, which lm-evaluation-harness writes with --output_path")
    if len({file.parent for file in files}) > 1:
        names = ", ".join(sorted({file.parent.name for file in files}))
        raise UserError(f"{folder} holds evaluations of several models ({names}); give the folder of one")
    latest = files[-1]
    date = _named(latest)["date"]
    logs = {
        _named(file)["task"]: file
        for file in sorted(latest.parent.glob("samples_*.jsonl"))
        if _named(file)["date"] == date
    }
    if not logs:
        raise UserError(f"{latest.parent} must hold samples_TASK_{date}.jsonl; evaluate again with --log_samples")
    content = _json(latest, latest.read_text(encoding="utf-8"))
    reported, versions, shots = (content.get(key) for key in ("results", "versions", "n-shot"))
    if not isinstance(reported, dict):
        raise UserError(f"{latest} must hold the results of lm-evaluation-harness (results), and does not")
    return HarnessLog(
        folder=latest.parent,
        date=date,
        samples={task: _samples(task, file) for task, file in logs.items()},
        reported={task: found for task, found in reported.items() if isinstance(found, dict)},
        settings={
            task: ", ".join(
                f"{title} {values[task]}"
                for title, values in (("version", versions), ("shots:", shots))
                if isinstance(values, dict) and task in values
            )
            for task in logs
        },
    )


def harness_changes(first: HarnessLog, second: HarnessLog) -> list[HarnessChange]:
    """What changed on every task that both logs hold; UserError where they share none, or no document."""
    found = [
        HarnessChange(change, _unpaired_z(change, first, second))
        for task in first.samples
        if task in second.samples
        for change in metric_changes(task, first.samples[task], second.samples[task])
    ]
    if not found:
        tasks = ["; ".join(log.samples) for log in (first, second)]
        raise UserError(
            f"both folders must hold samples of a common task, its documents and a metric of one number each; "
            f"{first.folder} holds {tasks[0]}, {second.folder} holds {tasks[1]}"
        )
    return found


def _unpaired_z(change: MetricChange, first: HarnessLog, second: HarnessLog) -> float | None:
    """(mean B - mean A) / sqrt(stderr_A^2 + stderr_B^2), of what the harness reports."""
    name, _, kind = change.metric.partition(",")
    values = []
    for log in (first, second):
        reported = log.reported.get(change.task, {})
        for key in (f"{name},{kind or 'none'}", f"{name}_stderr,{kind or 'none'}"):
            value = reported.get(key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return None
            values.append(float(value))
    stderr = math.hypot(values[1], values[3])
    return (values[2] - values[0]) / stderr if stderr else None


def _results_files(folder: Path) -> list[Path]:
    """By date, the latest last."""
    files = [*folder.glob("results_*.json"), *folder.glob("*/results_*.json")]
    return sorted((file for file in files if _DATE.fullmatch(file.name)), key=lambda file: file.name)


def _named(file: Path) -> dict[str, str]:
    """Task and date in a file's name; empty where it has none."""
    found = _DATE.fullmatch(file.name)
    return {"task": "", "date": ""} if found is None else {key: value or "" for key, value in found.groupdict().items()}


def _samples(task: str, file: Path) -> list[Sample]:
    logs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        logs.append(_json(file, line, f", line {number},"))
    try:
        samples = samples_of(task, logs)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} must hold samples of lm-evaluation-harness (doc_id, doc_hash, metrics): {error!r}"
        ) from error
    if not samples:
        raise UserError(f"{file} must hold samples, it is empty; evaluate again with --log_samples")
    return samples


def _json(file: Path, text: str, where: str = "") -> dict[str, Json]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}{where} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}{where} must be a JSON object, was {text[:40]!r}")
    return content
