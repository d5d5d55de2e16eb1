"""Items, tasks, and the disjoint splits that a run is frozen on."""

import dataclasses
import hashlib
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llm_forgetting.errors import UserError
from llm_forgetting.files import is_text
from llm_forgetting.seeding import generator
from llm_forgetting.tasks.completion import LONGEST, Completion
from llm_forgetting.tasks.prompt_format import MMLU_FORMAT, PromptFormat
from llm_forgetting.tasks.scoring import Scoring

LETTERS = string.ascii_uppercase


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


@dataclass(frozen=True)
class Item:
    """One multiple-choice question with k options.

    `id` is `subject/split/row` of the source's own files (row counted from 0), so that anyone who has them finds it. `format`
    is how it is put to a model: no part of what the item is, nor of its hash.
    """

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int
    format: PromptFormat = MMLU_FORMAT

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise UserError(f"item {self.id}: needs 2 to {len(LETTERS)} options, has {len(self.choices)}")
        if not 0 <= self.answer < len(self.choices):
            raise UserError(f"item {self.id}: answer must be an index below {len(self.choices)}, is {self.answer}")
        text = "".join((self.question, *self.choices))
        if len(text) > LONGEST or not is_text(text):
            raise UserError(
                f"item {self.id}: question and options must be text in UTF-8 without NUL, at most {LONGEST:,} characters; "
                f"are {text[:40]!r}..., {len(text):,}"
            )

    @property
    def letters(self) -> str:
        """The option letters, "ABCD" for four options."""
        return LETTERS[: len(self.choices)]

    @property
    def content_key(self) -> tuple[str, tuple[str, ...]]:
        """What makes two rows duplicates: question and set of options, white space and case folded."""
        return _folded(self.question), tuple(sorted(_folded(choice) for choice in self.choices))

    @property
    def sha256(self) -> str:
        """Hash of the folded question, the options in order, and the answer; the same from every source."""
        parts = (_folded(self.question), *(_folded(choice) for choice in self.choices), str(self.answer))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


AnyItem = Item | Completion
"""An item of a task: a question with lettered options, or a prompt with its completion."""


def turn(item: Item, places: int) -> Item:
    """The item with its k options moved `places` places back: option (i + places) mod k stands at letter i."""
    k = len(item.choices)
    choices = tuple(item.choices[(i + places) % k] for i in range(k))
    return dataclasses.replace(item, choices=choices, answer=(item.answer - places) % k)


@dataclass(frozen=True)
class Task:
    """A subject or a group of subjects, cut into disjoint splits.

    `train` is fine-tuned on, `test` never trained on; `shots` (per subject, in file order) are few-shot examples and
    belong to neither. `duplicates_removed` counts rows left out because an earlier row said the same.
    """

    name: str
    subjects: tuple[str, ...]
    train: tuple[AnyItem, ...]
    test: tuple[AnyItem, ...]
    shots: dict[str, tuple[AnyItem, ...]] = field(default_factory=dict)
    duplicates_removed: int = 0

    def split(self, name: str) -> tuple[AnyItem, ...]:
        """The items of split `train` or `test`."""
        return {"train": self.train, "test": self.test}[name]

    @property
    def questions(self) -> tuple[Item, ...]:
        """The items of both splits that have options; none of a task of completions."""
        return tuple(item for item in (*self.train, *self.test) if isinstance(item, Item))

    @property
    def options(self) -> tuple[int, ...]:
        """Numbers of options that occur, letters or texts; none of a task of other completions."""
        sizes = (len(item.choices if isinstance(item, Item) else item.options) for item in (*self.train, *self.test))
        return tuple(sorted({size for size in sizes if size}))

    @property
    def format(self) -> PromptFormat | None:
        """How its questions are put; None for completions."""
        return self.questions[0].format if self.questions else None

    @property
    def scoring(self) -> Scoring | None:
        """How its completions are judged; None for questions."""
        return next((item.scoring for item in self.train if isinstance(item, Completion)), None)


@dataclass(frozen=True)
class Pool:
    """All usable rows of one task before they are split: `rows` to be cut, `shots` per subject kept apart.

    `held_out`: the source's own held-out rows, which then are all that test items are taken from, and train items never.
    """

    name: str
    subjects: tuple[str, ...]
    rows: tuple[AnyItem, ...]
    shots: dict[str, tuple[AnyItem, ...]]
    held_out: tuple[AnyItem, ...] = ()


def without_duplicates(items: Iterable[AnyItem], seen: set[tuple[str, tuple[str, ...]]]) -> list[AnyItem]:
    """The items whose content is not in `seen`, which grows by them; the first of several wins."""
    kept = []
    for item in items:
        if item.content_key not in seen:
            seen.add(item.content_key)
            kept.append(item)
    return kept


def interleaved(items: Sequence[AnyItem], seed: int) -> list[AnyItem]:
    """The items in a seeded order of which every prefix holds each subject in proportion to its size."""
    by_subject: dict[str, list[AnyItem]] = {}
    for item in items:
        by_subject.setdefault(item.subject, []).append(item)
    ranked = []
    for subject, rows in by_subject.items():
        order = generator(seed, "split", subject).permutation(len(rows))
        ranked += [((position + 0.5) / len(rows), subject, rows[row]) for position, row in enumerate(order)]
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]


def _complete_shots(shots: dict[str, tuple[AnyItem, ...]], ordered: list[AnyItem], few_shot: int) -> list[AnyItem]:
    """What is left of the items where the first of every subject fill its shots up; UserError where they are too few."""
    for subject, given in shots.items():
        missing = few_shot - len(given)
        extra = [item for item in ordered if item.subject == subject][:missing] if missing > 0 else []
        if missing > len(extra):
            raise UserError(
                f"data.few_shot={few_shot} needs {few_shot} examples of {subject}, "
                f"the source has {few_shot - missing + len(extra)}; lower data.few_shot"
            )
        shots[subject] = given + tuple(extra)
        ordered = [item for item in ordered if item not in extra]
    return ordered


def untrained_tasks(
    pools: Sequence[Pool], trained: Sequence[Task], *, items: int | None, few_shot: int, seed: int
) -> list[Task]:
    """Tasks that are only scored: no `train`, and as `test` at most `items` (None: all) of a pool's held-out rows, of all its
    rows where it has none.

    None of their items says what an item or an example of `trained` tasks, or of an earlier one of them, says. UserError where
    a pool has none left.
    """
    seen = {
        item.content_key
        for task in trained
        for item in (*task.train, *task.test, *(shot for shots in task.shots.values() for shot in shots))
    }
    tasks = []
    for pool in pools:
        shots = {subject: pool.shots.get(subject, ())[:few_shot] for subject in pool.subjects}
        seen |= {item.content_key for examples in shots.values() for item in examples}
        rows = pool.held_out or pool.rows
        kept = without_duplicates(rows, seen)
        test = _complete_shots(shots, interleaved(kept, seed), few_shot)[:items]
        if not test:
            raise UserError(
                f"probe {pool.name} must have items that no trained task and no earlier probe has, all of its {len(rows)} are "
                f"in those; leave it out of data.probes"
            )
        shown = shots if few_shot else {}
        tasks.append(Task(pool.name, pool.subjects, (), tuple(test), shown, len(rows) - len(kept)))
    return tasks


def split_pools(
    pools: Sequence[Pool],
    *,
    train_items: int | None,
    test_items: int | None,
    train_fraction: float,
    items_per_task: int | None,
    few_shot: int,
    seed: int,
) -> list[Task]:
    """Cut every pool into shots, train and test, with no content twice in the whole sequence of tasks.

    Shots are taken from the source's own few-shot rows (MMLU's `dev`); where it has none they are the first rows of
    the seeded order, and leave the pool. Then the first `train_items` of the order are `train`, the next `test_items`
    are `test`; None means `train_fraction` of the (capped) pool, and all the rest. Where a pool has held-out rows, `test` are
    the first of those, None for all, and `train` may be all of the pool's others. UserError where a pool is too small.
    """
    tasks = []
    given = [{subject: pool.shots.get(subject, ())[:few_shot] for subject in pool.subjects} for pool in pools]
    # every task's shots first: a later task's example must not be an earlier task's scored item
    seen = {item.content_key for shots in given for examples in shots.values() for item in examples}
    for pool, shots in zip(pools, given, strict=True):
        rows = without_duplicates(pool.rows, seen)
        removed = len(pool.rows) - len(rows)
        ordered = interleaved(rows, seed)
        ordered = _complete_shots(shots, ordered, few_shot)[:items_per_task]
        others = interleaved(without_duplicates(pool.held_out, seen), seed)[:items_per_task]
        removed += len(pool.held_out) - len(others)
        share = 1.0 if others else train_fraction
        n_train = round(share * len(ordered)) if train_items is None else train_items
        left = others or ordered[n_train:]
        n_test = len(left) if test_items is None else test_items
        if n_train < 1 or n_test < 1 or n_train > len(ordered) or n_test > len(left):
            cap = f" and data.items_per_task={items_per_task}" if items_per_task else ""
            own = f" and {len(others)} held-out ones" if others else ""
            raise UserError(
                f"task {pool.name} has {len(ordered)} distinct items after {few_shot} shots{cap}{own}; {n_train} train and "
                f"{n_test} test items were asked for: change data.train_items, data.test_items or data.items_per_task"
            )
        train, test = tuple(ordered[:n_train]), tuple(left[:n_test])
        tasks.append(Task(pool.name, pool.subjects, train, test, shots if few_shot else {}, removed))
    return tasks
