"""A study's page names the model and the tasks; one of synthetic tasks cannot be quoted as a finding."""

from pathlib import Path

import pytest
from runs import ROOT

from llm_forgetting.report.html.study import study_page
from llm_forgetting.report.tables.study import conclusions, study_markdown
from llm_forgetting.study.analysis import runs_of
from llm_forgetting.study.plan import Analysis, CellPlace, read_plan
from llm_forgetting.study.records import CellRecord, StudyRecords, read_records
from llm_forgetting.study.report import setting_of, write_report

TOY = ROOT / "studies/toy.yaml"
NO_FINDING = "This is a random two-layer network on synthetic tasks, which says nothing about language models."


def toy_records() -> StudyRecords:
    plan = read_plan(TOY)
    numbers = {"mean_rise": 0.1}
    records = tuple(
        CellRecord(**vars(CellPlace("1", cell.pair, cell.place.tasks, cell.place.factors, cell.arm)), measures=numbers,
                   outcomes={"forgetting_loss": 1.0, "retention_loss": 1.0}, stderrs={}, versions={})
        for cell in plan.cells[:2]
    )  # fmt: skip
    return StudyRecords("toy", dict(plan.content), 2, plan.arms, plan.analysis, {}, records)


@pytest.mark.slow
def test_every_answer_of_the_toy_says_that_it_is_synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_forgetting.study.report.draw_study", lambda *_, **__: [])
    monkeypatch.setattr("llm_forgetting.study.report.write_study_report", lambda *_: None)
    content = write_report(toy_records(), tmp_path)
    answers = [sentence for _, sentences in conclusions(content) for sentence in sentences]
    assert answers
    assert all(sentence.startswith(NO_FINDING) for sentence in answers)
    assert study_page(content).set_up == "Model: a random two-layer network. Tasks: synthetic tasks."
    assert "Model: a random two-layer network. Tasks: synthetic tasks." in study_markdown(content)
    assert content["analysis"]["given"] == [list(names) for names in Analysis().given]


@pytest.mark.slow
def test_older_records_tell_their_setting_by_the_studys_file() -> None:
    published = read_records(ROOT / "docs/results/flatness/records.json.gz")
    assert setting_of(published) == ("embedded", "local")
    assert setting_of(toy_records()) == ("synthetic", "synthetic")
    assert len(runs_of(published.records)) == 54
