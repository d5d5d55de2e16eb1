"""Records of a study's cells, kept in one file."""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llm_forgetting.errors import UserError
from llm_forgetting.files import OMITTED, encode_json
from llm_forgetting.study.plan import Analysis

Found = dict[str, Any]

RECORDS = "records.json.gz"

STORED = {"name", "study", "planned", "arms", "analysis", "failures", "records"}

KEPT = {"cell", "pair", "arm", "factors", "measures", "outcomes", "stderrs", "versions"}


def write_records(stored: Mapping[str, Any], path: Path) -> None:
    """All that the report needs, compressed; the same records give the same bytes."""
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(gzip.compress(encode_json(dict(stored)).encode(), mtime=0))
    partial.replace(path)


def read_records(path: Path) -> Found:
    """What `write_records` wrote; UserError where it is something else."""
    try:
        stored: Found = json.loads(gzip.decompress(path.read_bytes()))
        wrong = _wrong_with(stored)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        wrong = str(error)
    if wrong:
        raise UserError(f"--records must be a records.json.gz that a study wrote, {path} is not ({wrong})")
    return stored


def _wrong_with(stored: Any) -> str:
    """What makes this no stored study, or nothing."""
    if not isinstance(stored, dict) or STORED - stored.keys():
        return f"it must hold {', '.join(sorted(STORED))}"
    for n, record in enumerate(stored["records"] if isinstance(stored["records"], list) else [None]):
        if not isinstance(record, dict) or KEPT - record.keys():
            return f"record {n} must hold {', '.join(sorted(KEPT))}"
        for kind in ("measures", "outcomes", "stderrs"):
            for name, value in record[kind].items() if isinstance(record[kind], dict) else [("all", kind)]:
                if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                    return f"record {n}: {kind}.{name} must be a number or null, is {value!r}"
    return ""


@dataclass(frozen=True)
class CellRecord:
    """Cell of a study that is done: its place (task pair, factors by dotted path, arm) and its numbers by name.

    measures, outcomes: None for what was measured and has no number, absent for what was not measured; stderrs: of
    either. Losses in nats. `shared_half`: training on the first task was taken from another cell.
    """

    cell: str
    pair: str
    tasks: tuple[str, ...]
    factors: dict[str, object]
    arm: str
    fingerprint: str
    measures: dict[str, float | None]
    outcomes: dict[str, float | None]
    stderrs: dict[str, float]
    answer: str
    versions: dict[str, str]
    wall_seconds: float
    shared_half: bool


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
    cells, `failures` reasons by cell label.
    """

    name: str
    study: dict[str, object]
    planned: int
    arms: tuple[str, ...]
    analysis: Analysis
    failures: dict[str, str]
    records: tuple[CellRecord, ...]
