"""The lines of items.jsonl: what a checkpoint said of every item and passage."""

from collections.abc import Sequence
from typing import Any

from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.text_loss import Passage
from llm_forgetting.seeding import generator

Record = dict[str, Any]


def item_records(
    checkpoint: str, task: str, split: str, items: Sequence[EncodedItem], scored: AnswerStatistics
) -> list[Record]:
    """One record per item of one cell."""
    predictions, correct, losses = scored.predictions, scored.correct, scored.losses
    return [
        {
            "checkpoint": checkpoint,
            "task": task,
            "split": split,
            "id": item.item.id,
            "subject": item.item.subject,
            "answer": item.item.letters[item.item.answer],
            "predicted": item.item.letters[int(predictions[row])],
            "correct": bool(correct[row]),
            "loss": float(losses[row]),
            "letter_logits": scored.letter_logits[row, : len(item.letter_ids)].tolist(),
            "rest": float(scored.rest[row]),
        }
        for row, item in enumerate(items)
    ]


def add_rotations(
    records: Sequence[Record],
    task: str,
    split: str,
    rotated: Sequence[Sequence[EncodedItem]],
    scored: Sequence[AnswerStatistics],
) -> None:
    """Write `rotated_letter_logits` into the records of `task` and `split`, one list of logits per rotation."""
    found: dict[str, list[list[float]]] = {}
    for items, statistics in zip(rotated, scored, strict=True):
        for row, item in enumerate(items):
            logits = statistics.letter_logits[row, : len(item.letter_ids)].tolist()
            found.setdefault(item.item.id, []).append(logits)
    for record in records:
        if record["task"] == task and record["split"] == split:
            record["rotated_letter_logits"] = found[record["id"]]


def text_records(checkpoint: str, texts: Sequence[Passage], losses: Sequence[float]) -> list[Record]:
    """One record per passage: its loss in nats per token."""
    return [
        {
            "checkpoint": checkpoint,
            "split": "text",
            "id": text.id,
            "tokens": len(text.input_ids) - 1,
            "loss": loss,
        }
        for text, loss in zip(texts, losses, strict=True)
    ]


def recovery_items(task: EncodedTask, count: int, seed: int) -> list[EncodedItem]:
    """At most `count` and at most half of the trained items, drawn with stream `recovery` of `seed`."""
    rows = generator(seed, "recovery", task.name).permutation(len(task.train))[: min(count, len(task.train) // 2)]
    return [task.train[row] for row in sorted(rows)]
