"""The run folder: whole files, phases that are computed once, a lock, and what they cost."""

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts import meter as metering
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import encode_json, whole_folder, write_text
from llm_forgetting.landscape.comparison import COMPARED, compare_landscapes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path)


class Crash(BaseException):
    """What no `except Exception` catches."""


def crash(*args: object) -> None:
    raise Crash


# --- files and folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_crash_while_writing_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, step, crash)
    with pytest.raises(Crash):
        write_text(tmp_path / "file", "new and longer")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (steps.append(name), real(*args))[1])
    write_text(tmp_path / "file", "ü")
    assert steps == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == "ü".encode()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(*, ending: type[BaseException] | None) -> None:
        with whole_folder(tmp_path / "deep" / "folder") as scratch:
            (scratch / "all").write_text("x")
            assert not (tmp_path / "deep" / "folder").exists()
            if ending is not None:
                raise ending

    for ending in (Crash, OSError):
        with pytest.raises(ending):
            fill(ending=ending)
        assert list((tmp_path / "deep").iterdir()) == []
    fill(ending=None)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]
    assert (tmp_path / "deep" / "folder" / "all").read_text() == "x"
    assert (tmp_path / "deep" / "folder").stat().st_mode & 0o777 == 0o755


def test_a_new_folder_replaces_all_of_an_old_one_and_a_crash_does_not(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with whole_folder(tmp_path / "folder") as scratch:
            (scratch / name).write_text("x")
    with pytest.raises(Crash), whole_folder(tmp_path / "folder") as scratch:
        raise Crash
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda pattern: "experiment_20300101_000000")
    names = [RunFolder.create(tmp_path / "outputs").path.name for _ in range(3)]
    assert names == ["experiment_20300101_000000", "experiment_20300101_000000_2", "experiment_20300101_000000_3"]
    for number in range(4, 1000):
        (tmp_path / "outputs" / f"experiment_20300101_000000_{number}").mkdir()
    with pytest.raises(UserError, match="a thousand runs of this second"):
        RunFolder.create(tmp_path / "outputs")


def test_a_run_s_name_is_the_time(tmp_path: Path) -> None:
    name = RunFolder.create(tmp_path).path.name
    assert abs(time.mktime(time.strptime(name, "experiment_%Y%m%d_%H%M%S")) - time.time()) < 5


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output\.folder must be writable, .*file/deep is not"):
        RunFolder.create(tmp_path / "file" / "deep")


def test_only_a_folder_with_a_configuration_can_be_opened(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"--resume needs the folder of an earlier run"):
        RunFolder.open(folder.path)
    folder.write("config.yaml", "")
    assert RunFolder.open(folder.path).path == folder.path


def test_a_locked_folder_refuses_a_second_writer_until_it_is_free(folder: RunFolder) -> None:
    other = RunFolder(folder.path)
    with folder.locked(), pytest.raises(UserError, match="is being written by another process"), other.locked():
        pass
    with other.locked():
        pass
    with pytest.raises(Crash), folder.locked():
        raise Crash
    with other.locked():
        pass


# --- phases -----------------------------------------------------------------------------------------------------------------


def test_a_phase_is_computed_once(folder: RunFolder) -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"value": (1, 2)}

    assert not folder.has("phase")
    results = [folder.once("phase", compute), RunFolder(folder.path).once("phase", compute)]
    # The first answer has been through JSON too, so that a resumed run sees what an uninterrupted one saw.
    assert results == [{"value": [1, 2]}, {"value": [1, 2]}]
    assert len(calls) == 1
    assert folder.has("phase")


def test_a_phase_that_fails_leaves_nothing_and_is_computed_again(folder: RunFolder) -> None:
    with pytest.raises(Crash):
        folder.once("phase", crash)
    assert not folder.has("phase")
    assert list(folder.phases.iterdir()) == []
    assert folder.once("phase", lambda: 3) == 3


def test_a_half_written_phase_is_no_phase(folder: RunFolder) -> None:
    (folder.phases / ".phase.json.x1").write_text('{"phase": ')
    assert not folder.has("phase")
    assert folder.timings() == {}
    assert folder.once("phase", lambda: 3) == 3


def test_timings_are_those_of_every_phase_in_order(folder: RunFolder) -> None:
    for name in ("second", "first"):
        folder.once(name, lambda: time.sleep(0.02))
        time.sleep(0.02)
    timings = folder.timings()
    assert list(timings) == ["second", "first"]
    for phase in timings.values():
        assert set(phase) == {"wall_seconds", "peak_memory_bytes"}
        assert 0.02 <= phase["wall_seconds"] < 1


def test_timings_hold_the_gpu_s_memory_where_there_is_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        """As much of torch.cuda as a meter asks."""

        def reset_peak_memory_stats(self) -> None:
            pass

        def max_memory_allocated(self) -> int:
            return 7

    monkeypatch.setattr(metering, "_cuda_in_use", Gpu)
    folder.once("phase", lambda: None)
    assert folder.timings()["phase"]["peak_gpu_memory_bytes"] == 7


# --- numbers ----------------------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_spelt(folder: RunFolder) -> None:
    values = {"a": [math.nan, math.inf, (-math.inf, 1.5)], "b": {"c": np.float64("nan")}, "d": None, "e": True}
    text = encode_json(values)
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "a": ["nan", "inf", ["-inf", 1.5]], "b": {"c": "nan"}, "d": None, "e": True,
    }  # fmt: skip
    found = folder.once("phase", lambda: values)
    assert math.isnan(float(found["a"][0]))
    assert float(found["a"][2][0]) == -math.inf
    assert folder.once("phase", lambda: None) == found
    assert encode_json(found) == text


def test_a_number_survives_to_the_last_bit(folder: RunFolder) -> None:
    numbers = np.random.default_rng(0).normal(size=100).tolist()
    assert folder.once("phase", lambda: numbers) == numbers


def test_text_stays_readable() -> None:
    assert "θ₀ → ü" in encode_json({"text": "θ₀ → ü"})


# --- the meter ----------------------------------------------------------------------------------------------------------------


def test_a_meter_reads_seconds_and_bytes() -> None:
    with Meter() as meter:
        block = np.ones(25_000_000)  # 200 MB
        block.sum()
        time.sleep(0.05)
    reading = meter.reading()
    assert 0.05 <= reading["wall_seconds"] < 10
    assert 200e6 < reading["peak_memory_bytes"] < 50e9


def test_the_peak_is_the_block_s_own() -> None:
    """On Linux the high-water mark starts again with every block."""
    if not metering._CLEAR_REFS.exists():
        return
    with Meter() as large:
        np.ones(25_000_000).sum()
    with Meter() as small:
        pass
    assert large.reading()["peak_memory_bytes"] - small.reading()["peak_memory_bytes"] > 150e6


def test_a_meter_works_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metering, "_CLEAR_REFS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(metering.Path, "read_text", _refuse)
    with Meter() as meter:
        pass
    assert meter.reading()["peak_memory_bytes"] > 1e6


def _refuse(*args: object, **kwargs: object) -> Iterator[str]:
    raise FileNotFoundError


def test_a_meter_stops_at_the_end_of_its_block() -> None:
    with Meter() as meter:
        pass
    threading.Event().wait(0.05)
    assert meter.reading()["wall_seconds"] < 0.05


# --- landscapes compared ----------------------------------------------------------------------------------------------------


def landscape(rise: float | str, stderr: float | str, scale: float = 1.0, **metrics: float | str) -> dict[str, Any]:
    return {
        "relative_scale": scale,
        "surfaces": {
            "a": {
                "metrics": {**dict.fromkeys(COMPARED, 1.0), **metrics, "flat": False},
                "mean_rise": {"value": rise, "stderr": stderr, "directions": 4},
            }
        },
    }


@pytest.mark.parametrize(
    ("before", "after", "sharper"),
    [
        ((1.0, 0.3), (2.01, 0.4), True),  # the change's stderr is 0.5
        ((1.0, 0.3), (1.99, 0.4), None),
        ((1.0, 0.3), (-0.01, 0.4), False),
        ((1.0, 0.3), (0.01, 0.4), None),
        ((1.0, 0.0), (1.0, 0.0), None),
        ((1.0, 0.3), ("nan", 0.4), None),
        ((1.0, 0.3), ("inf", "nan"), None),
    ],
)
def test_sharper_is_more_than_two_standard_errors(before: Any, after: Any, sharper: bool | None) -> None:
    (found,) = compare_landscapes([("after_task1", landscape(*before)), ("after_task2", landscape(*after, scale=1.5))])
    assert found["sharper"] is sharper
    assert (found["task"], found["before"], found["after"]) == ("a", "after_task1", "after_task2")
    assert found["relative_scale"] == {"before": 1.0, "after": 1.5}
    np.testing.assert_allclose(found["mean_rise"]["change"], float(after[0]) - before[0])
    np.testing.assert_allclose(found["mean_rise"]["stderr"], np.hypot(before[1], float(after[1])))


def test_every_metric_is_compared_after_minus_before() -> None:
    first, second = landscape(0, 1, maximum=5.0, range="inf"), landscape(0, 1, maximum=3.0, range=2.0)
    (found,) = compare_landscapes([("after_task1", first), ("after_task2", second)])
    assert found["metrics"]["maximum"] == {"before": 5.0, "after": 3.0, "change": -2.0}
    assert found["metrics"]["range"]["change"] == -math.inf
    assert set(found["metrics"]) == set(COMPARED)


def test_successive_checkpoints_are_compared_and_one_alone_is_not() -> None:
    three = [(f"after_task{k}", landscape(k, 0.1)) for k in (1, 2, 3)]
    assert [(entry["before"], entry["after"]) for entry in compare_landscapes(three)] == [
        ("after_task1", "after_task2"),
        ("after_task2", "after_task3"),
    ]
    assert compare_landscapes(three[:1]) == []
