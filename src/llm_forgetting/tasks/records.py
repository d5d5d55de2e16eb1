"""Items out of records: lines of JSONL, CSV and TSV files and rows of hub data sets, written in many ways."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.prompt_format import MMLU_FORMAT, PromptFormat, filled, names_in
from llm_forgetting.tasks.scoring import TEACHER_FORCED, Scoring
from llm_forgetting.tasks.task import LETTERS, Item

COLUMNS = ("question", "choices", "answer", "subject")
ANSWER_KINDS = ("index", "letter", "text")
# What a true or false answer is called among two options.
_TRUTH = {True: ("yes", "true"), False: ("no", "false")}


@dataclass(frozen=True)
class RecordLayout:
    """How the records of a set are read.

    `columns`: which column holds question, choices, answer and subject, where it is not called that. `choices`: the options
    of every record, where no column holds them. `answers`: how the answer is written: one of `ANSWER_KINDS`, or what it says
    for each option in order; None for whatever fits. `options`: how many every record must have. `subject`: that of records
    which name none, if one was given. `typed`: whether a cell can be a number or true (JSON), or only text (CSV). `setting`:
    where all of this is set, for messages. `format`: one of `formats.FORMATS`; `template`: how the prompt of a completion is
    put, None for as it is; `scoring`: how it is judged.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    answers: str | tuple[str, ...] | None = None
    options: int | None = None
    subject: str | None = None
    prompt: PromptFormat = MMLU_FORMAT
    typed: bool = True
    setting: str = "data"
    format: str = "multiple_choice"
    template: str | None = None
    scoring: Scoring = TEACHER_FORCED

    def column(self, key: str) -> str:
        """The column that holds `key`."""
        return self.columns.get(key, key)


def some_names(names: Sequence[str]) -> str:
    """The first eight names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def question_of_record(
    record: Mapping[str, object], layout: RecordLayout, where: str, item_id: str, subject: str
) -> Item:
    """The multiple-choice question of a record; `where` names the record in a UserError."""
    question = _question(record, layout, where, subject)
    choices, labels = (layout.choices, ()) if layout.choices else _choices(record, layout, where)
    require_options(len(choices), layout, where)
    answer = _answer_index(cell_of(record, "answer", layout, where), choices, labels, layout, where)
    return Item(item_id, subject, question, choices, answer, layout.prompt)


def subject_of(record: Mapping[str, object], layout: RecordLayout, where: str, default: str) -> str:
    """The subject that a record names, else `default`."""
    if "subject" in layout.columns and layout.column("subject"):
        cell_of(record, "subject", layout, where)
    return mmlu.spelled(str(record.get(layout.column("subject")) or "")) or mmlu.spelled(default)


def require_options(count: int, layout: RecordLayout, where: str) -> None:
    """UserError where a record has another number of options than all must have."""
    if layout.options is not None and count != layout.options:
        raise UserError(
            f"{where}: must have {layout.options} options ({layout.setting}.options), has {count}; correct it, or leave "
            f"{layout.setting}.options out for a set of mixed sizes"
        )


def cell_of(
    record: Mapping[str, object], key: str, layout: RecordLayout, where: str, column: str | None = None
) -> object:
    """The cell that holds `key`, by default in the column that the layout says; UserError where there is none."""
    column = layout.column(key) if column is None else column
    if column not in record:
        names = some_names([str(name) for name in record])
        raise UserError(f"{where}: has no column {column!r} but {names}; set {layout.setting}.columns.{key}")
    return record[column]


def _question(record: Mapping[str, object], layout: RecordLayout, where: str, subject: str) -> str:
    """The question as it is put: the template's, with the record's own columns."""
    values = {"subject": subject.replace("_", " ")}
    for name in names_in(layout.prompt.question):
        if name == "question":
            values[name] = text_of(cell_of(record, "question", layout, where), "question", where)
        elif name not in values:
            if name not in record:
                names = some_names([str(column) for column in record])
                raise UserError(
                    f"{where}: has no column {name!r}, which {layout.setting}.prompt.question names, but {names}"
                )
            cell = record[name]
            whole = isinstance(cell, int) and not isinstance(cell, bool)
            values[name] = str(cell) if whole else text_of(cell, name, where, may_be_empty=True)
    return text_of(filled(layout.prompt.question, values), "question", where)


def text_of(cell: object, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """A cell that holds text; UserError where it does not."""
    if not isinstance(cell, str) or not (may_be_empty or cell.strip()):
        raise UserError(f"{where}: the {name} must be a text, is {repr(cell)[:60]}")
    return cell


def _choices(record: Mapping[str, object], layout: RecordLayout, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options' texts and labels; labels are empty where the data give none."""
    options: Any
    labels: Any = []
    column = layout.column("choices")
    if "," in column:
        options = [cell_of(record, "choices", layout, where, name.strip()) for name in column.split(",")]
        while options and options[-1] in (None, ""):
            options.pop()  # a record with fewer options than there are columns
    else:
        options = cell_of(record, "choices", layout, where)
    if isinstance(options, list) and options and all(isinstance(option, dict) for option in options):
        options = {key: [option.get(key) for option in options] for key in ("text", "label")}
    if isinstance(options, dict):
        options, labels = options.get("text"), options.get("label") or []
    if not _are_texts(options) or not _are_texts(labels) or (labels and len(labels) != len(options)):
        raise UserError(f"{where}: the options must be a list of texts, or texts with labels, are {str(options)[:80]}")
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{where}: needs 2 to {len(LETTERS)} options, has {len(options)}")
    return tuple(options), tuple(labels)


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _answer_index(
    answer: object, choices: Sequence[str], labels: Sequence[str], layout: RecordLayout, where: str
) -> int:
    """The index of the right option, if exactly one way of reading the answer leads to one."""
    if isinstance(layout.answers, tuple):
        fitting = {index for index, word in enumerate(layout.answers) if _normalised(word) == _normalised(answer)}
    elif layout.answers is not None:
        fitting = _read_as(layout.answers, answer, choices)
    else:
        fitting = _as_it_fits(answer, choices, labels, typed=layout.typed)
    fitting &= set(range(len(choices)))
    if len(fitting) != 1:
        fault = "could be several of its options" if fitting else f"is none of its {len(choices)} options"
        remedy = "give the option's index, counted from 0"
        if layout.setting != "data":
            remedy = (
                f"say in {layout.setting}.answers how it is written: index, letter, text, or a list of what it can be"
            )
        raise UserError(f"{where}: the answer {repr(answer)[:60]} {fault}; {remedy}")
    return fitting.pop()


def _normalised(answer: object) -> str:
    """An answer as text, so that 1 is "1" and true is "True"; case folded."""
    return str(answer).strip().casefold()


def _read_as(kind: str, answer: object, choices: Sequence[str]) -> set[int]:
    given = "" if isinstance(answer, bool) else str(answer).strip()
    if kind == "text":
        return {index for index, choice in enumerate(choices) if isinstance(answer, str) and choice.strip() == given}
    if kind == "letter":
        return {index for index in range(len(choices)) if LETTERS[index] == given.upper()}
    return {int(given)} if re.fullmatch("[0-9]{1,4}", given) else set()


def _as_it_fits(answer: object, choices: Sequence[str], labels: Sequence[str], *, typed: bool) -> set[int]:
    """A number is an index. A label decides; else a letter or an option's text, if they do not disagree; else an index.

    Where cells are text only, "1" can be an index as well as an option's text. True is the option "yes" or "true".
    """
    if isinstance(answer, bool):
        return _as_truth(answer, choices)
    if isinstance(answer, int):
        return {answer}
    if not isinstance(answer, str):
        return set()
    given = answer.strip()
    fitting = {index for index, label in enumerate(labels) if label.strip() == given}
    if not fitting:
        fitting = _read_as("text", answer, choices) | _read_as("letter", answer, choices)
        if not (fitting and typed):
            fitting |= _read_as("index", answer, choices) & set(range(len(choices)))
    if not fitting and given.casefold() in ("true", "false"):
        fitting = _as_truth(given.casefold() == "true", choices)
    return fitting


def _as_truth(answer: bool, choices: Sequence[str]) -> set[int]:
    return {index for index, choice in enumerate(choices) if choice.strip().casefold() in _TRUTH[answer]}
