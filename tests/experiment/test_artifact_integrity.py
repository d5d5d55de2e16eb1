"""Every artifact damaged in every way, before every command: one clear line, or the results of an undamaged run.

In CI every cell, else a seeded sample. Commands run in this process, on a run that is as small as runs get.
"""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import THOROUGH, TINY, made_once, read_results, same_results
from test_manifest import DAMAGES

from llm_forgetting.cli.main import main
from llm_forgetting.files.manifest import MANIFEST, read_manifest

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]

SMALLEST: dict[str, Any] = {
    **TINY,
    "data": {**TINY["data"], "train_items": 4, "test_items": 2},
    "training": {**TINY["training"], "batch_size": 4, "num_epochs": 1},
    "evaluation": {"recovery_items": 2, "recovery_epochs": 1},
    "landscape": {
        "max_evaluations": 23, "tolerance": 1.0, "resolution": 5, "directions": 2, "num_items": 2, "self_test_items": 1,
    },
    "output": {"figures": False},
}  # fmt: skip
COMMANDS = ("resume", "report", "compare", "repair", "evaluate")
FIRST = "checkpoint_after_task1/"
# Beginnings of the artifacts that a command reads.
READ: Mapping[str, tuple[str, ...]] = {
    "resume": ("",),
    "report": (MANIFEST, "results.json", "items.jsonl"),
    "compare": (MANIFEST, "results.json"),
    "repair": (MANIFEST, "results.json", "config.yaml", "checkpoint_after_task"),
    "evaluate": (MANIFEST, "results.json", FIRST),
}
CELLS, KINDS = (1000, len(DAMAGES)) if THOROUGH else (10, 1)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setenv("LLM_FORGETTING_CACHE", str(base / "cache"))
        patch.setattr("llm_forgetting.report.figures.run.save", lambda figure, stem, dpi: None)
        yield


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory, without_pictures: None) -> tuple[Path, Path]:
    """Two finished runs that differ in their seed alone; nobody writes into them."""

    def make(folder: Path) -> None:
        (folder / "smallest.yaml").write_text(yaml.safe_dump(SMALLEST))
        for seed in ("0", "1"):
            config = ["--config", str(folder / "smallest.yaml"), "--output_dir", str(folder / seed)]
            assert main(["run", *config, "--seed", seed]) == 0

    folder = made_once(tmp_path_factory, "smallest", make)
    one, other = (next((folder / seed).iterdir()) for seed in ("0", "1"))
    return one, other


def arguments(command: str, run: Path, whole: Path, out: Path) -> list[str]:
    return {
        "resume": ["run", "--resume", str(run)],
        "report": ["report", str(run)],
        "compare": ["compare", str(run), str(whole), "--output", str(out / "compare.html")],
        "repair": ["repair", str(run)],
        "evaluate": [
            "evaluate", str(run / FIRST), "--task", "synthetic_1", "--data.source", "synthetic", "--limit", "3",
            "--output_dir", str(out),
        ],
    }[command]  # fmt: skip


def outcome(command: str, run: Path, out: Path) -> Any:
    """What a command found, without times and places."""
    if command == "resume":
        return read_results(run), (run / "items.jsonl").read_bytes()
    if command == "report":
        return (run / "report.html").read_text(encoding="utf-8").replace(str(run), "RUN")
    if command == "compare":
        return (out / "compare.html").read_text(encoding="utf-8").replace(str(out), "OUT").replace(str(run), "RUN")
    if command == "repair":
        return (run / "repair.json").read_bytes(), (run / "repaired_adapter/adapter_model.safetensors").read_bytes()
    (folder,) = out.glob("evaluation_*")
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    found["tasks"][0]["subjects"][0]["seconds"] = None
    return found["tasks"], found["warnings"], (folder / "items.jsonl").read_bytes()


def same(command: str, one: Any, other: Any) -> bool:
    if command == "resume":
        return same_results(one[0], other[0]) and one[1:] == other[1:]
    return bool(one == other)


class Bench:
    """Runs commands on copies of the finished run, always in one place, so that paths in pages agree."""

    def __init__(self, runs: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.whole, self.foreign = runs
        self.folder = folder
        self._capsys = capsys
        self._expected: dict[str, Any] = {}

    def run(self, command: str, damage: Callable[[Path], object]) -> tuple[int, str, str, Any]:
        """Exit status, stdout, stderr and outcome of a command on a damaged copy."""
        copy, out = self.folder / "run", self.folder / "out"
        for path in (copy, out):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.whole, copy)
        out.mkdir()
        damage(copy)
        self._capsys.readouterr()
        status = main(arguments(command, copy, self.whole, out))
        said = self._capsys.readouterr()
        return status, said.out, said.err, outcome(command, copy, out) if status == 0 else None

    def expected(self, command: str) -> Any:
        if command not in self._expected:
            status, _, err, found = self.run(command, lambda run: None)
            assert status == 0, err
            self._expected[command] = found
        return self._expected[command]

    def damage(self, artifact: str, kind: str) -> Callable[[Path], object]:
        if kind == "foreign":
            return lambda run: shutil.copyfile(self.foreign / artifact, run / artifact)
        return lambda run: DAMAGES[kind](run / artifact)


def complaint(command: str, artifact: str, kind: str, result: tuple[int, str, str, Any], bench: Bench) -> str:
    """What is wrong with a cell of the matrix; nothing, if nothing is."""
    status, out, err, found = result
    if status == 2:
        one_line = err.startswith("error: ") and err.count("\n") == 1
        # A configuration's fault is named by its field, and a foreign manifest lists what is not there.
        named = Path(artifact).name in err or artifact in ("config.yaml", MANIFEST)
        return "" if one_line and named else f"unclear: {err}"
    if status != 0:
        return f"status {status}: {err}"
    if not same(command, found, bench.expected(command)):
        return "other results"
    if artifact == MANIFEST:
        return "" if kind == "deleted" and "could not be checked" in out else "a damaged manifest was not noticed"
    if command == "resume":
        said = ("is gone",) if artifact.startswith("checkpoint_") else ("is damaged or gone", "was changed")
        return "" if any(f"{artifact} {words}" in out for words in said) else "silence"
    # of a run that has no results yet the set-up says what was trained on
    return "" if (command, artifact, kind) == ("evaluate", "results.json", "deleted") else "damage was not noticed"


def cells(runs: tuple[Path, Path], command: str, *, read: bool) -> list[tuple[str, str, str]]:
    """(command, artifact, damage) of what a command reads, or of the rest; where the damage changes something."""
    artifacts = [MANIFEST, *read_manifest(runs[0]).artifacts]
    return [
        (command, artifact, kind)
        for artifact, kind in itertools.product(artifacts, DAMAGES)
        if artifact.startswith(READ[command]) == read
        and (kind != "foreign" or (runs[0] / artifact).read_bytes() != (runs[1] / artifact).read_bytes())
    ]


def test_damage_is_one_clear_line_or_changes_nothing(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(runs, tmp_path, capsys)
    everything = [cell for command in COMMANDS for cell in cells(runs, command, read=True)]
    assert len(everything) > 200
    wrong = {}
    for command, artifact, kind in random.Random(0).sample(everything, min(CELLS, len(everything))):
        found = bench.run(command, bench.damage(artifact, kind))
        if said := complaint(command, artifact, kind, found, bench):
            wrong[command, artifact, kind] = said
    assert wrong == {}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "resume"])
def test_what_a_command_does_not_read_does_not_change_it(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """All of it damaged at once."""
    bench = Bench(runs, tmp_path, capsys)
    for chosen in list(DAMAGES)[-KINDS:]:
        damages = [
            bench.damage(artifact, kind) for _, artifact, kind in cells(runs, command, read=False) if kind == chosen
        ]
        assert len(damages) > 10
        status, _, err, found = bench.run(command, lambda run, damages=damages: [damage(run) for damage in damages])
        assert status == 0, err
        assert same(command, found, bench.expected(command)), chosen


def test_a_scan_computes_a_damaged_phase_again_and_refuses_a_damaged_checkpoint(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    small = {f"--landscape.{name}": str(value) for name, value in SMALLEST["landscape"].items()}
    small |= {"--data.source": "synthetic", "--data.train_items": "4", "--data.test_items": "2"}
    scan = ["landscape", str(run / FIRST), "--task", "synthetic_1", "--output_dir", str(tmp_path / "scans")]
    scan += [word for option in small.items() for word in option]
    assert main(scan) == 0
    (folder,) = (tmp_path / "scans").iterdir()
    before = json.loads((folder / "landscape.json").read_text(encoding="utf-8"))
    for name in ("phases/landscape_adapter.json", "landscape.json"):
        DAMAGES["flipped"](folder / name)
    assert main([*scan, "--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "phases/landscape_adapter.json is damaged or gone, and is computed again" in said
    assert "landscape.json is damaged or gone, and is written again" in said
    after = json.loads((folder / "landscape.json").read_text(encoding="utf-8"))
    assert {**after, "timings": None} == {**before, "timings": None}
    DAMAGES["flipped"](run / FIRST / "adapter_config.json")
    assert main(scan) == 2
    assert "checkpoint_after_task1/adapter_config.json must be what was written" in capsys.readouterr().err
