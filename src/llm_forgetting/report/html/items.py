"""Listing of the items one by one: letters answered at every checkpoint, and what became of them."""

from collections.abc import Mapping, Sequence

from llm_forgetting.forgetting.records import ItemRecord, Line
from llm_forgetting.report.html.blocks import Listing, Question
from llm_forgetting.report.tables.run import SPLIT_WORDS, display_name, number

# By task and id of an item.
Questions = Mapping[tuple[str, str], Question]
# More rows make a page slow; those of items that changed come first.
MOST_ITEMS = 3000
LOST, GAINED, KEPT, NEVER = "lost", "gained", "kept", "wrong before and after"


def item_listing(
    items: Sequence[Line], task_names: Sequence[str], checkpoints: Sequence[str], questions: Questions | None = None
) -> Listing | None:
    """Every item of the earlier tasks: what is right, what was answered, what became of it. None without any.

    With `questions` (one for every item) also what was asked.
    """
    rows = [row for k in range(len(task_names) - 1) for row in _task_rows(items, task_names[k], checkpoints, k + 1)]
    if not rows:
        return None
    order = {LOST: 0, GAINED: 1, KEPT: 2, NEVER: 3}
    rows = sorted(rows, key=lambda row: order[row[1][3]])
    cells: list[tuple[str | Question, ...]] = [
        (row[0], *([] if questions is None else [questions[task, row[0]]]), *row[1:]) for task, row in rows
    ]
    header = (
        "item",
        *([] if questions is None else ["question"]),
        "task",
        "split",
        "became",
        "right",
        *map(display_name, checkpoints),
        "loss before",
        "loss at the end",
    )
    left = len(cells) - MOST_ITEMS
    note = (
        f"Answered at each checkpoint: {likeliest(items)}; became: right after the task's own training against the last "
        "checkpoint; losses in nats, before: after the task's own training."
    )
    if left > 0:
        note += f" {left} more items, of those that did not change last, are in items.jsonl."
    choices = tuple((header.index(name), chosen) for name, chosen in (("task", ""), ("split", ""), ("became", LOST)))
    numeric = (len(header) - 2, len(header) - 1)
    return Listing("Item by item", header, cells[:MOST_ITEMS], numeric, choices, note)


def likeliest(items: Sequence[Line]) -> str:
    """What stands for an item's answer: the likeliest letter, or of a completion the likeliest tokens."""
    kinds = {item.tokens is None for item in items if isinstance(item, ItemRecord)}
    return " or ".join(["the likeliest letter"] * (True in kinds) + ["the likeliest tokens"] * (False in kinds))


def shortened(text: str, most: int = 40) -> str:
    """The text in one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _task_rows(
    items: Sequence[Line], task: str, checkpoints: Sequence[str], own: int
) -> list[tuple[str, tuple[str, ...]]]:
    """Name of a task and the cells of one of its items, which checkpoint number `own` was trained on."""
    answers: dict[tuple[str, str], dict[str, ItemRecord]] = {}
    for item in items:
        if isinstance(item, ItemRecord) and item.task == task:
            answers.setdefault((item.split, item.id), {})[item.checkpoint] = item
    rows = []
    for (split, name), by_checkpoint in answers.items():
        before, after = by_checkpoint.get(checkpoints[own]), by_checkpoint.get(checkpoints[-1])
        if before is None or after is None:
            continue
        letters = [shortened(by_checkpoint[each].predicted) if each in by_checkpoint else "-" for each in checkpoints]
        fate = (LOST, KEPT)[after.correct] if before.correct else (NEVER, GAINED)[after.correct]
        losses = number(before.loss), number(after.loss)
        rows.append(
            (task, (name, display_name(task), SPLIT_WORDS[split], fate, shortened(before.answer), *letters, *losses))
        )
    return rows
