"""Sets on the Hugging Face hub."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_forgetting.errors import UnreachableError, UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.formats import MULTIPLE_CHOICE, item_of_record
from llm_forgetting.tasks.hub import cached_where_unreachable
from llm_forgetting.tasks.records import RecordLayout, some_names
from llm_forgetting.tasks.sources.source import CITATION, LoadedSource, Source, SourceKind, SourceSettings, by_subject
from llm_forgetting.tasks.task import AnyItem, Pool

MMLU_ON_HUB = "cais/mmlu"
_HUB_SPLITS = ("train", "validation", "test")
_POOLED_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def open_hub(path: str, config: str | None, layout: RecordLayout, splits: Sequence[str] = ()) -> Source:
    """A set on the Hugging Face hub, or a local copy of one.

    MMLU in its usual form (a configuration per subject) is loaded subject by subject as needed. Rows are those of
    train, validation and test, or of `splits`, few-shot rows those of dev; ids write `val` for validation, as MMLU's own
    files do. Rows whose answer is withheld (none, "" or -1) are left out. UserError where nothing can be loaded.
    """
    if config is None and path == MMLU_ON_HUB:
        counts = None if splits else mmlu.ROWS
        return HubSubjects(path, {subject: subject for subject in mmlu.ROWS}, layout, counts, tuple(splits))
    if config is None:
        names = _config_names(path, layout.setting)
        per_subject = {mmlu.spelled(name): name for name in names if mmlu.spelled(name) in mmlu.ROWS}
        if per_subject:
            return HubSubjects(path, per_subject, layout, splits=tuple(splits))
        if len(names) > 1:
            raise UserError(
                f"{path} has {len(names)} configurations; set {layout.setting}.hub_config to one of {some_names(names)}"
            )
    default = path.rstrip("/").rpartition("/")[2] if config in (None, "default", "all") else str(config)
    rows, shots = _hub_items(path, config, layout, layout.subject or default, splits)
    if not rows:
        raise UserError(
            f"{path} has no row with an answer in {' or '.join(splits or _HUB_SPLITS)}; choose another {layout.setting}.path"
        )
    name = f"{path} ({config})" if config else path
    return LoadedSource(f"{name}, Hugging Face data set (licence: see its card)", by_subject(rows), by_subject(shots))


@dataclass(frozen=True)
class HubSubjects:
    """A set on the hub with a configuration per subject; only those of the subjects asked for are loaded.

    `row_counts` are the published ones where they are known; without them `subjects` loads all configurations.
    """

    path: str
    configs: Mapping[str, str]
    layout: RecordLayout
    row_counts: Mapping[str, int] | None = None
    splits: tuple[str, ...] = ()

    @cached_property
    def _loaded(self) -> dict[str, tuple[list[AnyItem], list[AnyItem]]]:
        return {}

    @property
    def description(self) -> str:
        """One line for the report."""
        return f"MMLU ({CITATION}) from the Hugging Face data set {self.path}"

    def _rows_and_shots(self, subject: str) -> tuple[list[AnyItem], list[AnyItem]]:
        if subject not in self._loaded:
            columns = {**self.layout.columns, "subject": ""}  # the configuration is the subject
            layout = dataclasses.replace(self.layout, columns=columns)
            self._loaded[subject] = _hub_items(self.path, self.configs[subject], layout, subject, self.splits)
        return self._loaded[subject]

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows."""
        if self.row_counts is not None:
            return dict(self.row_counts)
        return {subject: len(self._rows_and_shots(subject)[0]) for subject in sorted(self.configs)}

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""
        loaded = {subject: self._rows_and_shots(subject) for subject in subjects}
        rows = tuple(item for subject in subjects for item in loaded[subject][0])
        return Pool(name, subjects, rows, {subject: tuple(loaded[subject][1]) for subject in subjects})


def _hub_failure(path: str, config: str | None, setting: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
    what = f"{path} ({config})" if config else path
    if "gated" in str(error).casefold():
        remedy = "accept its terms on huggingface.co and log in with `hf auth login`"
    else:
        remedy = (
            f"check {setting}.path, {setting}.hub_config and the network, or use {setting}.source=local or embedded"
        )
    return UnreachableError(f"could not load the Hugging Face data set {what} ({reason}); {remedy}")


def _config_names(path: str, setting: str) -> list[str]:
    import datasets

    try:
        with cached_where_unreachable():
            return list(datasets.get_dataset_config_names(path))
    except Exception as error:  # the libraries below raise nearly anything
        raise _hub_failure(path, None, setting, error) from error


def _hub_items(
    path: str, config: str | None, layout: RecordLayout, default_subject: str, chosen: Sequence[str] = ()
) -> tuple[list[AnyItem], list[AnyItem]]:
    """The usable rows and the few-shot rows of one configuration."""
    import datasets

    try:
        with cached_where_unreachable():
            splits: Mapping[str, Iterable[dict[str, Any]]] = datasets.load_dataset(path, config)
    except Exception as error:  # the libraries below raise nearly anything
        raise _hub_failure(path, config, layout.setting, error) from error
    pooled = [split for split in chosen or _POOLED_SPLITS if split in splits]
    if len(pooled) < len(chosen):
        raise UserError(
            f"{layout.setting}.split must be among {some_names(list(splits))} of {path}, was {some_names(chosen)}"
        )
    if not pooled:
        raise UserError(f"{path} needs a split train, validation or test, has {some_names(list(splits))}")

    def items(split: str, label: str) -> Iterator[AnyItem]:
        for row, record in enumerate(splits[split]):
            if layout.format != MULTIPLE_CHOICE or not _is_withheld(record.get(layout.column("answer"), ...)):
                where = f"{path} {config or ''}, {split} row {row}".replace(" ,", ",")
                yield item_of_record(record, layout, where, default_subject, f"{label}/{row}")

    rows = [item for split in pooled for item in items(split, _POOLED_SPLITS.get(split, split))]
    return rows, list(items("dev", "dev")) if "dev" in splits and "dev" not in pooled else []


def _is_withheld(answer: object) -> bool:
    return answer is None or answer in ("", -1, "-1")


def _open(settings: SourceSettings) -> Source:
    return open_hub(settings.path or MMLU_ON_HUB, settings.hub_config, settings.layout)


KIND = SourceKind(_open, path="optional", path_names="the hub data set", columns=True, hub=True)
