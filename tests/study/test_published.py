"""The published study: its report is rebuilt from its records, and says what its page says."""

import json
from pathlib import Path

import pytest
import yaml
from runs import ROOT

from llm_forgetting.cli.main import main
from llm_forgetting.report.tables.study import conclusions, study_tables
from llm_forgetting.study.plan import read_plan
from llm_forgetting.study.records import read_records

PUBLISHED = ROOT / "docs/results/flatness"


@pytest.mark.slow
def test_the_page_holds_the_answers_and_numbers_that_its_records_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--records", str(PUBLISHED / "records.json.gz"), "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1e6
    shown = capsys.readouterr().out
    assert "Everything is in" in shown
    assert "What goes with forgetting (6 task pairs)" in shown
    assert "The same, given other numbers" not in shown
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/flatness.md").read_text(encoding="utf-8")
    for _, sentences in conclusions(found):
        for said in sentences:
            assert said in page
    for table in study_tables(found):
        for row in table.rows:
            assert f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" in page


def test_the_published_study_is_as_large_as_it_says_and_holds_no_questions() -> None:
    stored = read_records(PUBLISHED / "records.json.gz")
    records = stored.records
    assert len(records) >= 48
    assert len({record.pair for record in records}) == 6
    assert {record.arm for record in records} == {"adamw", "sam", "rescaled"}
    assert {record.factors["training.learning_rate"] for record in records} == {2e-3, 4e-3}
    assert len({record.cell for record in records}) == len(records)
    assert not {"question", "choices"} & {key for record in records for key in vars(record)}


@pytest.mark.slow
def test_the_study_file_is_the_one_that_was_run() -> None:
    """A cell's name is the hash of all that can change its numbers: the plan names the cells that were run."""
    content = yaml.safe_load((ROOT / "studies/flatness.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load((PUBLISHED / "study.yaml").read_text(encoding="utf-8")) == content
    plan = read_plan(ROOT / "studies/flatness.yaml")
    records = read_records(PUBLISHED / "records.json.gz").records
    assert {record.cell for record in records} <= {cell.id for cell in plan.cells}
    assert content["analysis"]["primary"] == "largest_eigenvalue"
