"""Records out of files: JSONL, JSON, parquet, and CSV and TSV with a header, every cell as it is written.

`UserError` names file and line.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llm_forgetting.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SIGNS = {",": "commas", "\t": "tabs", ";": "semicolons (;)", "|": "bars (|)"}
SUFFIXES = (".jsonl", ".json", ".parquet", *_DELIMITERS)


def read_records(file: Path) -> Iterator[tuple[int, tuple[str, Mapping[str, object]]]]:
    """(row, (place for messages, record)) of a file of one of `SUFFIXES`; rows are counted from 0.

    A row is a line in JSONL, an element of the list in JSON, and a record in parquet, and in CSV and TSV, whose cells are all
    text: "None", "NA" and "0" too.
    """
    _require_regular(file)
    others = {".json": _json_records, ".parquet": _parquet_records}
    return _jsonl_records(file) if file.suffix == ".jsonl" else enumerate(others.get(file.suffix, _csv_records)(file))


def read_json(file: Path) -> object:
    """The content of a JSON file; UserError where it is none."""
    _require_regular(file)
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON in UTF-8 ({error})") from error


def _json_records(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    content = read_json(file)
    if not isinstance(content, list):
        raise UserError(f"{file}: must be a list of JSON objects, is {str(content)[:40]!r}")
    for row, record in enumerate(content):
        where = f"{file}, entry {row + 1}"
        if not isinstance(record, dict):
            raise UserError(f"{where}: must be a JSON object, is {str(record)[:40]!r}")
        yield where, record


def _parquet_records(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        raise UserError(
            f"{file}: not a parquet file that can be read ({' '.join(str(error).split())[:160]})"
        ) from error
    for row, record in enumerate(records):
        yield f"{file}, row {row + 1}", record


def _require_regular(file: Path) -> None:
    """UserError for what would be waited for without end."""
    if not file.is_file():
        raise UserError(f"{file} must be a regular file, and is a folder, pipe or device")


def _jsonl_records(file: Path) -> Iterator[tuple[int, tuple[str, Mapping[str, object]]]]:
    with file.open("rb") as stream:
        for row, line in enumerate(stream):
            where = f"{file}, line {row + 1}"
            try:
                record = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON in UTF-8 ({error})") from error
            if record is None:
                continue
            if not isinstance(record, dict):
                raise UserError(f"{where}: must be a JSON object, is {str(record)[:40]!r}")
            yield row, (where, record)


def _csv_records(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    rows = csv_rows(file, _DELIMITERS[file.suffix])
    where, header = next(rows, ("", []))
    if len(set(header)) != len(header):
        raise UserError(f"{where}: the header must name every column once, is {', '.join(header)[:80]}")
    delimiter = _DELIMITERS[file.suffix]
    if len(header) == 1 and (other := next((sign for sign in ";\t|," if sign in header[0]), None)):
        raise UserError(
            f"{where}: columns must be separated by {_SIGNS[delimiter]}, here they are by {_SIGNS[other]} "
            f"({header[0][:60]!r}); save the file so, or as .tsv with tabs"
        )
    for where, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{where}: must have {len(header)} cells as the header, has {len(cells)}")
        yield where, dict(zip(header, cells, strict=True))


def csv_rows(file: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file that are not blank, each with its place for messages; UserError where it is no CSV in UTF-8."""
    _require_regular(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield f"{file}, line {reader.line_num}", cells
        except (csv.Error, UnicodeDecodeError) as error:
            kind = "TSV" if delimiter == "\t" else "CSV"
            raise UserError(f"{file}, after line {reader.line_num}: not {kind} in UTF-8 ({error})") from error
