"""Accuracy and loss: R as a heat map in a table, the numbers that matter most, and the items one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from llm_forgetting.report.figures.accuracy_matrix import Matrix, matrices_of
from llm_forgetting.report.html.blocks import Cell, Heat, Heats, Listing, Question, Tile
from llm_forgetting.report.html.colour_scale import Scale
from llm_forgetting.report.tables.run import SPLIT_WORDS, counts, number, spoken, value_and_error

Record = Mapping[str, Any]
# By task and id of an item.
Questions = Mapping[tuple[str, str], Question]
# More rows make a page slow; those of items that changed come first.
MOST_ITEMS = 3000
LOST, GAINED, KEPT, NEVER = "lost", "gained", "kept", "wrong before and after"


def heat_maps(results: Mapping[str, Any]) -> Heats:
    """R of both splits."""
    note = (
        "Accuracy ± standard error, below it the loss in nats. Framed: a task right after its own training; what stands below "
        "it is what became of that."
    )
    return Heats([_heat(matrix) for matrix in matrices_of(results)], note)


def _heat(matrix: Matrix) -> Heat:
    scale = Scale(Normalize(0, 1))
    rows = [
        (name[0].upper() + name[1:], [_cell(matrix, i, j, scale) for j in range(len(matrix.tasks))])
        for i, name in enumerate(matrix.checkpoints)
    ]
    counts = " or ".join(str(n) for n in sorted(set(matrix.items)))
    return Heat(f"{SPLIT_WORDS[matrix.split].capitalize()} items ({counts} a task)", matrix.tasks, rows)


def _cell(matrix: Matrix, i: int, j: int, scale: Scale) -> Cell:
    accuracy, stderr = float(matrix.accuracy[i, j]), float(matrix.accuracy_stderr[i, j])
    lines = (
        value_and_error(accuracy, None if np.isnan(stderr) else stderr),
        f"loss {number(float(matrix.loss[i, j]))}",
    )
    if not np.isfinite(accuracy):
        return Cell(lines, framed=i == j + 1)
    return Cell(lines, scale.colour(accuracy), scale.ink(accuracy), framed=i == j + 1)


def tiles(results: Mapping[str, Any]) -> list[Tile]:
    """What became of the first task, and of the landscape around it."""
    found = [tile for split in SPLIT_WORDS for tile in _forgotten(results["forgetting"][split], split)]
    rises = [entry for entry in results["landscape_comparison"] if entry["task"] == results["task_names"][0]]
    for entry in rises[:1]:
        change = value_and_error(entry["mean_rise"]["change"], entry["mean_rise"]["stderr"])
        word = {True: "sharper", False: "flatter", None: "no difference shown"}[entry["sharper"]]
        found.append(Tile(f"Change of the mean rise around {spoken(entry['task'])}'s loss", f"{change} nats", word))
    return found


def _forgotten(found: Mapping[str, Any], split: str) -> list[Tile]:
    """Of the first task: accuracy lost and loss gained with their intervals; of few items only counts of right answers."""
    tiles = []
    for measure, label in (("accuracy", "Accuracy lost"), ("loss", "Loss gained")):
        for task in found[measure]["tasks"][:1]:
            estimate, unit = task["absolute"], "" if measure == "accuracy" else " nats"
            if estimate["value"] is None:
                continue
            interval, note = estimate["interval"], f"{task['n']} items"
            if interval:
                note = f"95% interval {number(interval['low'])} to {number(interval['high'])}, {note}"
            else:
                few = counts(task["change"]) if measure == "accuracy" else ""
                note = f"{few} right, too few for an interval" if few else f"{note}, too few for an interval"
            value = f"{number(estimate['value'])}{unit}"
            tiles.append(Tile(f"{label}, {spoken(task['name'])}, {SPLIT_WORDS[split]}", value, note))
    return tiles


def item_listing(
    records: Sequence[Record], results: Mapping[str, Any], questions: Questions | None = None
) -> Listing | None:
    """Every item of the earlier tasks: right letter, letters answered, what became of it. None without any.

    With `questions` (one for every item) also what was asked.
    """
    checkpoints = results["forgetting"]["train"]["checkpoints"]
    found = [row for k in range(len(results["task_names"]) - 1) for row in _task_rows(records, results, checkpoints, k)]
    if not found:
        return None
    order = {LOST: 0, GAINED: 1, KEPT: 2, NEVER: 3}
    found = sorted(found, key=lambda row: order[row[1][3]])
    rows: list[tuple[str | Question, ...]] = [
        (row[0], *([] if questions is None else [questions[task, row[0]]]), *row[1:]) for task, row in found
    ]
    numeric = range(len(rows[0]) - 2, len(rows[0]))
    header = (
        "item",
        *([] if questions is None else ["question"]),
        "task",
        "split",
        "became",
        "right",
        *(spoken(name) for name in checkpoints),
        "loss before",
        "loss at the end",
    )
    left = len(rows) - MOST_ITEMS
    note = (
        "Letters answered at each checkpoint; became: right after the task's own training against the last checkpoint; losses "
        "in nats, before: after the task's own training."
    )
    if left > 0:
        note += f" {left} more items, of those that did not change last, are in items.jsonl."
    choices = tuple((header.index(name), chosen) for name, chosen in (("task", ""), ("split", ""), ("became", LOST)))
    return Listing("Item by item", header, rows[:MOST_ITEMS], tuple(numeric), choices, note)


def _task_rows(
    records: Sequence[Record], results: Mapping[str, Any], checkpoints: Sequence[str], k: int
) -> list[tuple[str, tuple[str, ...]]]:
    """The name of task number `k`, and the cells of one of its items."""
    name, own, last = results["task_names"][k], checkpoints[k + 1], checkpoints[-1]
    items: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.get("task") == name and record["split"] in SPLIT_WORDS:
            items.setdefault((record["split"], record["id"]), {})[record["checkpoint"]] = record
    rows = []
    for (split, item), by in items.items():
        if own not in by or last not in by:
            continue
        before, after = by[own], by[last]
        answered = [by[checkpoint]["predicted"] if checkpoint in by else "-" for checkpoint in checkpoints]
        fate = (LOST, KEPT)[after["correct"]] if before["correct"] else (NEVER, GAINED)[after["correct"]]
        losses = (number(before["loss"]), number(after["loss"]))
        rows.append((name, (item, spoken(name), SPLIT_WORDS[split], fate, before["answer"], *answered, *losses)))
    return rows
