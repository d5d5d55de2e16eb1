"""scripts/gpu_check.py: its counters against hand counts, its refusals, and the whole of it on a tiny model."""

import importlib.util
import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("inference", [False, True])
def test_flops_are_those_of_the_products(inference: bool) -> None:
    tools = module("gpu_check_tools")
    with torch.inference_mode(inference):
        x, W = torch.randn(4, 8), torch.randn(16, 8)
    with tools.Flops() as counted, torch.inference_mode(inference):
        y = torch.nn.functional.linear(x, W).relu()
    assert counted.count == 2 * 4 * 8 * 16
    if not inference:
        W.requires_grad_()
        with tools.Flops() as counted:
            torch.nn.functional.linear(x, W).sum().backward()
        assert counted.count == 2 * (2 * 4 * 8 * 16)  # forward, and the gradient in W; none in x
    assert y.shape == (4, 16)


def test_what_a_gpu_would_wait_for_is_counted() -> None:
    tools = module("gpu_check_tools")
    x = torch.arange(4.0)
    with tools.counting("cpu") as count:
        x[x > 1]
        x[torch.tensor([0, 2])]
        x.sum().item()
        x * 2
    assert count() == 2


def test_what_is_missing_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = module("gpu_check")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA GPU" in line
    monkeypatch.setattr(script, "NEEDED", ("torch", "no_peft_here"))
    assert script.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("not here: no_peft_here")


@pytest.mark.process
def test_a_part_that_takes_too_long_is_ended() -> None:
    part = module("gpu_check")._part("reference", 0.1, Namespace(device="cpu", small=True))
    assert part["error"] == "not done within 0.1 s"
    assert part["figures"] == {}


@pytest.mark.process
def test_the_whole_of_it_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, file = module("gpu_check"), tmp_path / "gpu_check.json"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--small", "--output", str(file)])
    status = script.main()
    found = json.loads(file.read_text())
    assert {name: part["error"] for name, part in found["parts"].items()} == dict.fromkeys(script.LIMITS)
    assert status == 0
    figures = {name: part["figures"] for name, part in found["parts"].items()}
    assert set(figures["phases"]["phases"]) == {
        "scoring", "training", "scan point", "path point", "forecast product", "spectrum product", "weights' product",
    }  # fmt: skip
    assert len(figures["quantised"]["comparisons"]) == 2 * (len(figures["reference"]["comparisons"]) - 1)
    assert set(figures["arithmetic"]) == {"float32", "tf32", "native"}
    assert set(figures["rows"]) == {"1", "2", "4", "8"}
    numbers = list(numbers_in(found))
    assert len(numbers) > 80
    assert all(map(math.isfinite, numbers))
    assert figures["arithmetic"]["float32"]["passed"]
    assert figures["arithmetic"]["native"]["roughness"] > 100 * figures["arithmetic"]["float32"]["roughness"]
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def numbers_in(content: Any) -> Iterator[float]:
    if isinstance(content, dict):
        for value in content.values():
            yield from numbers_in(value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield content
