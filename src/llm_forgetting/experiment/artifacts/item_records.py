"""Lines of items.jsonl: the scores of every item and passage at a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.records import ItemRecord, PassageRecord
from llm_forgetting.forgetting.scores import Split
from llm_forgetting.models.language.answer_statistics import AnswerStatistics, Judged
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.generation import Written
from llm_forgetting.models.language.scoring import Chosen
from llm_forgetting.models.language.text_loss import Passage
from llm_forgetting.seeding import generator
from llm_forgetting.tasks.completion import Completion


def item_records(
    checkpoint: str,
    task: str,
    split: Split | Literal["probe"],
    items: Sequence[EncodedItem],
    scored: AnswerStatistics,
    *,
    decode: Callable[[Sequence[int]], str],
) -> list[ItemRecord]:
    """One record per item of one cell; `decode` makes text of a completion's tokens."""
    predictions, correct, losses = scored.predictions, scored.correct, scored.losses
    records = []
    ends = np.cumsum([len(item.predictions) for item in items])
    for number, (item, end) in enumerate(zip(items, ends, strict=True)):
        asked, loss, row = item.item, float(losses[number]), int(end) - 1
        common = (checkpoint, task, split, asked.id, asked.subject)
        if isinstance(asked, Completion):
            assert scored.likeliest is not None
            said = decode(scored.likeliest[end - len(item.targets) : end].tolist())
            right = decode(item.targets)
            weight = None if item.weight == 1 else item.weight
            record = ItemRecord(
                *common, right, said, bool(correct[number]), loss, tokens=len(item.targets), weight=weight
            )
            judged = None if scored.judged is None else scored.judged[number]
            records.append(_judged(record, asked, judged, teacher_forced=bool(scored.teacher_forced[number])))
            continue
        predicted, letters = asked.letters[int(predictions[row])], scored.letter_logits[row, : len(item.letter_ids)]
        rest = float(scored.rest[row])
        answer = asked.letters[asked.answer]
        records.append(ItemRecord(*common, answer, predicted, bool(correct[number]), loss, letters, rest))
    return records


def _judged(record: ItemRecord, item: Completion, judged: Judged | None, *, teacher_forced: bool) -> ItemRecord:
    """The record with what the item is judged by, where that is not the likeliest tokens."""
    if isinstance(judged, Written):
        return replace(
            record,
            answer=judged.expected,
            predicted=judged.answer or "",
            generated=judged.text,
            teacher_forced=teacher_forced,
            rouge_l=judged.rouge_l,
        )
    if isinstance(judged, Chosen) and isinstance(item, Completion):
        chosen = judged.by_sum if item.scoring.by == "likelihood" else judged.by_character
        return replace(
            record,
            answer=item.options[item.right],
            predicted=item.options[chosen],
            log_likelihoods=np.array(judged.log_likelihoods),
            acc=judged.acc,
            acc_norm=judged.acc_norm,
        )
    return record


def with_rotations(
    records: Sequence[ItemRecord],
    task: str,
    split: Split,
    rotated: Sequence[Sequence[EncodedItem]],
    scored: Sequence[AnswerStatistics],
) -> list[ItemRecord]:
    """`records`, those of `task` and `split` with `rotated_letter_logits`, one row of logits per rotation."""
    rotations: dict[str, list[Floats]] = {}
    for items, statistics in zip(rotated, scored, strict=True):
        for row, item in enumerate(items):
            rotations.setdefault(item.item.id, []).append(statistics.letter_logits[row, : len(item.letter_ids)])
    return [
        replace(record, rotated_letter_logits=np.stack(rotations[record.id]))
        if (record.task, record.split) == (task, split)
        else record
        for record in records
    ]


def passage_records(checkpoint: str, passages: Sequence[Passage], losses: Sequence[float]) -> list[PassageRecord]:
    """One record per passage: its loss in nats per token."""
    return [
        PassageRecord(checkpoint, "text", passage.id, len(passage.input_ids) - 1, loss)
        for passage, loss in zip(passages, losses, strict=True)
    ]


def recovery_items(task: EncodedTask, count: int, seed: int) -> list[EncodedItem]:
    """At most `count` and at most half of the trained items, drawn with stream `recovery` of `seed`."""
    rows = generator(seed, "recovery", task.name).permutation(len(task.train))[: min(count, len(task.train) // 2)]
    return [task.train[row] for row in sorted(rows)]
