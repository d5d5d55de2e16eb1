"""Items out of records: JSONL lines and rows of hub data sets, whose columns and answers are written in many ways."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.task import LETTERS, Item

COLUMNS = ("question", "choices", "answer", "subject")


def some_names(names: Sequence[str]) -> str:
    """The first eight names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def item_of_record(
    record: Mapping[str, Any], columns: Mapping[str, str], where: str, default_subject: str, place: str
) -> Item:
    """The item of a JSONL line or hub row; `place` is the part of its id after the subject, `where` names it in errors."""
    column = {key: columns.get(key, key) for key in COLUMNS}
    question = _cell(record, "question", column["question"], where)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: the question must be a text, is {question!r}")
    choices, labels = _choices(record, column["choices"], where)
    answer = _answer_index(_cell(record, "answer", column["answer"], where), choices, labels, where)
    if "subject" in columns and column["subject"]:
        _cell(record, "subject", column["subject"], where)
    subject = mmlu.spelled(str(record.get(column["subject"]) or "")) or mmlu.spelled(default_subject)
    return Item(f"{subject}/{place}", subject, question, choices, answer)


def _cell(record: Mapping[str, Any], key: str, column: str, where: str) -> object:
    if column not in record:
        names = some_names([str(name) for name in record])
        raise UserError(f"{where}: has no column {column!r} but {names}; set data.columns.{key}")
    return record[column]


def _choices(record: Mapping[str, Any], column: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options' texts and labels; labels are empty where the data give none."""
    found: Any
    labels: Any = []
    if "," in column:
        found = [_cell(record, "choices", name.strip(), where) for name in column.split(",")]
    else:
        found = _cell(record, "choices", column, where)
    if isinstance(found, list) and found and all(isinstance(option, dict) for option in found):
        found = {key: [option.get(key) for option in found] for key in ("text", "label")}
    if isinstance(found, dict):
        found, labels = found.get("text"), found.get("label") or []
    if not _are_texts(found) or not _are_texts(labels) or (labels and len(labels) != len(found)):
        raise UserError(f"{where}: the options must be a list of texts, or texts with labels, are {str(found)[:80]}")
    if not 2 <= len(found) <= len(LETTERS):
        raise UserError(f"{where}: needs 2 to {len(LETTERS)} options, has {len(found)}")
    return tuple(found), tuple(labels)


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _answer_index(answer: object, choices: Sequence[str], labels: Sequence[str], where: str) -> int:
    """The index of the right option. A label decides; else a letter or an option's text, if they do not disagree."""
    found: set[int] = set()
    if isinstance(answer, int) and not isinstance(answer, bool):
        found = {answer} & set(range(len(choices)))
    elif isinstance(answer, str):
        given = answer.strip()
        found = {index for index, label in enumerate(labels) if label.strip() == given}
        if not found:
            found = {index for index, choice in enumerate(choices) if choice.strip() == given}
            found |= {index for index in range(len(choices)) if LETTERS[index] == given.upper()}
        if not found and given.isdecimal():
            found = {int(given)} & set(range(len(choices)))
    if len(found) != 1:
        fault = "could be several of its options" if found else f"is none of its {len(choices)} options"
        raise UserError(f"{where}: the answer {answer!r} {fault}; give the option's index, counted from 0")
    return found.pop()
