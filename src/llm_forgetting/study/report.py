"""What a study leaves behind: records.json.gz, and everything that is made of it alone. No torch."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.files import encode_json, write_text
from llm_forgetting.report.figures.study import draw_study
from llm_forgetting.report.html.files import write_study_report
from llm_forgetting.report.tables.study import study_markdown
from llm_forgetting.study.analysis import analyse
from llm_forgetting.study.plan import Analysis, Plan, tuples
from llm_forgetting.study.records import RECORDS, Found, read_records, write_records
from llm_forgetting.study.scheduler import StudyFolder

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
