"""Local files: MMLU's own folder, JSONL, and for a definitions file CSV and TSV."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_forgetting.errors import UserError
from llm_forgetting.files import user_path
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.formats import item_of_record
from llm_forgetting.tasks.record_files import csv_rows, read_json, read_records
from llm_forgetting.tasks.records import RecordLayout, some_names
from llm_forgetting.tasks.sources.source import CITATION, LoadedSource, SourceKind, SourceSettings, by_subject
from llm_forgetting.tasks.task import LETTERS, AnyItem, Item


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
    """The records of files of `SUFFIXES`; rows that name no subject have the layout's, or their file's stem.

    Files that are called after splits are those of one set: test.* are its held-out rows, train.*, and dev.*, val.*, eval.* and
    validation.* where there is no train.*, its others; labels.json are its options, where the layout names none. UserError
    where they hold no item, or one that cannot be read.
    """
    files, layout = _without_labels(files, layout)
    items = {file: list(_items(file, layout)) for file in files}
    if not any(items.values()):
        raise UserError(f"{layout.setting}.path={files[0] if len(files) == 1 else files[0].parent} holds no item")
    kinds = " and ".join(dict.fromkeys(file.suffix.removeprefix(".").upper() for file in files))
    names = some_names([file.name for file in files])
    description = f"local {kinds}: {names} in {files[0].parent}"
    by_split = {file.stem: found for file, found in items.items()}
    if not {"train", "test"} <= set(by_split) <= {*_SPLITS, "test"}:
        return LoadedSource(description, by_subject(item for found in items.values() for item in found))
    for file, found in items.items():
        if not found and file.stem in ("train", "test"):
            raise UserError(f"{file} holds no item; a folder with train and test files needs items in both")
    rows = by_subject(by_split["train"])
    return LoadedSource(description, rows, held_out=by_subject(by_split["test"]))


_SPLITS = ("train", "dev", "val", "eval", "validation")


def _without_labels(files: Sequence[Path], layout: RecordLayout) -> tuple[list[Path], RecordLayout]:
    """The files that hold records, and the layout with the options of a labels.json among the files."""
    others = [file for file in files if file.name != "labels.json"]
    if len(others) < len(files) and not layout.choices:
        labels = read_json(files[0].parent / "labels.json")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UserError(f"{files[0].parent / 'labels.json'} must be a list of texts, is {str(labels)[:40]!r}")
        layout = dataclasses.replace(layout, choices=tuple(labels))
    return others, layout


def _items(file: Path, layout: RecordLayout) -> Iterator[AnyItem]:
    layout = dataclasses.replace(layout, typed=file.suffix not in (".csv", ".tsv"))
    for row, (where, record) in read_records(file):
        yield item_of_record(record, layout, where, layout.subject or file.stem, f"{file.stem}/{row}")


def is_mmlu_folder(path: Path) -> bool:
    """Whether `path` is laid out as MMLU's own files are."""
    return any((path / split).is_dir() for split in ("val", "test"))


def open_mmlu_folder(path: Path, layout: RecordLayout) -> LoadedSource:
    """MMLU's own CSV files, without a header, in the folders `dev`, `val` and `test`; UserError where they hold no item."""
    by_split = {split: by_subject(_csv_items(path / split, split)) for split in ("dev", "val", "test")}
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


def _open(settings: SourceSettings) -> LoadedSource:
    return open_local(user_path(str(settings.path)), settings.layout)


KIND = SourceKind(_open, path="required", path_names="the MMLU folder or JSONL file", columns=True)
