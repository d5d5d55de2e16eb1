"""What a study leaves behind: records.json.gz, and everything that is made of it alone. No torch."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.artifacts import encode_json, write_text
from llm_forgetting.errors import UserError
from llm_forgetting.report.html.files import write_study_report
from llm_forgetting.report.study import study_markdown
from llm_forgetting.report.study_figures import draw_study
from llm_forgetting.study.analysis import analyse
from llm_forgetting.study.plan import Analysis, Plan, tuples
from llm_forgetting.study.run import StudyFolder

Found = dict[str, Any]
RECORDS = "records.json.gz"
STORED = {"name", "study", "planned", "arms", "analysis", "failures", "records"}
KEPT = {"cell", "pair", "arm", "factors", "measures", "outcomes", "stderrs", "versions"}
log = logging.getLogger(__name__)


def write_study(plan: Plan, folder: StudyFolder, tell: Callable[[str], None] = log.warning) -> Found:
    """records.json.gz of the cells that are done, and everything that `write_report` writes."""
    stored = {
        "name": plan.name,
        "study": plan.content,
        "planned": len(plan.cells),
        "arms": plan.arms,
        "analysis": asdict(plan.analysis),
        "failures": folder.failures(plan),
        "records": folder.records(plan),
    }
    write_records(stored, folder.path / RECORDS)
    return write_report(read_records(folder.path / RECORDS), folder.path, tell)


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


def write_report(stored: Mapping[str, Any], folder: Path, tell: Callable[[str], None] = log.warning) -> Found:
    """study.json, study.md, study.yaml and the figures, from records alone; report.html where it can be drawn."""
    records: Sequence[Found] = stored["records"]
    analysis = Analysis(**{key: tuples(value) for key, value in stored["analysis"].items()})
    content: Found = {
        "name": stored["name"],
        "planned": stored["planned"],
        "analysis": asdict(analysis),
        "failures": stored["failures"],
        "versions": records[0]["versions"] if records else {},
        **analyse(records, analysis, stored["arms"]),
    }
    content = json.loads(encode_json(content))
    content["figures"] = draw_study(content, folder, dpi=160) if records else []
    study = yaml.safe_dump(dict(stored["study"]), sort_keys=False, allow_unicode=True)
    write_text(folder / "study.yaml", study)
    write_text(folder / "study.json", encode_json(content))
    write_text(folder / "study.md", study_markdown(content))
    try:
        write_study_report(content, folder)
    except Exception as error:  # numbers and tables are written; a page is no reason to end without them
        tell(f"note: report.html could not be drawn ({error!r}); everything else is there")
    return content
