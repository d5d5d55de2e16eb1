"""Records of a study's cells, kept in one file."""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forgetting.errors import UserError
from llm_forgetting.files import encode_json

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
