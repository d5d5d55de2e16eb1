"""The published studies: their reports are rebuilt from their records, and say what their pages say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT

from llm_forgetting.cli.main import main
from llm_forgetting.config.methods import method_names
from llm_forgetting.report.tables.study import conclusions, study_tables
from llm_forgetting.study.plan import read_plan
from llm_forgetting.study.records import read_records

PUBLISHED = ROOT / "docs/results"
STUDIES = ("flatness", "methods")
"""Each with its page, its records, and its study file, here and among the studies."""


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_the_page_holds_the_answers_and_numbers_that_its_records_give(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--records", str(PUBLISHED / study / "records.json.gz"), "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1e6
    assert "Everything is in" in capsys.readouterr().out
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    page = (PUBLISHED / f"{study}.md").read_text(encoding="utf-8")
    for _, sentences in conclusions(found):
        for said in sentences:
            assert said in page
    for table in study_tables(found):
        for row in table.rows:
            assert f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" in page
    if study == "methods":
        for arm, cells in measured_on_methods().items():
            assert cells[:4] == kept_of_skills(next(f for f in found["frontiers"] if f["measure"] == "loss"), arm)


def measured_on_methods() -> dict[str, list[str]]:
    """By arm the cells of the table of docs/methods.md that says what methods keep."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8").split("| method | keeps of `skills` |")[1]
    rows = [line.strip("| ").split("|") for line in text.split("\n\n")[0].splitlines()[2:]]
    return {row[0].split("`")[1] if "`" in row[0] else "plain": [cell.strip() for cell in row[1:]] for row in rows}


def kept_of_skills(found: dict[str, Any], arm: str) -> list[str]:
    """Verdict, difference at matched learning, and learning and forgetting in the end, of a study's frontiers in loss."""
    learnt, forgot = found["curves"][arm]["end"]
    ends = [f"{100 * learnt:.0f}%", f"{forgot:.2f}"]
    if arm == found["baseline"]:
        return ["", "", *ends]
    effect = next(effect for effect in found["effects"] if effect["arm"] == arm)
    difference, interval = effect["difference"]["value"], effect["difference"]["interval"]
    shown = {-1: "more", 0: "not shown", 1: "less"}[effect["shown"]]
    return [shown, f"{difference:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]", *ends]


def test_what_methods_do_to_the_quickstart_is_what_its_records_say() -> None:
    """Means of two seeds on the items that were trained on: accuracy learnt and lost, and loss gained."""
    records = read_records(PUBLISHED / "methods_quickstart/records.json.gz").records
    names = ("learning_accuracy", "forgetting_accuracy", "forgetting_loss")
    table = measured_on_methods()
    assert {record.arm for record in records} == table.keys()
    for arm, cells in table.items():
        runs = [record.outcomes for record in records if record.arm == arm]
        assert len(runs) == 2
        assert cells[4:] == [f"{sum(run[name] for run in runs) / 2:.2f}" for name in names]


def test_the_terminal_shows_the_main_table_of_the_study_of_flatness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["study", "--records", str(PUBLISHED / "flatness/records.json.gz"), "--folder", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "What goes with forgetting (6 task pairs)" in shown
    assert "The same, given other numbers" not in shown


def test_the_study_of_flatness_is_as_large_as_it_says_and_holds_no_questions() -> None:
    stored = read_records(PUBLISHED / "flatness/records.json.gz")
    records = stored.records
    assert len(records) >= 48
    assert len({record.pair for record in records}) == 6
    assert {record.arm for record in records} == {"adamw", "sam", "rescaled"}
    assert {record.factors["training.learning_rate"] for record in records} == {2e-3, 4e-3}
    assert len({record.cell for record in records}) == len(records)
    assert not {"question", "choices"} & {key for record in records for key in vars(record)}


def test_the_study_of_methods_is_as_large_as_it_says() -> None:
    """Thirteen methods and plain training in five seeds of six pairs, each pair with a first task of its own."""
    records = read_records(PUBLISHED / "methods/records.json.gz").records
    arms = {record.arm for record in records}
    assert len(arms) == 14
    assert arms - {"plain"} <= set(method_names())
    assert len({record.pair for record in records}) == len({record.tasks[0] for record in records}) == 6
    assert {record.factors["seed"] for record in records} == set(range(5))
    assert len(records) == len({record.cell for record in records}) == 6 * 5 * len(arms)
    assert all(record.frontiers for record in records)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "primary"),
    [("flatness", "largest_eigenvalue"), ("methods", "divergence"), ("methods_quickstart", "update_norm")],
)
def test_the_study_file_is_the_one_that_was_run(study: str, primary: str) -> None:
    """A cell's name is the hash of all that can change its numbers: the plan names the cells that were run."""
    content = yaml.safe_load((ROOT / f"studies/{study}.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load((PUBLISHED / study / "study.yaml").read_text(encoding="utf-8")) == content
    plan = read_plan(ROOT / f"studies/{study}.yaml")
    records = read_records(PUBLISHED / study / "records.json.gz").records
    assert {record.cell for record in records} <= {cell.id for cell in plan.cells}
    assert content["analysis"]["primary"] == primary
