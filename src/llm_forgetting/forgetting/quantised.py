"""What quantising a checkpoint costs every task, from the lines of items.jsonl alone."""

from collections.abc import Sequence

import numpy as np

from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.forgetting.records import ItemRecord, Line, QuantisationCost, weighted_losses
from llm_forgetting.forgetting.scores import SPLITS, Split
from llm_forgetting.seeding import derive_seed

KINDS = ("8bit", "4bit")


def quantised_name(checkpoint: str, kind: str) -> str:
    """What a checkpoint is called in items.jsonl where its weights were quantised."""
    return f"{checkpoint}_{kind}"


def quantisation_costs(
    records: Sequence[Line], task_names: Sequence[str], checkpoints: Sequence[str], *, seed: int
) -> tuple[QuantisationCost, ...] | None:
    """The paired changes of every task at every checkpoint; None where none was quantised.

    Args:
        records: The lines of items.jsonl, the same items in the same order with and without quantisation.
        task_names: The tasks in the order they were learnt.
        checkpoints: Their names, the base model first.
        seed: config.training.seed, which only moves bootstrap intervals.

    Returns:
        Costs by checkpoint, task, split and kind; or None.
    """
    cells: dict[tuple[str, str, str], list[ItemRecord]] = {}
    for record in records:
        if isinstance(record, ItemRecord):
            cells.setdefault((record.checkpoint, record.task, record.split), []).append(record)
    costs = []
    for checkpoint in checkpoints:
        for task in task_names:
            for split in SPLITS:
                for kind in KINDS:
                    rounded = cells.get((quantised_name(checkpoint, kind), task, split))
                    if rounded:
                        stream = derive_seed(seed, "quantised", kind, checkpoint, task, split)
                        before = cells[checkpoint, task, split]
                        costs.append(_cost(before, rounded, checkpoint, kind, split=split, stream=stream))
    return tuple(costs) or None


def _cost(
    before: Sequence[ItemRecord], after: Sequence[ItemRecord], checkpoint: str, kind: str, *, split: Split, stream: int
) -> QuantisationCost:
    if [record.id for record in before] != [record.id for record in after]:
        raise ValueError(f"{kind} of {checkpoint} must be scored on the items of {before[0].task} in their order")
    subjects = [record.subject for record in before]
    losses = [weighted_losses(records) for records in (before, after)]
    right = [np.array([record.correct for record in records], dtype=np.bool_) for records in (before, after)]
    finite = all(np.isfinite(values).all() for values in losses)
    return QuantisationCost(
        checkpoint=checkpoint,
        kind=kind,
        task=before[0].task,
        split=split,
        loss=paired_mean_change(*losses, seed=stream, clusters=subjects) if finite else None,
        accuracy=paired_proportion_change(*right, clusters=subjects),
    )
