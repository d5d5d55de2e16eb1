"""Records of a study's cells: record.json or failure.json in each cell's folder, and all of them in records.json.gz."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from llm_forgetting.errors import UserError
from llm_forgetting.files import OMITTED, decode, encode, read, read_regular, write_bytes
from llm_forgetting.files.manifest import checked
from llm_forgetting.study.measures import FrontierRecord
from llm_forgetting.study.plan import Analysis, CellPlace

RECORD, FAILURE, RECORDS = "record.json", "failure.json", "records.json.gz"
MOST_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class CellRecord(CellPlace):
    """Cell of a study that is done: its place (task pair, factors by dotted path, arm) and its numbers by name.

    measures, outcomes: None for what was measured and has no number, absent for what was not measured; stderrs: of
    either. Losses in nats. `frontiers`: of the first and the last task, by measure, where it was scored. `shared_half`:
    training on the first task was taken from another cell. Records written by another program have only the numbers.
    """

    fingerprint: Annotated[str | None, OMITTED] = None
    measures: dict[str, float | None]
    outcomes: dict[str, float | None]
    stderrs: dict[str, float]
    frontiers: Annotated[dict[str, FrontierRecord] | None, OMITTED] = None
    answer: Annotated[str | None, OMITTED] = None
    versions: dict[str, str]
    wall_seconds: Annotated[float | None, OMITTED] = None
    shared_half: Annotated[bool | None, OMITTED] = None


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """Cell of a study that failed, and why; of a cell whose worker died only its id is known."""

    cell: str
    pair: Annotated[str | None, OMITTED] = None
    tasks: Annotated[tuple[str, ...] | None, OMITTED] = None
    factors: Annotated[dict[str, object] | None, OMITTED] = None
    arm: Annotated[str | None, OMITTED] = None
    reason: str
    trace: Annotated[str | None, OMITTED] = None


@dataclass(frozen=True)
class StudyRecords:
    """Records of a whole study: records.json(.gz). `study` is its YAML file as it was read, `planned` the number of
    cells, `failures` reasons by cell label. `model` and `source` are those of the cells, None in records of older studies.
    """

    name: str
    study: dict[str, object]
    planned: int
    arms: tuple[str, ...]
    analysis: Analysis
    failures: dict[str, str]
    records: tuple[CellRecord, ...]
    model: Annotated[str | None, OMITTED] = None
    source: Annotated[str | None, OMITTED] = None


def read_record(folder: Path) -> CellRecord | None:
    """The record of a finished cell, from its folder; None where there is none, UserError where it is something else."""
    path = folder / RECORD
    return decode(CellRecord, checked(folder, RECORD), file=str(path)) if path.is_file() else None


def read_failure(folder: Path) -> CellFailure | None:
    """The failure of a cell, from its folder; None where there is none, UserError where it is something else."""
    path = folder / FAILURE
    return read(CellFailure, path) if path.is_file() else None


def write_records(records: StudyRecords, path: Path) -> None:
    """All that the report needs, compressed; the same records give the same bytes."""
    write_bytes(path, gzip.compress(encode(records).encode(), mtime=0))


def read_records(path: Path) -> StudyRecords:
    """What `write_records` wrote; UserError where it is something else."""
    try:
        content = read_regular(path, "--records", "a file that a study wrote", MOST_BYTES)
        return decode(StudyRecords, gzip.decompress(content), file=path.name)
    except (OSError, EOFError, zlib.error, UserError) as error:
        raise UserError(f"--records must be a records.json.gz that a study wrote, {path} is not ({error})") from error
