"""Tasks of one's own: a YAML file that says, per task, where its items come from and how they are put to a model."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llm_forgetting.errors import UnreachableError, UserError
from llm_forgetting.files import user_path
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.definition_files import Definition, read_definitions
from llm_forgetting.tasks.prompt_format import filled, names_in
from llm_forgetting.tasks.record_files import SUFFIXES
from llm_forgetting.tasks.records import RecordLayout, require_options, some_names
from llm_forgetting.tasks.scoring import TEACHER_FORCED
from llm_forgetting.tasks.sources import LoadedSource, Source, open_source
from llm_forgetting.tasks.sources.hub import open_hub
from llm_forgetting.tasks.sources.local import is_mmlu_folder, open_files, open_mmlu_folder
from llm_forgetting.tasks.task import AnyItem, Item, Pool

Notify = Callable[[str], None]


@dataclass(frozen=True)
class DefinedSource:
    """The tasks of a definitions file, and for all other names another source, which is opened only for them.

    `asked` are the tasks that a run names; what they need is what `description` and `subjects` tell of.
    """

    file: Path
    definitions: Mapping[str, Definition]
    asked: tuple[str, ...]
    open_others: Callable[[], Source]
    notify: Notify

    @cached_property
    def _others(self) -> Source:
        return self.open_others()

    @cached_property
    def _opened(self) -> dict[str, tuple[str, Pool]]:
        return {}

    def _defined(self, name: str) -> Definition | None:
        return self.definitions.get(mmlu.spelled(name))

    @property
    def description(self) -> str:
        """One line for the report: every set that the run draws on."""
        defined = [self._open(definition)[0] for name in self.asked if (definition := self._defined(name))]
        others = [self._others.description] if any(self._defined(name) is None for name in self.asked) else []
        return "; ".join(dict.fromkeys([*defined, *others])) + f" (tasks defined in {self.file.name})"

    def subjects(self) -> dict[str, int]:
        """The defined tasks that were asked for, each with the number of its usable rows."""
        defined = [definition for name in self.asked if (definition := self._defined(name))]
        return {definition.name: len(self._open(definition)[1].rows) for definition in defined}

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names, with their subjects (none for all of a defined task); UserError for a task twice."""
        plain = [name for name in names if self._defined(name) is None]
        others = iter(self._resolve_others(plain) if plain else ())
        resolved = [(definition.name, ()) if (definition := self._defined(name)) else next(others) for name in names]
        for place, (name, _) in enumerate(resolved):
            if name in [earlier for earlier, _ in resolved[:place]]:
                raise UserError(f"task {name} is named twice; forgetting needs different tasks")
        return resolved

    def _resolve_others(self, plain: Sequence[str]) -> list[mmlu.TaskSubjects]:
        for names in [*([name] for name in plain), plain]:  # one by one first, to know which is unknown
            try:
                resolved = self._others.resolve(names)
            except UnreachableError:
                raise
            except UserError as error:
                near = (
                    difflib.get_close_matches(mmlu.spelled(names[0]), self.definitions, n=3) if len(names) == 1 else []
                )
                if near:
                    raise UserError(
                        f"task {names[0]!r} is not defined in {self.file}; nearest: {', '.join(near)}"
                    ) from error
                raise UserError(f"{error}; {self.file} defines {some_names(list(self.definitions))}") from error
        return resolved

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of the task `name` by its name from `resolve`."""
        return self._others.pool(name, subjects) if subjects else self._open(self.definitions[name])[1]

    def _open(self, definition: Definition) -> tuple[str, Pool]:
        if definition.name not in self._opened:
            self._opened[definition.name] = _open(definition, self.file, self.notify)
        return self._opened[definition.name]


def open_defined(file: Path, open_others: Callable[[], Source], notify: Notify, asked: Sequence[str]) -> DefinedSource:
    """The tasks that `file` defines, and those of another source; `asked` are the names that a run uses."""
    return DefinedSource(file, read_definitions(file), tuple(asked), open_others, notify)


@dataclass(frozen=True)
class Listed:
    """A defined task as it is listed: its rows, how many options they have ("5", "2 to 5", none: completions), and where they
    are from.
    """

    name: str
    items: int
    options: str
    description: str


def list_defined(file: Path, notify: Notify) -> list[Listed]:
    """Every task that `file` defines, its data read."""
    definitions = read_definitions(file)
    listed = []
    for name, definition in definitions.items():
        description, pool = _open(definition, file, notify)
        sizes = sorted({len(item.choices if isinstance(item, Item) else item.options) for item in pool.rows} - {0})
        options = "" if not sizes else str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        listed.append(Listed(name, len(pool.rows) + len(pool.held_out), options, description))
    return listed


def _open(definition: Definition, file: Path, notify: Notify) -> tuple[str, Pool]:
    """What the set of a definition in `file` is, and its rows."""
    try:
        source, has_columns = _source(definition, file.parent, notify)
        return source.description, _pool(definition, source, has_columns)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from error


def _pool(definition: Definition, source: Source, has_columns: bool) -> Pool:
    resolved = source.resolve(definition.subjects)
    subjects = tuple(subject for _, members in resolved for subject in members) or tuple(source.subjects())
    pool = source.pool(definition.name, subjects)
    if not pool.rows:
        raise UserError(f"{definition.name} has no row that can be used; choose another {definition.name}.path")
    if has_columns:
        return pool
    shots: dict[str, tuple[AnyItem, ...]] = {
        subject: _reworded(items, definition.layout) for subject, items in pool.shots.items()
    }
    rows, held_out = (_reworded(items, definition.layout) for items in (pool.rows, pool.held_out))
    return dataclasses.replace(pool, rows=rows, shots=shots, held_out=held_out)


def _source(definition: Definition, folder: Path, notify: Notify) -> tuple[Source, bool]:
    """The set itself, and whether its records have columns, so that the layout has been followed already."""
    layout = definition.layout
    if definition.source == "hub":
        return open_hub(str(definition.path), definition.hub_config, layout, definition.splits), True
    if definition.source != "local":
        _require_no_columns(layout)
        own = None if definition.path is None else str(folder / user_path(definition.path))
        return open_source(source=definition.source, path=own, notify=notify), False
    path = folder / user_path(str(definition.path))
    if path.is_dir() and is_mmlu_folder(path):
        _require_no_columns(layout)
        return open_mmlu_folder(path, layout), False
    return _open_local(path, layout), True


def _require_no_columns(layout: RecordLayout) -> None:
    """UserError where more is asked for than the items of a source without columns have."""
    for key in ("columns", "choices", "answers"):
        if getattr(layout, key):
            raise UserError(f"{layout.setting}.{key} has no meaning for a set without named columns; leave it out")
    for name in names_in(layout.prompt.question):
        if name not in ("question", "subject"):
            raise UserError(
                f"{layout.setting}.prompt.question may name question and subject, which are all that this set has, named {name}"
            )


def _open_local(path: Path, layout: RecordLayout) -> LoadedSource:
    if not path.exists():
        raise UserError(
            f"{layout.setting}.path={path} does not exist; a relative path starts at the definitions' folder"
        )
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise UserError(
            f"{layout.setting}.path={path} must be a file that ends in {', '.join(SUFFIXES)}, a folder of them, or "
            f"MMLU's own folder"
        )
    if len({file.stem for file in files}) < len(files):
        raise UserError(
            f"{layout.setting}.path={path} holds files of one name, which ids of items would not tell apart"
        )
    splits = {file.stem for file in files} >= {"train", "test"}
    return open_files(files, dataclasses.replace(layout, subject=None) if path.is_dir() and not splits else layout)


def _reworded(items: Sequence[AnyItem], layout: RecordLayout) -> tuple[AnyItem, ...]:
    """Items that were read without the layout, put as it says; all that they have are question and subject."""
    reworded: list[AnyItem] = []
    if layout.scoring != TEACHER_FORCED and any(isinstance(item, Item) for item in items):
        raise UserError(
            f"{layout.setting}.score is for completions, and this set has questions with options; leave it out"
        )
    for item in items:
        if isinstance(item, Completion):
            reworded.append(dataclasses.replace(item, scoring=layout.scoring))
            continue
        require_options(len(item.choices), layout, item.id)
        values = {"question": item.question, "subject": item.subject.replace("_", " ")}
        question = filled(layout.prompt.question, values)
        reworded.append(dataclasses.replace(item, question=question, format=layout.prompt))
    return tuple(reworded)
