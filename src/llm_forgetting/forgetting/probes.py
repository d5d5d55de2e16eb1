"""What became of tasks that are never trained on, from the lines of items.jsonl alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.intervals import PairedProportionChange, Proportion, paired_proportion_change, proportion
from llm_forgetting.forgetting.mean_intervals import Mean, estimate_mean, paired_mean_change
from llm_forgetting.forgetting.measures import Change
from llm_forgetting.forgetting.multiplicity import holm
from llm_forgetting.forgetting.records import ItemRecord, Line, Probe, ProbeChange, SampleRecord, weighted_losses
from llm_forgetting.forgetting.scores import item_mean
from llm_forgetting.forgetting.transitions import transitions
from llm_forgetting.seeding import derive_seed

SIGNIFICANT = 0.05
_Cells = Mapping[str, Sequence[ItemRecord | SampleRecord]]


def probes(records: Sequence[Line], checkpoints: Sequence[str], *, seed: int) -> tuple[Probe, ...] | None:
    """One probe per task that is never trained on, of the harness' tasks one per metric; None where there are none.

    Args:
        records: The lines of items.jsonl.
        checkpoints: Their names, the base model first.
        seed: config.training.seed, which only moves bootstrap intervals.

    Returns:
        Probes in the order of their tasks.

    Raises:
        ValueError: Where the checkpoints do not hold the same items of a task in the same order.
    """
    tasks: dict[str, dict[str, list[ItemRecord | SampleRecord]]] = {}
    for record in records:
        if isinstance(record, SampleRecord) or (isinstance(record, ItemRecord) and record.split == "probe"):
            tasks.setdefault(record.task, {}).setdefault(record.checkpoint, []).append(record)
    return tuple(probe for name, cells in tasks.items() for probe in _of_task(name, cells, checkpoints, seed)) or None


def _of_task(name: str, cells: _Cells, checkpoints: Sequence[str], seed: int) -> list[Probe]:
    base = cells[checkpoints[0]]
    for checkpoint in checkpoints:
        if [_identity(item) for item in cells.get(checkpoint, ())] != [_identity(item) for item in base]:
            raise ValueError(f"{checkpoint} must hold the items of probe {name} that the base model was scored on")
    first = base[0]
    if isinstance(first, SampleRecord):
        return [_probe(name, metric, cells, checkpoints, seed) for metric in first.metrics]
    return [_probe(name, "accuracy" if first.options else "exact match", cells, checkpoints, seed)]


def _identity(item: ItemRecord | SampleRecord) -> tuple[str, str, str]:
    return item.subject, item.id, item.hash if isinstance(item, SampleRecord) else ""


def _probe(name: str, measure: str, cells: _Cells, checkpoints: Sequence[str], seed: int) -> Probe:
    base, last = cells[checkpoints[0]], checkpoints[-1]
    subjects, options = [item.subject for item in base], [item.options for item in base]
    values = {key: np.array([_value(item, measure) for item in cells[key]]) for key in checkpoints}
    losses = {key: loss for key in checkpoints if (loss := _losses(cells[key])) is not None}
    finite_scores = all(np.isfinite(scores).all() for scores in values.values())
    binary = bool(np.isin(np.concatenate(list(values.values())), (0.0, 1.0)).all())

    def seeded(*what: str) -> int:
        return derive_seed(seed, "probe", name, measure, *what)

    def change(start: str) -> ProbeChange:
        before, after = values[start], values[last]
        score: Change = (
            paired_proportion_change(before, after, clusters=subjects)
            if binary
            else paired_mean_change(before, after, seed=seeded("score", start), clusters=subjects)
        )
        finite = bool(losses) and all(np.isfinite(losses[key]).all() for key in (start, last))
        return ProbeChange(
            start,
            score,
            paired_mean_change(losses[start], losses[last], seed=seeded("loss", start), clusters=subjects)
            if finite
            else None,
            transitions(before, after, options, clusters=subjects) if binary else None,
        )

    return Probe(
        name=name,
        measure=measure,
        n=len(base),
        chance=float(np.mean([1 / k if k else 0.0 for k in options])) if binary else None,
        score={key: _score(scores, binary, seeded("mean", key), subjects) for key, scores in values.items()},
        loss={key: _mean(loss, seeded("mean loss", key), subjects) for key, loss in losses.items()},
        changes=tuple(change(start) for start in checkpoints[:-1]) if finite_scores else (),
    )


def _value(item: ItemRecord | SampleRecord, measure: str) -> float:
    return item.metrics[measure] if isinstance(item, SampleRecord) else float(item.correct)


def _losses(items: Sequence[ItemRecord | SampleRecord]) -> Floats | None:
    """(n,) losses whose mean is the training loss; None for the harness' samples."""
    scored = [item for item in items if isinstance(item, ItemRecord)]
    if len(scored) < len(items):
        return None
    return weighted_losses(scored)


def _score(values: Floats, binary: bool, seed: int, subjects: Sequence[str]) -> Proportion | Mean:
    return proportion(values) if binary else _mean(values, seed, subjects)


def _mean(values: Floats, seed: int, subjects: Sequence[str]) -> Mean:
    if not np.isfinite(values).all():
        return Mean(item_mean(values), None, len(values), None)
    return estimate_mean(values, seed=seed, clusters=subjects)


def probes_lost(found: Sequence[Probe]) -> str:
    """A sentence on the probes whose share of right answers fell from the base model to the last checkpoint; else nothing.

    Fell: fewer are right, the change's interval lies below 0, and McNemar's p-value, adjusted for all probes (Holm), is at
    most `SIGNIFICANT`.
    """
    changes = {f"{probe.name} {probe.measure}": (probe, probe.changes[0].score) for probe in found if probe.changes}
    tested = {key: score for key, (_, score) in changes.items() if isinstance(score, PairedProportionChange)}
    adjusted = holm({key: score.p_value for key, score in tested.items()})
    said = []
    for key, score in tested.items():
        probe, interval = changes[key][0], score.interval
        if interval is None or interval.high >= 0 or adjusted[key] > SIGNIFICANT:
            continue
        before, *_, after = probe.score.values()
        said.append(
            f"{probe.measure} on {probe.name.replace('_', ' ')} from {before.value:.2f} to {after.value:.2f} (95% interval of "
            f"the change {interval.low:.2f} to {interval.high:.2f}, {score.n} items)"
        )
    return f"What was never trained on was lost too: {'; '.join(said)}." if said else ""
