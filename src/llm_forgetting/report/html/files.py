"""report.html in the folder of whatever writes one, from the artifacts there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_forgetting.files import write_text
from llm_forgetting.report.html.evaluation import evaluation_page
from llm_forgetting.report.html.page import render
from llm_forgetting.report.html.run import run_page
from llm_forgetting.report.html.scan import scan_page
from llm_forgetting.report.html.scores import Questions
from llm_forgetting.report.html.study import study_page

REPORT = "report.html"
# A name of its own, so that nobody who passes a report on passes questions on.
WITH_QUESTIONS = "report_with_questions.html"
Content = Mapping[str, Any]


def write_run_report(
    results: Content, records: Sequence[Content], folder: Path, questions: Questions | None = None
) -> Path:
    """Of what results.json and the lines of items.jsonl hold; a page with `questions` has a name of its own."""
    path = folder / (REPORT if questions is None else WITH_QUESTIONS)
    write_text(path, render(run_page(results, records, questions)))
    return path


def write_study_report(study: Content, folder: Path) -> Path:
    """Of what study.json holds."""
    write_text(folder / REPORT, render(study_page(study)))
    return folder / REPORT


def write_scan_report(scan: Content, folder: Path) -> Path:
    """Of what landscape.json holds."""
    write_text(folder / REPORT, render(scan_page(scan)))
    return folder / REPORT


def write_evaluation_report(evaluation: Content, records: Sequence[Content], folder: Path) -> Path:
    """Of what evaluation.json and the lines of items.jsonl hold."""
    write_text(folder / REPORT, render(evaluation_page(evaluation, records)))
    return folder / REPORT


def read_items(folder: Path) -> list[Content]:
    """The lines of items.jsonl; none where it is gone."""
    path = folder / "items.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
