"""Report of a study: records.json.gz, and everything that is made of it alone. No torch."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from llm_forgetting.config.files import PRESETS, parse_config
from llm_forgetting.files import Json, encode_json, write_text
from llm_forgetting.files.manifest import write
from llm_forgetting.report.figures.study import draw_study
from llm_forgetting.report.html.files import write_study_report
from llm_forgetting.report.tables.study import study_markdown
from llm_forgetting.study.analysis import analyse
from llm_forgetting.study.plan import Analysis, Plan
from llm_forgetting.study.records import RECORDS, StudyRecords, read_records, write_records
from llm_forgetting.study.scheduler import StudyFolder

Content = dict[str, Json]
log = logging.getLogger(__name__)


def write_study(plan: Plan, folder: StudyFolder, report: Callable[[str], None] = log.warning) -> Content:
    """records.json.gz of the cells that are done, and everything that `write_report` writes."""
    records = StudyRecords(
        name=plan.name,
        study=dict(plan.content),
        planned=len(plan.cells),
        arms=plan.arms,
        analysis=plan.analysis,
        failures=folder.failures(plan),
        records=tuple(folder.records(plan)),
        model=", ".join(sorted({cell.config.model.name for cell in plan.cells})),
        source=", ".join(sorted({cell.config.data.source for cell in plan.cells})),
    )
    write_records(records, folder.path / RECORDS)
    return write_report(read_records(folder.path / RECORDS), folder.path, report)


MODELS = {"embedded": "SmolLM2-135M-Instruct (Q4_1, dequantised)", "synthetic": "a random two-layer network"}
SOURCES = {
    "embedded": "MMLU questions",
    "local": "MMLU's original files",
    "synthetic": "synthetic tasks",
    "skills": "generated skills",
}


def setting_of(stored: StudyRecords) -> tuple[str, str]:
    """Model and source of the cells; of older records from the study's file, "unknown" where it does not tell."""
    if stored.model is not None and stored.source is not None:
        return stored.model, stored.source
    base = stored.study.get("base", "quickstart")
    defaults = parse_config(str(base), []) if base in PRESETS else None
    common = _section(stored.study, "set")
    model = _section(common, "model").get("name", "unknown" if defaults is None else defaults.model.name)
    source = _section(common, "data").get("source", "unknown" if defaults is None else defaults.data.source)
    return str(model), str(source)


def _section(content: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def write_report(stored: StudyRecords, folder: Path, report: Callable[[str], None] = log.warning) -> Content:
    """study.json, study.md, study.yaml and the figures, from records alone; report.html where it can be drawn.

    Args:
        stored: The study's records.
        folder: Where everything is written.
        report: Gets a line where the page cannot be drawn.

    Returns:
        The content of study.json.
    """
    records = stored.records
    analysis = stored.analysis
    if "given" not in _section(stored.study, "analysis"):  # today's controls, where the study chose none of its own
        analysis = replace(analysis, given=Analysis().given)
    model, source = setting_of(stored)
    content: Content = {
        "name": stored.name,
        "planned": stored.planned,
        "analysis": asdict(analysis),
        "failures": stored.failures,
        "versions": records[0].versions if records else {},
        **analyse(records, analysis, stored.arms),
        "model": MODELS.get(model, model),
        "tasks": SOURCES.get(source, source),
    }
    if "synthetic" in (model, source):
        said = f"This is {content['model']} on {content['tasks']}, which says nothing about language models. "
        content["answers"] = {
            question: said + answer if isinstance(answer, str) else [said + each for each in answer]
            for question, answer in content["answers"].items()
            if answer
        }
    content = json.loads(encode_json(content))
    content["figures"] = []
    study = yaml.safe_dump(stored.study, sort_keys=False, allow_unicode=True)
    write_text(folder / "study.yaml", study)
    write(folder, "study.json", encode_json(content).encode())
    for what, draw in (("figures", _draw), ("report.html", write_study_report)):
        try:
            draw(content, folder)
        except Exception as error:  # numbers are written; a picture is no reason to end without them
            report(f"note: {what} could not be drawn ({error!r}); everything else is there")
    write_text(folder / "study.md", study_markdown(content))
    return content


def _draw(content: Content, folder: Path) -> None:
    """The figures, and their names in study.json."""
    content["figures"] = draw_study(content, folder, dpi=160)
    write(folder, "study.json", encode_json(content).encode())
