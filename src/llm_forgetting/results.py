"""From the phases' artifacts to results.json: assembly, schema version, provenance. No torch."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_forgetting.forgetting import ItemScores, ScoreTable

SCHEMA_VERSION = 1
SPLITS = ("train", "test")
_PACKAGES = (
    "llm-forgetting",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "tokenizers",
)

Record = Mapping[str, Any]


def versions() -> dict[str, str]:
    """Versions of Python and of every package that computes a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed (run from source)"
    return found


def environment() -> dict[str, Any]:
    """The machine, as far as it can change a rounding error."""
    return {"platform": platform.platform(), "machine": platform.machine(), "cpu_count": os.cpu_count()}


def score_table(
    records: Iterable[Record], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> ScoreTable:
    """The per-item records of one split as the input of `forgetting`."""
    cells: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        if record["split"] == split and record["checkpoint"] in checkpoints:
            cell = checkpoints.index(record["checkpoint"]), task_names.index(record["task"]) + 1
            cells.setdefault(cell, []).append(record)
    scores = {
        cell: ItemScores(
            ids=tuple(record["id"] for record in found),
            subjects=tuple(record["subject"] for record in found),
            correct=np.array([record["correct"] for record in found], dtype=np.bool_),
            loss=np.array([float(record["loss"]) for record in found]),
        )
        for cell, found in cells.items()
    }
    return ScoreTable(scores, tuple(task_names), split)


def letter_mass_matrix(
    records: Iterable[Record], task_names: Sequence[str], split: str, checkpoints: Sequence[str]
) -> list[list[float]]:
    """Mean probability of the option letters together, [checkpoint][task], from the items' letter logits and rest."""
    cells: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["split"] == split:
            z, rest = (np.asarray(record[key], dtype=np.float64) for key in ("letter_logits", "rest"))
            letters = np.logaddexp.reduce(z)
            mass = float(np.exp(letters - np.logaddexp(letters, rest)))
            cells.setdefault((record["checkpoint"], record["task"]), []).append(mass)
    return [[float(np.mean(cells[checkpoint, task])) for task in task_names] for checkpoint in checkpoints]


def without_raw_logits(content: Any) -> Any:
    """A phase's result as it stands in results.json: surfaces and numbers, no per-item logits, at any depth."""
    raw = ("letter_logits", "rest", "answers")
    if isinstance(content, Mapping):
        return {key: without_raw_logits(value) for key, value in content.items() if key not in raw}
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        return [without_raw_logits(value) for value in content]
    return content
