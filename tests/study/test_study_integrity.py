"""Damage in a study: one bad record costs its cell, and nothing damaged or changed is taken over from another cell."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_manifest import DAMAGES
from test_study_plan import Fake, made_up, plan_of, run

from llm_forgetting.engines.start import EngineChoice
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.phase_artifacts import EVALUATE_INITIAL, GUARDS, train_phase
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import encode, manifest
from llm_forgetting.results import GuardReport, InterventionRecord, TrainingRecord
from llm_forgetting.study import study as whole_study
from llm_forgetting.study.records import RECORD
from llm_forgetting.study.scheduler import StudyFolder
from llm_forgetting.study.shared_first_task import CHECKPOINT, copy_base_scores, copy_first_task


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_the_cell_of_a_damaged_record_is_computed_again_and_a_line_says_so(tmp_path: Path, damage: str) -> None:
    plan, study, said = plan_of(tmp_path), StudyFolder(tmp_path / "study"), list[str]()
    study.take_over(plan, made_up(plan))
    before, spoilt = study.records(plan), plan.cells[3]
    study.remove_damaged(plan, said.append)
    assert (said, study.missing(plan)) == ([], [])
    record = study.cell(spoilt) / RECORD
    if damage == "foreign":
        record.write_text(encode(before[4]))
    else:
        DAMAGES[damage](record)
    study.remove_damaged(plan, said.append)
    assert said == [f"{spoilt.label}: its record.json is damaged, and the cell is computed again"]
    engine = Fake(1)
    again, _ = run(plan, tmp_path / "study", engine)
    assert [job.place.cell for job in engine.begun] == [spoilt.id]
    assert [record for record in again.records(plan) if record.cell != spoilt.id] == before[:3] + before[4:]


def test_a_study_looks_for_damage_before_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, study, said, engine = plan_of(tmp_path), StudyFolder(tmp_path / "study"), list[str](), Fake(1)
    study.take_over(plan, made_up(plan))
    (study.cell(plan.cells[0]) / RECORD).write_text("{")
    monkeypatch.setattr(EngineChoice, "start", lambda *_: engine)
    monkeypatch.setattr(whole_study, "write_study", lambda *_: {})
    whole_study.complete_study(plan, study, workers=1, threads=1, report=said.append)
    assert [job.place.cell for job in engine.begun] == [plan.cells[0].id]
    assert any("its record.json is damaged" in line for line in said)


GUARD = GuardReport(1, 1, 0.0, 1.0, 0.0, 0.5, (1, 2))
TRAINING = TrainingRecord("synthetic_1", 1, InterventionRecord(None, {}, None, 1.0), "hash", ())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A cell that has the base model's scores and the first task behind it."""
    (tmp_path / "source/phases").mkdir(parents=True)
    cell = RunFolder(tmp_path / "source")
    manifest.require_inputs(cell.path, "rows", {"synthetic_1": "1", "synthetic_2": "2"})
    cell.once(GUARDS, lambda: GUARD)
    cell.once(EVALUATE_INITIAL, lambda: ())
    with manifest.recorded_folder(cell.path, CHECKPOINT) as scratch:
        (scratch / "adapter_model.safetensors").write_bytes(b"weights")
    (cell.path / CHECKPOINT / "README.md").write_text("a card")
    cell.once(train_phase(1), lambda: TRAINING)
    return cell.path


def copies(tmp_path: Path) -> list[Callable[[Path, Path], None]]:
    config = plan_of(tmp_path).cells[0].config
    shared = replace(config, landscape=replace(config.landscape, tasks="all"))
    return [copy_base_scores, lambda cell, source: copy_first_task(cell, source, shared)]


def test_what_a_cell_takes_over_is_recorded_with_what_it_was_computed_from(tmp_path: Path, source: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    for copy in copies(tmp_path):
        copy(cell, source)
    assert manifest.damaged(cell) == []
    found = json.loads((cell / "manifest.json").read_text())
    assert set(found["artifacts"]) == {
        *(f"phases/{name}.json" for name in ("guards", "evaluate_initial", "train_task1")),
        *(f"{CHECKPOINT}/{name}" for name in ("adapter_model.safetensors", "experiment_config.yaml")),
    }
    assert found["inputs"]["rows"] == {"synthetic_1": "1", "synthetic_2": "2"}
    assert RunFolder(cell).read(train_phase(1)) == TRAINING


@pytest.mark.parametrize(
    ("artifact", "number"),
    [("phases/guards.json", 0), ("phases/train_task1.json", 1), (f"{CHECKPOINT}/adapter_model.safetensors", 1)],
)
def test_nothing_damaged_is_taken_over(tmp_path: Path, source: Path, artifact: str, number: int) -> None:
    DAMAGES["flipped"](source / artifact)
    cell = tmp_path / "cell"
    cell.mkdir()
    with pytest.raises(UserError, match=rf"{artifact} must be what was written"):
        copies(tmp_path)[number](cell, source)


def test_nothing_is_taken_over_that_was_computed_from_other_rows(tmp_path: Path, source: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    manifest.require_inputs(cell, "rows", {"synthetic_1": "changed"})
    for copy in copies(tmp_path):
        with pytest.raises(UserError, match="the questions of task synthetic_1 must be the same"):
            copy(cell, source)
