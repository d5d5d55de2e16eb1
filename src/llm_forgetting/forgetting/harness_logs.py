"""Samples as lm-evaluation-harness logs them, and what changed between two logs of the same documents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_forgetting.files import Json
from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.forgetting.measures import Change
from llm_forgetting.forgetting.transitions import Transitions, transitions
from llm_forgetting.seeding import derive_seed

Log = Mapping[str, Json]


@dataclass(frozen=True)
class Sample:
    """Document of one of the harness' own tasks, by its doc_id and doc_hash: its metrics, and its options (0: it is not
    multiple choice).
    """

    task: str
    id: str
    hash: str
    metrics: dict[str, float]
    options: int


@dataclass(frozen=True)
class MetricChange:
    """Change of one metric of a task from log A to log B, over the documents that are in both; `only_first` are in A alone,
    `only_second` in B alone. first and second: the means over the shared documents; transitions: of 0/1 metrics.
    """

    task: str
    metric: str
    first: float
    second: float
    change: Change
    transitions: Transitions | None
    only_first: int
    only_second: int


def metric_changes(task: str, first: Sequence[Sample], second: Sequence[Sample]) -> list[MetricChange]:
    """What changed on a task, a metric at a time; none where no document or no metric is shared.

    Documents are the same by doc_hash, where a log holds one twice also by doc_id.
    """
    unique = all(len({one.hash for one in samples}) == len(samples) for samples in (first, second))
    before, after = ({one.hash if unique else (one.hash, one.id): one for one in log} for log in (first, second))
    shared = [key for key in before if key in after]
    pairs = [(before[key], after[key]) for key in shared]
    metrics = [
        metric
        for metric in (pairs[0][0].metrics if pairs else ())
        if all(metric in one.metrics and metric in other.metrics for one, other in pairs)
    ]
    changes = []
    for metric in metrics:
        x, y = (np.array([one.metrics[metric] for one in side]) for side in zip(*pairs, strict=True))
        binary = bool(np.isin([x, y], (0.0, 1.0)).all())
        change: Change = (
            paired_proportion_change(x, y)
            if binary
            else paired_mean_change(x, y, seed=derive_seed(0, "harness", task, metric))
        )
        turned = transitions(x, y, [one.options for one, _ in pairs]) if binary else None
        missing = len(before) - len(shared), len(after) - len(shared)
        changes.append(MetricChange(task, metric, float(x.mean()), float(y.mean()), change, turned, *missing))
    return changes


def samples_of(task: str, logs: Sequence[Log]) -> list[Sample]:
    """A sample per document, with the metrics of all filters; KeyError and TypeError where a log is none of the harness."""
    samples: dict[str, Sample] = {}
    for log in logs:
        sample = _sample(task, log)
        known = samples.get(sample.id, sample)
        samples[sample.id] = replace(sample, metrics=known.metrics | sample.metrics)
    return list(samples.values())


def with_common_metrics(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with only those metrics that all of them have; none where there are no such metrics."""
    common = [
        metric for metric in (samples[0].metrics if samples else ()) if all(metric in one.metrics for one in samples)
    ]
    return [replace(one, metrics={metric: one.metrics[metric] for metric in common}) for one in samples if common]


def _sample(task: str, log: Log) -> Sample:
    """Metrics of a filter are called `METRIC,FILTER`, those of the filter `none` by their name."""
    metrics, arguments = log["metrics"], log["arguments"]
    if not isinstance(metrics, list) or not isinstance(arguments, list | dict):
        raise TypeError(f"metrics and arguments must be lists, were {metrics!r:.40} and {arguments!r:.40}")
    suffix = "" if log.get("filter", "none") == "none" else f",{log['filter']}"
    choices = len(arguments) if len(arguments) > 1 else 0
    values = {f"{name}{suffix}": _number(log[str(name)]) for name in metrics}
    return Sample(
        task=task,
        id=str(log["doc_id"]),
        hash=str(log["doc_hash"]),
        metrics={name: value for name, value in values.items() if value is not None},
        options=choices // 2 if "acc_mutual_info" in metrics else choices,
    )


def _number(value: object) -> float | None:
    """A metric of one sample as a number, None where it is anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
