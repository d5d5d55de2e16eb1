"""The scripts in examples/, run as they are."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from runs import ROOT

from llm_forgetting.cli.main import main

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WRITTEN = {
    "experiment": ["scores.csv", "surface.json"],
    "own_classifier": ["plane.png", "plane_left.json", "plane_right.json"],
    "own_intervention": ["records.json.gz", "surface.json"],
    "own_lora_model": ["adapter/adapter_model.safetensors", "surface.json", "trajectory.json"],
}


@pytest.mark.process  # some library asks `uname`
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:No artists with labels")  # of a study this small
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "out")])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert 3 <= len(said) <= 12
    assert "measured error" in "".join(said)
    for name in WRITTEN[script.stem]:
        path = tmp_path / "out" / name
        assert path.stat().st_size > 500
        if path.suffix == ".json":
            assert json.loads(path.read_text())["losses"]
        if path.name == "records.json.gz":
            judge(path)


def judge(path: Path) -> None:
    """Records that a script wrote go through a study's statistics."""
    folder = path.parent / "study"
    assert main(["study", "--records", str(path), "--folder", str(folder)]) == 0
    content = json.loads((folder / "study.json").read_text())
    effect = next(found for found in content["effects"] if found["outcome"] == "forgetting_loss")
    assert content["runs"] == 12
    assert effect["arm"] == "distilled"
    assert "forgetting was lower" in content["answers"]["arms"][0]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_begins_with_what_it_shows_and_how_to_run_it(script: Path) -> None:
    docstring = script.read_text(encoding="utf-8").split('"""')[1]
    assert docstring.rstrip().endswith(f"\n    python examples/{script.name} outputs/{script.stem}")
