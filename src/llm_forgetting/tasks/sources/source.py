"""Source of items: its interface, and its settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.records import RecordLayout
from llm_forgetting.tasks.skills import EASIEST, SkillSettings
from llm_forgetting.tasks.task import AnyItem, Pool

CITATION = "Hendrycks et al., ICLR 2021, MIT licence"
Notify = Callable[[str], None]


class Source(Protocol):
    """Source of items: its description, its subjects, and the rows of some of them."""

    @property
    def description(self) -> str:
        """One line for the report: what it is, licence and citation."""

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows (few-shot rows not counted)."""

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The unambiguous names and the subjects of tasks, which must be disjoint; UserError for a task there is not."""

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""


@dataclass(frozen=True)
class LoadedSource:
    """A source whose rows are all in memory: usable, few-shot and held-out rows, all by subject and in file order."""

    description: str
    rows: Mapping[str, tuple[AnyItem, ...]]
    shots: Mapping[str, tuple[AnyItem, ...]] = field(default_factory=dict)
    held_out: Mapping[str, tuple[AnyItem, ...]] = field(default_factory=dict)

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows."""
        return {subject: len(rows) for subject, rows in sorted(self.rows.items())}

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""
        rows = tuple(item for subject in subjects for item in self.rows[subject])
        held_out = tuple(item for subject in subjects for item in self.held_out.get(subject, ()))
        return Pool(name, subjects, rows, {subject: self.shots.get(subject, ()) for subject in subjects}, held_out)


@dataclass(frozen=True)
class SourceSettings:
    """Settings of a source: a path, a hub configuration, the layout of records, who hears of downloads, what skills are."""

    path: str | None
    hub_config: str | None
    layout: RecordLayout
    notify: Notify | None
    skills: SkillSettings = EASIEST


@dataclass(frozen=True)
class SourceKind:
    """Kind of source, `KIND` of a file in this folder.

    Attributes:
        open: Makes the source; UserError for data that cannot be read.
        path: Whether `data.path` has no meaning, may be given, or must be.
        path_names: What the path names, for the message where it is missing.
        columns: Whether records have named columns, so that a definitions file may give columns, choices and answers.
        hub: Whether `data.hub_config`, `data.columns` and splits of a hub set have a meaning.
    """

    open: Callable[[SourceSettings], Source]
    path: Literal["none", "optional", "required"] = "none"
    path_names: str = "the data"
    columns: bool = False
    hub: bool = False


AnyKind = TypeVar("AnyKind", bound=AnyItem)


def by_subject(items: Iterable[AnyKind]) -> dict[str, tuple[AnyKind, ...]]:
    """Items by subject, in their order."""
    by_subject: dict[str, list[AnyKind]] = {}
    for item in items:
        by_subject.setdefault(item.subject, []).append(item)
    return {subject: tuple(rows) for subject, rows in by_subject.items()}
