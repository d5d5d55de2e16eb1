"""Names of tasks, and the disjoint splits."""

from collections import Counter

import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.task import Item, Pool, Task, split_pools

ALL = tuple(mmlu.ROWS)


def an_item(number: int, subject: str = "history", text: str | None = None, place: str = "test") -> Item:
    question = text or f"{subject} question {number}"
    return Item(f"{subject}/{place}/{number}", subject, question, ("yes", "no"), number % 2)


def a_pool(name: str, *items: Item, shots: dict[str, tuple[Item, ...]] | None = None) -> Pool:
    return Pool(name, tuple(dict.fromkeys(item.subject for item in items)), items, shots or {})


def split(*pools: Pool, **changes: object) -> list[Task]:
    settings = {"train_items": None, "test_items": None, "train_fraction": 0.5, "items_per_task": None, "few_shot": 0}
    return split_pools(pools, **({**settings, "seed": 0} | changes))  # type: ignore[arg-type]


def test_mmlu_has_its_published_shape() -> None:
    assert len(mmlu.ROWS) == 57
    assert sum(mmlu.ROWS.values()) == 1531 + 14042
    assert len(set(mmlu.SUBCATEGORY.values())) == 17
    assert sorted(sub for subs in mmlu.CATEGORIES.values() for sub in subs) == sorted(set(mmlu.SUBCATEGORY.values()))
    sizes = {name: len(subjects) for name, subjects in mmlu.groups(ALL).items()}
    assert (sizes["stem"], sizes["humanities"], sizes["social_sciences"], sizes["category:other"]) == (18, 13, 12, 14)


@pytest.mark.parametrize(
    ("asked", "name", "n_subjects"),
    [
        ("philosophy", "philosophy", 1),
        ("group:philosophy", "group:philosophy", 6),
        ("Group: Philosophy", "group:philosophy", 6),
        ("computer_science", "computer_science", 4),
        ("Computer-Science", "computer_science", 4),
        ("group:computer science", "computer_science", 4),
        ("High School US history", "high_school_us_history", 1),
        ("STEM", "stem", 18),
        ("category:stem", "stem", 18),
        ("other", "other", 3),
        ("group:other", "other", 3),
        ("category:other", "category:other", 14),
    ],
)
def test_a_subject_wins_over_a_group_and_a_subcategory_over_a_category(asked: str, name: str, n_subjects: int) -> None:
    resolved, subjects = mmlu.resolve_task(asked, ALL)
    assert (resolved, len(subjects)) == (name, n_subjects)
    assert mmlu.resolve_task(resolved, ALL) == (resolved, subjects)


def test_names_come_from_the_source() -> None:
    available = ("botany", "college_physics", "history", "prehistory")
    assert mmlu.resolve_task("Botany", available) == ("botany", ("botany",))
    assert mmlu.resolve_task("physics", available) == ("physics", ("college_physics",))
    assert mmlu.resolve_task("history", available) == ("history", ("history",))
    assert mmlu.resolve_task("group:history", available) == ("group:history", ("prehistory",))
    assert set(mmlu.groups(available)) == {"physics", "group:history", "stem", "humanities"}


@pytest.mark.parametrize("name", ["abstract_algbra", "", "category:math", "group:anatomy", "shape:stem", "a:b:c"])
def test_an_unknown_task_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="llm-forgetting tasks") as caught:
        mmlu.resolve_task(name, ALL)
    assert "\n" not in str(caught.value)
    if name == "abstract_algbra":
        assert "nearest: abstract_algebra" in str(caught.value)


def test_tasks_must_be_disjoint() -> None:
    assert [name for name, _ in mmlu.resolve_tasks(["anatomy", "math"], ALL)] == ["anatomy", "math"]
    with pytest.raises(UserError, match="anatomy is named twice"):
        mmlu.resolve_tasks(["anatomy", "Anatomy"], ALL)
    with pytest.raises(UserError, match="philosophy and humanities share philosophy"):
        mmlu.resolve_tasks(["philosophy", "humanities"], ALL)


def test_an_item_needs_options_and_an_answer_among_them() -> None:
    with pytest.raises(UserError, match="2 to 26 options, has 1"):
        Item("x/test/0", "x", "q", ("only",), 0)
    with pytest.raises(UserError, match="index below 2, is 2"):
        Item("x/test/0", "x", "q", ("a", "b"), 2)


def test_content_is_compared_with_white_space_and_case_folded() -> None:
    one = Item("x/test/0", "x", "What  is\nit?", ("Yes ", "no"), 0)
    assert one.content_key == Item("y/val/3", "y", "what is it?", ("NO", "yes"), 1).content_key
    assert one.sha256 == Item("y/val/3", "y", " what is it? ", ("yes", "no"), 0).sha256
    assert one.sha256 != Item("y/val/3", "y", "what is it?", ("yes", "no"), 1).sha256


def test_splits_are_disjoint_and_frozen_by_the_seed() -> None:
    pool = a_pool("history", *(an_item(number) for number in range(40)))
    (task,) = split(pool, train_items=12, test_items=20)
    assert (len(task.train), len(task.test)) == (12, 20)
    assert len({*task.train, *task.test}) == 32
    assert split(pool, train_items=12, test_items=20) == [task]
    assert split(pool, train_items=12, test_items=20, seed=1) != [task]
    assert task.split("train") == task.train
    assert task.split("test") == task.test


def test_every_prefix_holds_the_subjects_in_proportion() -> None:
    items = [an_item(number, subject) for subject, n in (("law", 60), ("culture", 20)) for number in range(n)]
    (task,) = split(a_pool("both", *items), items_per_task=40)
    assert Counter(item.subject for item in task.train) == {"law": 15, "culture": 5}
    assert Counter(item.subject for item in task.test) == {"law": 15, "culture": 5}


def test_duplicates_within_and_across_tasks_are_removed() -> None:
    first = a_pool("law", *(an_item(n, "law", text=f"law {n % 8}") for n in range(10)))
    texts = [f"{'LAW' if n < 3 else 'culture'}  {n}" for n in range(10)]
    second = a_pool("culture", *(an_item(n, "culture", text=text) for n, text in enumerate(texts)))
    tasks = split(first, second)
    assert [task.duplicates_removed for task in tasks] == [2, 3]
    contents = [item.content_key for task in tasks for item in (*task.train, *task.test)]
    assert len(contents) == len(set(contents)) == 15


def test_no_shot_is_an_item_of_any_task() -> None:
    shot = an_item(0, "culture", text="law 4", place="dev")
    law = a_pool("law", *(an_item(n, "law", text=f"law {n}") for n in range(10)))
    culture = a_pool("culture", *(an_item(n, "culture") for n in range(10)), shots={"culture": (shot,)})
    tasks = split(law, culture, few_shot=1)
    assert tasks[1].shots == {"culture": (shot,)}
    scored = {item.content_key for task in tasks for item in (*task.train, *task.test)}
    shots = {item.content_key for task in tasks for examples in task.shots.values() for item in examples}
    assert tasks[0].duplicates_removed == 1
    assert len(tasks[0].shots["law"]) == 1
    assert not scored & shots


def test_too_few_items_or_shots_are_refused() -> None:
    pool = a_pool("history", *(an_item(number) for number in range(6)))
    with pytest.raises(UserError, match="6 distinct items after 0 shots; 5 train and 2 test"):
        split(pool, train_items=5, test_items=2)
    with pytest.raises(UserError, match=r"items_per_task=1; 0 train and 1 test|items_per_task=1; 1 train and 0 test"):
        split(pool, items_per_task=1)
    with pytest.raises(UserError, match=r"data\.few_shot=7 needs 7 examples of history, the source has 6"):
        split(pool, few_shot=7)
