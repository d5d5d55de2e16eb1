"""Generated skills (see `tasks.skills`): prompts with completions, as many items as are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.skills import SKILLS, SkillSettings, skill_item
from llm_forgetting.tasks.sources.source import SourceKind, SourceSettings
from llm_forgetting.tasks.task import Pool

ROWS = 2_000
"""Items of a skill, some of them alike where there are few different ones."""
PARAPHRASED = ("facts",)
"""Skills whose held-out items always are others than the trained ones."""


@dataclass(frozen=True)
class SkillSource:
    """Skills at one difficulty; every skill is a subject."""

    settings: SkillSettings

    @property
    def description(self) -> str:
        """One line for the report."""
        shift = ", held-out items of another distribution" if self.settings.shift else ""
        return f"generated skills of difficulty {self.settings.difficulty}{shift}"

    def subjects(self) -> dict[str, int]:
        """Rows per skill."""
        return dict.fromkeys(SKILLS, ROWS)

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """The items of some skills; UserError for unknown ones."""
        unknown = sorted(set(subjects) - set(SKILLS))
        if unknown:
            raise UserError(f"skills are {', '.join(SKILLS)}; was {', '.join(unknown)}")
        held_out = self._items([s for s in subjects if self.settings.shift or s in PARAPHRASED], shifted=True)
        return Pool(name, subjects, self._items(subjects, shifted=False), {}, held_out)

    def _items(self, skills: Sequence[str], *, shifted: bool) -> tuple[Completion, ...]:
        difficulty = self.settings.difficulty
        return tuple(skill_item(skill, row, difficulty, shifted=shifted) for skill in skills for row in range(ROWS))


def _open(settings: SourceSettings) -> SkillSource:
    return SkillSource(settings.skills)


KIND = SourceKind(_open)
