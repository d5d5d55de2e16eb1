"""Everything runs on a device that is not the CPU, the stand-in of `ghost`, and never waits for it inside a layer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import ENVIRONMENT, ROOT

pytestmark = pytest.mark.process
TESTS = ROOT / "tests"


def on_the_ghost(name: str, folder: Path) -> Any:
    """What the case `name` of `on_the_ghost.py` found."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}:{TESTS}"}
    command = [sys.executable, str(TESTS / "on_the_ghost.py"), name, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def numbers(content: Any, path: str = "") -> dict[str, float]:
    """Every number of some JSON by its path."""
    if isinstance(content, dict):
        return {k: v for name, inner in content.items() for k, v in numbers(inner, f"{path}.{name}").items()}
    if isinstance(content, list):
        return {k: v for row, inner in enumerate(content) for k, v in numbers(inner, f"{path}.{row}").items()}
    return {path: float(content)} if isinstance(content, int | float) else {}


def results_of(folder: str) -> Any:
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_the_ghost("counts", tmp_path_factory.mktemp("counts"))


def test_no_pass_waits_for_the_device_in_a_layer(passes: Any) -> None:
    waits = {
        layers: {name: found["synchronisations"] for name, found in by_pass.items() if name != "grouped attention"}
        for layers, by_pass in passes.items()
    }
    assert waits["2"] == waits["4"]
    assert not waits["2"]["training"]
    assert all(sum(counted.values()) <= 4 for name, counted in waits["2"].items() if name != "spectrum")


def test_keys_of_groups_are_repeated_for_a_fused_kernel(passes: Any) -> None:
    assert set(passes["2"]["grouped attention"]) == {False}  # the model has two heads for each key


def test_launches_of_an_elementwise_operation_do_not_grow_with_its_rows(passes: Any) -> None:
    few, many = (passes["2"][f"SwiGLU, {rows} rows"]["operations"] for rows in (64, 640))
    assert few == many


def test_a_run_in_bfloat16(tmp_path: Path) -> None:
    folders = on_the_ghost("narrow", tmp_path)
    results = results_of(folders["ghost"])
    assert (results["model"]["device"], results["model"]["dtype"]) == ("ghost:0", "bfloat16")
    assert not results["between_notes"]
    assert len(results["checkpoint_plane"]["trajectory"]) == 6
    assert all(landscape["gauge_self_test"]["passed"] for landscape in results["landscapes"].values())
    assert (Path(folders["ghost"]) / "repair.json").is_file()
    for name in ("to", "weight"):
        assert (Path(folders[name]) / "landscape.json").is_file()


def test_a_run_in_float32_finds_what_it_finds_on_the_cpu(tmp_path: Path) -> None:
    folders = on_the_ghost("wide", tmp_path)
    there, here = (results_of(folders[device]) for device in ("ghost", "cpu"))
    for results in (there, here):
        for machine in ("timings", "versions", "environment"):
            del results[machine]
    assert there["answer"] == here["answer"]
    found, expected = numbers(there), numbers(here)
    assert found.keys() == expected.keys()
    wrong = [(k, found[k], v) for k, v in expected.items() if not np.isclose(found[k], v, rtol=1e-3, atol=5e-4)]
    assert not wrong


@pytest.mark.parametrize("case", ["plain_module", "adapter"])
def test_the_public_functions(case: str, tmp_path: Path) -> None:
    found = on_the_ghost(case, tmp_path)
    if case == "adapter":
        assert found["ghost"].pop("callback") == 3
    there, here = numbers(found["ghost"]), numbers(found["cpu"])
    assert there.keys() == here.keys()
    np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-4, atol=1e-5)
