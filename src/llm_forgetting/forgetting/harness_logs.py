"""Samples as lm-evaluation-harness logs them: per document its metrics, by doc_id and doc_hash. The harness is not needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llm_forgetting.files import Json

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
