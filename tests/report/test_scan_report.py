"""report.html of `llm-forgetting landscape` and `llm-forgetting evaluate`: what they say, and that drawing loses no numbers."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import Shell
from test_html import Elements, complaints

from llm_forgetting.cli import adapters as cli_scan
from llm_forgetting.cli.main import main
from llm_forgetting.experiment import adapter_landscape as scan_adapter
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.report.html.evaluation import evaluation_page
from llm_forgetting.report.html.page import render
from llm_forgetting.report.html.scan import scan_page
from llm_forgetting.report.terminal import Terminal
from llm_forgetting.results import EvaluationResults, ScanResults, read_items

Content = dict[str, Any]
TASKS = ("--task", "synthetic_1", "--task", "synthetic_2", "--data.source", "synthetic")


@pytest.fixture(scope="module")
def scan(shell: Shell, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a scan of both checkpoints of a tiny run."""
    folder = tmp_path_factory.mktemp("scan")
    ends = (tiny_run / "checkpoint_after_task1", "--to", tiny_run / "checkpoint_after_task2")
    small = ("--landscape.max_evaluations", 23, "--landscape.resolution", 9, "--landscape.num_items", 8)
    done = shell("landscape", *ends, *TASKS, *small, "--output_dir", folder)
    assert done.status == 0, done.stderr
    (path,) = folder.iterdir()
    assert ": report.html, landscape.json" in done.stdout
    return path


@pytest.fixture(scope="module")
def evaluation(shell: Shell, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of the first checkpoint of a tiny run."""
    folder = tmp_path_factory.mktemp("evaluation")
    done = shell("evaluate", tiny_run / "checkpoint_after_task1", *TASKS, "--limit", 50, "--output_dir", folder)
    assert done.status == 0, done.stderr
    (path,) = folder.iterdir()
    assert ": report.html, evaluation.json" in done.stdout
    return path


def read(folder: Path, name: str) -> Content:
    content: Content = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def text_of(page: Any) -> str:
    return Elements(render(page)).text


# --- landscapes -------------------------------------------------------------------------------------------------------------


def test_a_scan_says_its_numbers_first(scan: Path) -> None:
    content = read(scan, "landscape.json")
    page = Elements((scan / "report.html").read_text(encoding="utf-8"))
    before, _, after = page.text.partition("Turn one and all turn")
    surface = content["landscapes"]["adapter"]["surfaces"]["synthetic_1"]
    assert f"(8 trained items) is {surface['metrics']['centre']:.2f} nats" in before
    assert f"mean of {surface['mean_rise']['directions']} random directions ± standard error" in before
    assert "On the straight path from adapter to other" in before
    assert f"t* = {content['paths'][0]['repair']['t']:.2f}" in before
    for words in ("Between the adapters", "The plane through backbone, adapter, other", "--to", "Versions"):
        assert words in after
    assert "quadratic forecast" not in after
    assert len(page.of("h1")) == 1


def test_one_adapter_has_nothing_between(scan: Path) -> None:
    content = read(scan, "landscape.json")
    del content["adapters"]["other"], content["landscapes"]["other"]
    content.update(paths=[], checkpoint_plane=None, between_notes=[])
    text = text_of(scan_page(from_plain(ScanResults, content)))
    assert "Between the adapters" not in text
    assert "straight path" not in text
    assert "on the path to" not in text


def test_what_a_scan_could_not_tell_is_said(scan: Path) -> None:
    content = read(scan, "landscape.json")
    landscape = content["landscapes"]["adapter"]
    landscape["fit"]["tolerance"] = 1e-9
    surface = landscape["surfaces"]["synthetic_1"]
    surface["mean_rise"].update(value=-0.5, stderr=0.1)
    surface["lines"]["basin_radius"]["value"] = None
    profile = content["paths"][0]["tasks"]["synthetic_1"]
    profile["barrier"]["value"], profile["error"]["largest"] = 0.01, 0.5
    text = text_of(scan_page(from_plain(ScanResults, content)))
    assert "it falls by 0.50 ± 0.10 nats" in text
    assert "1, the furthest measured. The surface's fit did not converge" in text
    assert "no barrier above the fit's error" in text
    profile["barrier"]["value"] = 2.0
    assert "a barrier of 2.0 ± 0.5 nats" in text_of(scan_page(from_plain(ScanResults, content)))


# --- evaluations ------------------------------------------------------------------------------------------------------------


def test_an_evaluation_says_its_accuracies_first(evaluation: Path) -> None:
    content, items = read(evaluation, "evaluation.json"), read_items(evaluation)
    before, _, after = Elements((evaluation / "report.html").read_text(encoding="utf-8")).text.partition(
        "Accuracy by subject"
    )
    for task in content["tasks"]:
        apart = task["subjects"][0]["held_out"]
        accuracy, of = (task["subjects"][0]["accuracy"], "") if apart is None else (apart, "held-out ")
        right = (
            f"{accuracy['correct']} of {accuracy['n']} {of}items are answered right: accuracy {accuracy['value']:.2f}"
        )
        assert right in before
        if interval := accuracy["interval"]:
            assert f"95% interval {interval['low']:.2f} to {interval['high']:.2f}" in before
    assert [task["held_out"] is None for task in content["tasks"]] == [False, True]
    assert "only the first 50 rows of each subject" in before
    assert "--limit 50" in after
    assert "guessing" in after
    page = evaluation_page(from_plain(EvaluationResults, content), items)
    (figure,) = (block for section in page.sections for block in section.blocks if block.kind == "figures")
    assert figure.plots[0].layout["shapes"][0]["x0"] == 0.25


def test_items_answered_wrong_come_first_and_letters_add_up(evaluation: Path) -> None:
    content, items = read(evaluation, "evaluation.json"), read_items(evaluation)
    page = evaluation_page(from_plain(EvaluationResults, content), items)
    (listing,) = (block for section in page.sections for block in section.blocks if block.kind == "listing")
    wrong = sum(isinstance(item, ItemRecord) and not item.correct for item in items)
    assert [row[4] for row in listing.rows] == ["wrong"] * wrong + ["right"] * (100 - wrong)
    tables = [block.table for section in page.sections for block in section.blocks if block.kind == "numbers"]
    (letters,) = (table for table in tables if table.title == "Letters")
    assert [sum(int(row[n]) for row in letters.rows) for n in (1, 2)] == [100, 100]


def test_groups_and_many_tasks_are_told_with_their_errors(evaluation: Path) -> None:
    content = read(evaluation, "evaluation.json")
    group = copy.deepcopy(content["tasks"][0])
    group["subjects"] = [entry for task in content["tasks"] for entry in task["subjects"]]
    group["accuracy"] = {"value": 0.5, "stderr": 0.05, "n": 100}
    group["trained"] = group["held_out"] = None
    text = text_of(evaluation_page(from_plain(EvaluationResults, {**content, "tasks": [group]}), []))
    assert "Accuracy on synthetic 1 is 0.50 ± 0.05 (± one standard error; 100 items of 2 subjects)" in text
    assert "items.jsonl is missing" in text
    many = [{**group, "name": f"task_{n}", "accuracy": {**group["accuracy"], "value": n / 10}} for n in range(8)]
    text = text_of(evaluation_page(from_plain(EvaluationResults, {**content, "tasks": many, "limit": None}), []))
    assert "Accuracy on 8 tasks: from 0.00 ± 0.05 on task 0 to 0.70 ± 0.05 on task 7" in text
    assert "--limit" not in text


def test_few_items_have_no_interval_and_a_bare_backbone_is_named(evaluation: Path) -> None:
    content = read(evaluation, "evaluation.json")
    content.update(adapter=None, run=None, warnings=[])
    content["model"].update(name="/somewhere/deep/gpt-x", adapter_parameters=0)
    for task in content["tasks"]:
        task.update(trained=None, held_out=None)
        task["subjects"][0].update(trained=None, held_out=None)
        task["subjects"][0]["accuracy"].update(interval=None, stderr=None)
    text = text_of(evaluation_page(from_plain(EvaluationResults, content), []))
    assert "Test accuracy of gpt-x without an adapter" in text
    assert "95% interval 0" not in text.partition("Accuracy by subject")[0]


# --- commands ---------------------------------------------------------------------------------------------------------------


def test_report_draws_the_same_again(scan: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (scan, evaluation):
        page = folder / "report.html"
        before = page.read_bytes()
        page.unlink()
        assert main(["report", str(folder)]) == 0
        assert page.read_bytes() == before
        assert "needs the folder of a finished run" in complaints(["report", str(folder), "--questions"], capsys)


def test_unfinished_and_old_folders_end_in_one_line(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "phases").mkdir()
    shutil.copy(scan / "scan.json", tmp_path)
    assert "unfinished landscape or forecast; finish it by the same command with --resume" in complaints(
        ["report", str(tmp_path)], capsys
    )
    content = read(scan, "landscape.json")
    del content["paths"]
    (tmp_path / "landscape.json").write_text(json.dumps(content))
    assert "landscape.json: paths: Field required" in complaints(["report", str(tmp_path)], capsys)


@pytest.mark.parametrize("name", ["landscape.json", "evaluation.json"])
def test_a_page_that_cannot_be_drawn_is_a_warning(
    scan: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no ink")

    for writer in ("write_scan_report", "write_evaluation_report"):
        monkeypatch.setattr(f"llm_forgetting.report.html.files.{writer}", broken)
    shutil.copy((scan if name == "landscape.json" else evaluation) / name, tmp_path)
    console = Console(record=True, width=200)
    assert cli_scan.draw_page(tmp_path, name, Terminal(console)) == ""
    assert f"(ZeroDivisionError('no ink')); all numbers are in {name}" in console.export_text()


def test_figures_that_cannot_be_drawn_lose_no_scan(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(scan_adapter, "draw_landscapes", broken)
    content = read(scan, "landscape.json")
    folder = RunFolder(tmp_path)
    saved = scan_adapter.save_scan(from_plain(ScanResults, content), folder, dpi=50)
    kept = read(tmp_path, "landscape.json")
    assert kept["landscapes"] == content["landscapes"]
    assert kept["figures"] == []
    assert saved.warnings[-1] == "figures could not be drawn (ZeroDivisionError('no ink'))"
