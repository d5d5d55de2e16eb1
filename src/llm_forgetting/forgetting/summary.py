"""All that a run says about forgetting, from the lines of its items.jsonl alone: no model, no data, no torch."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.mean_intervals import estimate_mean, paired_mean_change
from llm_forgetting.forgetting.measures import Forgetting, forgetting
from llm_forgetting.forgetting.probes import probes, probes_lost
from llm_forgetting.forgetting.quantised import quantisation_costs
from llm_forgetting.forgetting.records import (
    ForgettingBySplit,
    ForgettingSummary,
    ItemRecord,
    Line,
    PassageRecord,
    SplitForgetting,
    SpuriousForgetting,
    TextDrift,
    weighted_losses,
)
from llm_forgetting.forgetting.scores import ItemScores, ScoreTable
from llm_forgetting.forgetting.spurious import recovery, spurious_forgetting_probes
from llm_forgetting.forgetting.verdict import detectable_drops, letters_learnt, verdict
from llm_forgetting.seeding import derive_seed

RECOVERED, FRESH = "recovered", "fresh"


def summarise(records: Sequence[Line], task_names: Sequence[str], *, seed: int) -> ForgettingSummary:
    """The answer, both splits' forgetting, the probes of spurious forgetting, and the drift on unrelated text.

    Args:
        records: The lines of items.jsonl.
        task_names: The tasks in the order they were learnt.
        seed: config.training.seed, which only moves bootstrap intervals.

    Raises:
        ValueError: If a checkpoint lacks items of a task, or holds others.
    """
    checkpoints = ["initial", *(f"after_task{k}" for k in range(1, len(task_names) + 1))]
    train, test = (
        forgetting(score_table(records, task_names, split, checkpoints), seed=seed) for split in ("train", "test")
    )
    spurious = spurious_forgetting(records, task_names)
    completions = {record.task for record in _items(records, "train") if record.tokens is not None}
    letters = letters_learnt(spurious, {name: chance(_trained_items(records, name)) for name in spurious})
    never_trained = probes(records, checkpoints, seed=seed)
    return ForgettingSummary(
        answer=" ".join(filter(None, [probes_lost(never_trained or ()), letters, verdict(train, completions)])),
        forgetting=ForgettingBySplit(*(_of_split(records, measured, checkpoints) for measured in (train, test))),
        spurious=spurious,
        text=text_drift(records, checkpoints, seed=seed),
        quantised=quantisation_costs(records, task_names, checkpoints, seed=seed),
        probes=never_trained,
    )


def _of_split(records: Sequence[Line], measured: Forgetting, checkpoints: Sequence[str]) -> SplitForgetting:
    return SplitForgetting(
        checkpoints=tuple(checkpoints),
        split=measured.split,
        task_names=measured.task_names,
        accuracy=measured.accuracy,
        loss=measured.loss,
        letter_mass=letter_mass_matrix(records, measured.task_names, measured.split, checkpoints),
        detectable=detectable_drops(measured),
    )


def score_table(
    records: Iterable[Line], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> ScoreTable:
    """The item records of one split as the input of `forgetting`; ValueError as in `ScoreTable`."""
    cells: dict[tuple[int, int], list[ItemRecord]] = {}
    for record in _items(records, split):
        if record.checkpoint in checkpoints:
            cell = checkpoints.index(record.checkpoint), task_names.index(record.task) + 1
            cells.setdefault(cell, []).append(record)
    scores = {
        cell: ItemScores(
            ids=tuple(record.id for record in items),
            subjects=tuple(record.subject for record in items),
            correct=np.array([record.correct for record in items], dtype=np.bool_),
            loss=weighted_losses(items),
            options=tuple(record.options for record in items),
        )
        for cell, items in cells.items()
    }
    return ScoreTable(scores, tuple(task_names), split)


def letter_mass_matrix(
    records: Iterable[Line], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> Floats:
    """(T + 1, T) mean probability of the option letters together, from the items' letter logits and rest; of completions that
    of a token, the geometric mean over each.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for record in _items(records, split):
        mass = float(np.exp(-record.loss))
        if record.rest is not None:
            letters = np.logaddexp.reduce(record.letters)
            mass = float(np.exp(letters - np.logaddexp(letters, record.rest)))
        cells.setdefault((record.checkpoint, record.task), []).append(mass)
    return np.array([[np.mean(cells[checkpoint, task]) for task in task_names] for checkpoint in checkpoints])


def spurious_forgetting(records: Sequence[Line], task_names: Sequence[str]) -> dict[str, SpuriousForgetting]:
    """Per task but the last the probes of its trained items after itself and after the last task, and what a few items bring
    back.
    """
    last = f"after_task{len(task_names)}"
    by_task = {}
    for j, name in enumerate(task_names[:-1], start=1):
        tuned, items = f"after_task{j}", _trained_items(records, name)
        again, fresh = (items.get(f"{kind}_task{j}", []) for kind in (RECOVERED, FRESH))
        few = len(items[last]) - len(again)
        by_task[name] = SpuriousForgetting(
            probes={
                checkpoint: spurious_forgetting_probes(items[checkpoint])
                for checkpoint in (tuned, last)
                if all(record.tokens is None for record in items[checkpoint])
            },
            recovery=recovery(items[tuned], items[last], again, fresh, few) if again else None,
        )
    return by_task


def _items(records: Iterable[Line], split: str) -> list[ItemRecord]:
    return [record for record in records if isinstance(record, ItemRecord) and record.split == split]


def _trained_items(records: Sequence[Line], task: str) -> dict[str, list[ItemRecord]]:
    by_checkpoint: dict[str, list[ItemRecord]] = {}
    for record in _items(records, "train"):
        if record.task == task:
            by_checkpoint.setdefault(record.checkpoint, []).append(record)
    return by_checkpoint


def chance(items: Mapping[str, Sequence[ItemRecord]]) -> float:
    """Accuracy of guessing: the mean of 1 / number of options over the items, which are the same at every checkpoint; 0 for
    completions without options.
    """
    asked = next(iter(items.values()))
    return float(np.mean([1 / record.options if record.options else 0.0 for record in asked]))


def text_drift(records: Sequence[Line], checkpoints: Sequence[str], *, seed: int) -> TextDrift:
    """Loss per token on text that belongs to no task, mean over passages, and its change from the base model (nats)."""
    passages = [record for record in records if isinstance(record, PassageRecord)]
    losses = {name: np.array([p.loss for p in passages if p.checkpoint == name], dtype=float) for name in checkpoints}
    base = losses[checkpoints[0]]
    if not len(base) or not all(np.isfinite(values).all() for values in losses.values()):
        return TextDrift(len(base), {}, {})
    return TextDrift(
        passages=len(base),
        loss={name: estimate_mean(values, seed=derive_seed(seed, "text", name)) for name, values in losses.items()},
        change={
            name: paired_mean_change(base, losses[name], seed=derive_seed(seed, "text change", name))
            for name in checkpoints[1:]
        },
    )
