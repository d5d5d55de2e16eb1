"""report.html in the folder of a run, scan, evaluation or study."""

from collections.abc import Sequence
from pathlib import Path

from llm_forgetting.files import write_text
from llm_forgetting.forgetting.records import ItemRecord, Line
from llm_forgetting.report.html.blocks import Page
from llm_forgetting.report.html.evaluation import evaluation_page
from llm_forgetting.report.html.items import Questions
from llm_forgetting.report.html.page import render
from llm_forgetting.report.html.pairs import forecast_page, pair_evaluation_page
from llm_forgetting.report.html.run import run_page
from llm_forgetting.report.html.scan import scan_page
from llm_forgetting.report.html.study import study_page
from llm_forgetting.report.notebook import REPORT
from llm_forgetting.report.views.study import StudyContent
from llm_forgetting.results import EvaluationResults, ForecastResults, Results, ScanResults

# A name of its own, so that nobody who passes a report on passes questions on.
WITH_QUESTIONS = "report_with_questions.html"


def write_run_report(results: Results, items: Sequence[Line], folder: Path, questions: Questions | None = None) -> Path:
    """Write the page of a run; a page with `questions` has a name of its own."""
    return _write(run_page(results, items, questions), folder, REPORT if questions is None else WITH_QUESTIONS)


def write_study_report(study: StudyContent, folder: Path) -> Path:
    """Write the page of what study.json holds."""
    return _write(study_page(study), folder)


def write_scan_report(results: ScanResults, folder: Path) -> Path:
    """Write the page of a scan."""
    return _write(scan_page(results), folder)


def write_evaluation_report(results: EvaluationResults, items: Sequence[Line], folder: Path) -> Path:
    """Write the page of an evaluation, of one checkpoint or of a pair."""
    if results.other is None:
        return _write(evaluation_page(results, items), folder)
    return _write(pair_evaluation_page(results, [item for item in items if isinstance(item, ItemRecord)]), folder)


def write_forecast_report(results: ForecastResults, folder: Path) -> Path:
    """Write the page of a forecast between two checkpoints."""
    return _write(forecast_page(results), folder)


def _write(page: Page, folder: Path, name: str = REPORT) -> Path:
    write_text(folder / name, render(page))
    return folder / name
