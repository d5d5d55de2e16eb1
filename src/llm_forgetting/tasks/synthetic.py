"""Toy tasks that are built to interfere: the same words call for another letter in every task.

An item shows one key word among fillers. In task t the answer to key word number w is option (w + t) mod 4, so what one
task teaches about a word every other task of the sequence (up to four) contradicts. Items of train and test share key
words but not fillers, so the rule, not the item, is learnt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.seeding import generator
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.prompts import render
from llm_forgetting.tasks.task import Item, Pool

KEY_WORDS = ("amber", "basalt", "cobalt", "dune", "ember", "fjord", "garnet", "heath")
FILLERS = ("north", "south", "river", "stone", "cloud", "field", "glass", "night", "ocean", "paper", "quiet", "round",
           "silver", "timber", "valley", "winter")  # fmt: skip
OPTIONS = ("first", "second", "third", "fourth")
SUBJECTS = tuple(f"synthetic_{t}" for t in (1, 2, 3, 4))
ROWS_PER_TASK = 400


def _item(subject: str, row: int) -> Item:
    rng = generator(0, "synthetic", row)
    word = int(rng.integers(len(KEY_WORDS)))
    fillers = " ".join(FILLERS[i] for i in rng.choice(len(FILLERS), size=3, replace=False))
    shift = SUBJECTS.index(subject)
    return Item(
        f"{subject}/test/{row}", subject, f"{KEY_WORDS[word]} {fillers}", OPTIONS, (word + shift) % len(OPTIONS)
    )


@dataclass(frozen=True)
class SyntheticSource:
    """The generator as a source: four subjects, `synthetic_1` to `synthetic_4`."""

    description: str = "synthetic interfering tasks (generated; no language is measured)"

    def subjects(self) -> dict[str, int]:
        """Rows per subject."""
        return dict.fromkeys(SUBJECTS, ROWS_PER_TASK)

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """The rows of one task, disjoint from other tasks', so that no prompt occurs twice; UserError for unknown subjects."""
        unknown = sorted(set(subjects) - set(SUBJECTS))
        if unknown:
            raise UserError(f"synthetic tasks are {', '.join(SUBJECTS)}; was {', '.join(unknown)}")
        rows = tuple(
            _item(subject, row)
            for subject in subjects
            for row in range(SUBJECTS.index(subject) * ROWS_PER_TASK, (SUBJECTS.index(subject) + 1) * ROWS_PER_TASK)
        )
        return Pool(name, subjects, rows, {})


def fillers() -> list[str]:
    """Twelve passages of filler words, which no answer depends on."""
    drawn = (generator(0, "synthetic text", n).choice(len(FILLERS), size=24) for n in range(12))
    return [" ".join(FILLERS[i] for i in words) for words in drawn]


def vocabulary() -> list[str]:
    """Every piece that a synthetic prompt can be cut into by GPT-2's pattern (words with their leading space)."""
    items = [Item(f"{s}/0/0", s, " ".join((*KEY_WORDS, *FILLERS)), OPTIONS, 0) for s in SUBJECTS]
    texts = [render(item, (item,)) for item in items] + [f"\n{word}" for word in KEY_WORDS] + [" A B C D"]
    pieces = {piece for text in texts for piece in pieces_of(text)}
    return sorted(pieces)


def pieces_of(text: str) -> list[str]:
    """`text` cut into words, numbers and marks, each with the one space before it; line breaks stand alone."""
    return re.findall(PIECE_PATTERN, text)


PIECE_PATTERN = r"\n| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+| "
