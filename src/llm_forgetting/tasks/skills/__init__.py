"""Generated skills: prompts with short completions that a small model learns from 160 items, and that hold on unseen ones.

A skill is a function of a random generator, a difficulty (1, 2, ...: longer words, more numbers) and whether the item is one of
another distribution than those that are trained on; it gives question and answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from numpy.random import Generator

from llm_forgetting.seeding import generator
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.skills import knowledge, numbers, words

Skill = Callable[[Generator, int, bool], tuple[str, str]]
"""(random numbers, difficulty, shifted) to (question, answer)."""

SKILLS: Mapping[str, Skill] = {
    "odd_one_out": words.odd_one_out,
    "alphabetical": words.alphabetical,
    "reverse": words.reverse,
    "last_letters": words.last_letters,
    "capitals": words.capitals,
    "plural": words.plural,
    "largest": numbers.largest,
    "sorting": numbers.sorting,
    "arithmetic": numbers.arithmetic,
    "sequence": numbers.sequence,
    "counting": numbers.counting,
    "roman": numbers.roman,
    "units": numbers.units,
    "weekday": numbers.weekday,
    "dates": numbers.dates,
    "facts": knowledge.facts,
}


@dataclass(frozen=True)
class SkillSettings:
    """How skills are drawn: `difficulty` from 1 on; `shift`: held-out items are of another distribution."""

    difficulty: int = 1
    shift: bool = False


EASIEST = SkillSettings()


def skill_item(name: str, row: int, difficulty: int, *, shifted: bool) -> Completion:
    """Item number `row` of a skill; shifted ones are called `name/shifted/row`."""
    split = "shifted" if shifted else "test"
    question, answer = SKILLS[name](generator(0, "skill", name, split, difficulty, row), difficulty, shifted)
    return Completion(f"{name}/{split}/{row}", name, f"{question}\nAnswer:", f" {answer}")
