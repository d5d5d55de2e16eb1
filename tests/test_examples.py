"""The scripts in examples/, run as they are."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from runs import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WRITTEN = {
    "experiment": ["scores.csv", "surface.json"],
    "own_classifier": ["plane.png", "plane_left.json", "plane_right.json"],
    "own_lora_model": ["adapter/adapter_model.safetensors", "surface.json", "trajectory.json"],
}


@pytest.mark.usefixtures("one_thread")
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


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_begins_with_what_it_shows_and_how_to_run_it(script: Path) -> None:
    docstring = script.read_text(encoding="utf-8").split('"""')[1]
    assert docstring.rstrip().endswith(f"\n    python examples/{script.name} outputs/{script.stem}")
