"""What a run reads must be what it was begun with, to the letter: questions, few-shot rows, text, weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_manifest import flip

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.phases_between import scan_paths
from llm_forgetting.experiment.session import Session
from llm_forgetting.files import from_plain
from llm_forgetting.files.manifest import recorded_folder
from llm_forgetting.progress import Silent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def session(tmp_path: Path, llama_folder: Path) -> Callable[[], Session]:
    """A new process of one run, on files in `tmp_path`."""
    (tmp_path / "rows").mkdir()
    for name in ("oaks", "elms"):
        rows = [{"question": f"{name} {n} Grow", "choices": ["yes", "no"], "answer": n % 2} for n in range(12)]
        (tmp_path / f"rows/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("Rain fell on the hills.\n\nNobody came.\n")
    shutil.copytree(llama_folder, tmp_path / "model")
    (tmp_path / "run").mkdir()
    config: dict[str, Any] = {
        "model": {"name": str(tmp_path / "model")},
        "data": {
            "source": "local", "path": str(tmp_path / "rows"), "tasks": ["oaks", "elms"], "train_items": 4, "test_items": 2,
            "few_shot": 2,
        },
        "evaluation": {"text": str(tmp_path / "text.txt")},
        "landscape": {"num_items": 2, "self_test_items": 1},
    }  # fmt: skip
    return lambda: Session(from_plain(ExperimentConfig, config), tmp_path / "run", Silent())


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("new", ["oaks {} grow", "oaks {}  Grow"], ids=["letter case", "white space"])
def test_questions_and_few_shot_rows_count_to_the_letter(
    session: Callable[[], Session], tmp_path: Path, new: str
) -> None:
    tasks = session().tasks
    assert [task.name for task in session().tasks] == ["oaks", "elms"]
    used = {
        "questions": tasks[0].train[0].question,
        "few-shot rows": tasks[0].shots["oaks"][0].question,
    }
    for kind, question in used.items():
        before = (tmp_path / "rows/oaks.jsonl").read_text()
        change(tmp_path / "rows/oaks.jsonl", question, new.format(question.split()[1]))
        with pytest.raises(UserError, match=rf"the {kind} of task oaks must be the same as when .*run was begun"):
            _ = session().tasks
        (tmp_path / "rows/oaks.jsonl").write_text(before)
    assert session().tasks == tasks


def test_a_changed_word_of_the_control_text_is_refused(session: Callable[[], Session], tmp_path: Path) -> None:
    before = session().passages
    assert session().passages == before
    change(tmp_path / "text.txt", "hills", "Hills")
    with pytest.raises(UserError, match=r"the control text \(evaluation\.text\) must be the same"):
        _ = session().passages


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_of_the_backbone_is_refused_by_name(
    session: Callable[[], Session], tmp_path: Path, file: str
) -> None:
    _ = session().model
    _ = session().model
    if file == "model.safetensors":
        flip(tmp_path / "model" / file)
    else:
        content = json.loads((tmp_path / "model" / file).read_text())
        (tmp_path / "model" / file).write_text(json.dumps(content, indent=7))
    with pytest.raises(UserError, match=rf"the backbone's {file} must be the same"):
        _ = session().model


def test_the_adapters_of_all_epochs_must_be_there_for_the_plane(tmp_path: Path) -> None:
    tasks = {"source": "synthetic", "tasks": ["synthetic_1", "synthetic_2"]}
    config = from_plain(
        ExperimentConfig, {"model": {"name": "synthetic"}, "data": tasks, "landscape": {"trajectory": True}}
    )
    with recorded_folder(tmp_path, "phases/trajectory_task2/epoch_001") as scratch:
        (scratch / "update.safetensors").write_bytes(b"adapter")
    (tmp_path / "phases/trajectory_task2/epoch_001/update.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"epoch_001/update\.safetensors .* is gone; remove phases/train_task\*\.json in"
    ):
        scan_paths(Session(config, tmp_path, Silent()))
