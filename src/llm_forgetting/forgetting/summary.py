"""All that a run says about forgetting, from the lines of its items.jsonl alone: no model, no data, no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forgetting.forgetting.intervals import estimate_mean, paired_mean_change
from llm_forgetting.forgetting.measures import forgetting
from llm_forgetting.forgetting.scores import SPLITS, letter_mass_matrix, score_table
from llm_forgetting.forgetting.spurious import looks, recovery
from llm_forgetting.forgetting.verdict import detectable, verdict
from llm_forgetting.seeding import derive_seed

RECOVERED, FRESH = "recovered", "fresh"
Record = Mapping[str, Any]


def summarise(records: Sequence[Record], task_names: Sequence[str], *, seed: int) -> dict[str, Any]:
    """`answer`, both splits' forgetting, `spurious` and `text`, as they stand in results.json.

    `records`: the lines of items.jsonl; `seed`: config.training.seed, which only moves bootstrap intervals.
    """
    checkpoints = ["initial", *(f"after_task{k}" for k in range(1, len(task_names) + 1))]
    found = {split: forgetting(score_table(records, task_names, split, checkpoints), seed=seed) for split in SPLITS}
    return {
        "answer": verdict(found["train"]),
        "forgetting": {
            split: {
                "checkpoints": checkpoints,
                **dataclasses.asdict(value),
                "letter_mass": letter_mass_matrix(records, task_names, split, checkpoints),
                "detectable": detectable(value),
            }
            for split, value in found.items()
        },
        "spurious": spurious(records, task_names),
        "text": text_drift(records, checkpoints, seed=seed),
    }


def spurious(records: Sequence[Record], task_names: Sequence[str]) -> dict[str, Any]:
    """Per task but the last the looks at its trained items after itself and after the last task, and what a few bring back."""
    last = f"after_task{len(task_names)}"
    content = {}
    for j, name in enumerate(task_names[:-1], start=1):
        own = _trained_items(records, name)
        again, fresh = (own.get(f"{kind}_task{j}", []) for kind in (RECOVERED, FRESH))
        few = len(own[last]) - len(again)
        content[name] = {
            **{checkpoint: dataclasses.asdict(looks(own[checkpoint])) for checkpoint in (f"after_task{j}", last)},
            "recovery": dataclasses.asdict(recovery(own[f"after_task{j}"], own[last], again, fresh, few))
            if again
            else None,
        }
    return content


def _trained_items(records: Sequence[Record], task: str) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["split"] == "train" and record["task"] == task:
            found.setdefault(record["checkpoint"], []).append(record)
    return found


def text_drift(records: Sequence[Record], checkpoints: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Loss per token on text that belongs to no task, mean over passages, and its change from the base model (nats)."""
    losses = {
        name: np.array([r["loss"] for r in records if r["split"] == "text" and r["checkpoint"] == name], dtype=float)
        for name in checkpoints
    }
    if not len(losses[checkpoints[0]]) or not all(np.isfinite(found).all() for found in losses.values()):
        return {"passages": len(losses[checkpoints[0]]), "loss": {}, "change": {}}
    base = losses[checkpoints[0]]
    return {
        "passages": len(base),
        "loss": {
            name: dataclasses.asdict(estimate_mean(found, seed=derive_seed(seed, "text", name)))
            for name, found in losses.items()
        },
        "change": {
            name: dataclasses.asdict(paired_mean_change(base, found, seed=derive_seed(seed, "text change", name)))
            for name, found in list(losses.items())[1:]
        },
    }
