"""The run folder: whole files, phases that are computed once, a lock, and what they cost."""

import json
import math
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts import meter as metering
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.artifacts.phase_artifacts import Phase
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import encode, encode_json, to_plain, whole_folder, write_text
from llm_forgetting.files.manifest import read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path)


class Crash(BaseException):
    """What no `except Exception` catches."""


def crash(*args: object) -> None:
    raise Crash


# --- files and folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
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


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    """Also of a file that another library made for its owner alone, as safetensors does."""
    write_text(tmp_path / "file", "x")
    with whole_folder(tmp_path / "folder") as scratch:
        (scratch / "weights").touch(mode=0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o666 & ~umask, "folder": 0o777 & ~umask, "weights": 0o666 & ~umask}


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    opened, replace = os.open, os.replace
    monkeypatch.setattr(os, "open", lambda path, *args: (steps.append(Path(path).name), opened(path, *args))[1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *args: (steps.append("replace"), replace(*args))[1])
    with whole_folder(tmp_path / "folder") as scratch:
        (scratch / "weights").write_text("x")
        steps.clear()
    assert steps == ["weights", "fsync", scratch.name, "fsync", "replace"]


def test_what_a_killed_process_left_is_removed_by_who_holds_the_lock(folder: RunFolder) -> None:
    folder.write("config.yaml", "")
    kept = set(folder.path.rglob("*"))
    (folder.path / "checkpoint_after_task1").mkdir()
    for name in ("phases/.setup.json.0123abcd", "checkpoint_after_task1/.README.md.89ab4567"):
        (folder.path / name).write_text("half")
    (folder.path / ".checkpoint_after_task2.01234567").mkdir()
    (folder.path / ".checkpoint_after_task2.01234567" / "weights").write_text("half")
    with folder.locked():
        left = set(folder.path.rglob("*"))
    assert left - kept == {folder.path / ".lock", folder.path / "checkpoint_after_task1"}


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


NUMBER = Phase("phase", int)
PLACES = Phase("phase", tuple[int, ...])
VALUES = Phase("phase", dict[str, tuple[float, ...]])


def test_a_phase_is_computed_once(folder: RunFolder) -> None:
    calls: list[int] = []

    def compute() -> tuple[int, ...]:
        calls.append(1)
        return (True, 2)

    assert not folder.has(PLACES)
    assert folder.read(PLACES) is None
    results = [folder.once(PLACES, compute), RunFolder(folder.path).once(PLACES, compute), folder.read(PLACES)]
    # The first answer has been through JSON too, so that a resumed run sees what an uninterrupted one saw.
    assert [type(result[0]) for result in results if result] == [int, int, int]
    assert results == [(1, 2), (1, 2), (1, 2)]
    assert len(calls) == 1
    assert folder.has(PLACES)


def test_a_phase_that_fails_leaves_nothing_and_is_computed_again(folder: RunFolder) -> None:
    with pytest.raises(Crash):
        folder.once(NUMBER, crash)
    assert not folder.has(NUMBER)
    assert list(folder.phases.iterdir()) == []
    assert folder.once(NUMBER, lambda: 3) == 3


def test_a_half_written_phase_is_no_phase(folder: RunFolder) -> None:
    (folder.phases / ".phase.json.x1").write_text('{"phase": ')
    assert not folder.has(NUMBER)
    assert folder.timings() == {}
    assert folder.once(NUMBER, lambda: 3) == 3


def damage(path: Path) -> None:
    text = path.read_text()
    assert "3" in text
    path.write_text(text.replace("3", "4", 1))


def test_a_damaged_phase_is_computed_again_and_a_line_says_so(folder: RunFolder) -> None:
    said: list[str] = []
    for broken in (damage, Path.unlink):
        folder.once(NUMBER, lambda: 3)
        broken(folder.phases / "phase.json")
        again = RunFolder(folder.path)
        again.check(said.append)
        assert said == ["phases/phase.json is damaged or gone, and is computed again"]
        assert again.once(NUMBER, lambda: 3) == 3
        again.check(said.append)
        assert len(said) == 1
        said.clear()


def test_a_damaged_phase_is_not_read(folder: RunFolder) -> None:
    folder.once(NUMBER, lambda: 3)
    damage(folder.phases / "phase.json")
    with pytest.raises(UserError, match=r"phases/phase\.json must be what was written"):
        folder.read(NUMBER)


def test_a_phase_of_many_numbers_keeps_them_in_a_file_beside_it(folder: RunFolder, tmp_path: Path) -> None:
    many = {"a/b": tuple(n / 7 for n in range(210_000)), "few": (1.0, 2.0)}
    assert folder.once(VALUES, lambda: many) == many
    assert (folder.phases / "phase.json").stat().st_size < 1000
    assert list(read_manifest(folder.path).artifacts) == ["phases/phase.npz", "phases/phase.json"]
    other = RunFolder.create(tmp_path / "other")
    other.take(VALUES, folder)
    assert other.read(VALUES) == many
    (folder.phases / "phase.npz").unlink()
    with pytest.raises(UserError, match=r"phases/phase\.npz must be a file that can be read"):
        folder.read(VALUES)
    said: list[str] = []
    folder.check(said.append)
    assert said == ["phases/phase.npz is damaged or gone, and is computed again"]
    assert not folder.has(VALUES)
    assert folder.once(VALUES, lambda: many) == many


def test_what_followed_from_another_result_is_computed_again(tmp_path: Path) -> None:
    """Forgetting is computed from scores, scores from training; landscapes have a unit from the first one."""
    names = ("evaluate_initial", "train_task1", "evaluate_after_task1", "landscape_after_task1", "train_task2",
             "landscape_after_task2", "forgetting", "between_checkpoints", "forecast", "comparison")  # fmt: skip
    followed = {
        "evaluate_initial": {"forgetting"},
        "train_task2": {"landscape_after_task2", "forgetting", "between_checkpoints", "forecast", "comparison"},
        "landscape_after_task1": {"landscape_after_task2", "comparison"},
        "between_checkpoints": {"forecast"},
        "forecast": set(),
    }
    for number, (changed, gone) in enumerate(followed.items()):
        for result in (3, 5):
            folder = RunFolder.create(tmp_path, prefix=f"{number}_{result}")
            for name in names:
                folder.once(Phase(name, int), lambda: 3)
            (folder.phases / f"{changed}.json").unlink()
            folder.once(Phase(changed, int), lambda result=result: result)  # type: ignore[misc]
            left = {path.stem for path in folder.phases.glob("*.json")}
            assert set(names) - left == (set() if result == 3 else gone)


def test_timings_are_those_of_every_phase_in_order(folder: RunFolder) -> None:
    for name in ("second", "first"):
        folder.once(Phase(name, float), lambda: time.sleep(0.02) or 0.0)
        time.sleep(0.02)
    timings = folder.timings()
    assert list(timings) == ["second", "first"]
    for phase in timings.values():
        assert set(to_plain(phase)) == {"wall_seconds", "peak_memory_bytes"}
        assert 0.02 <= phase.wall_seconds < 1


def test_timings_hold_the_gpu_s_memory_where_there_is_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        """As much of torch.cuda as a meter asks."""

        def reset_peak_memory_stats(self) -> None:
            pass

        def max_memory_allocated(self) -> int:
            return 7

    monkeypatch.setattr(metering, "_cuda_in_use", Gpu)
    folder.once(NUMBER, lambda: 3)
    assert folder.timings()["phase"].peak_gpu_memory_bytes == 7


# --- numbers ----------------------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_spelt(folder: RunFolder) -> None:
    values = {"a": [math.nan, math.inf, (-math.inf, 1.5)], "b": {"c": np.float64("nan")}, "d": None, "e": True}
    text = encode_json(values)
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "a": ["nan", "inf", ["-inf", 1.5]], "b": {"c": "nan"}, "d": None, "e": True,
    }  # fmt: skip
    numbers = {"a": (math.nan, math.inf, -math.inf, 1.5)}
    record = folder.once(VALUES, lambda: numbers)
    assert [math.isnan(record["a"][0]), *record["a"][1:]] == [True, math.inf, -math.inf, 1.5]
    assert encode(record, dict[str, tuple[float, ...]]) == encode_json({"a": ["nan", "inf", "-inf", 1.5]})


def test_a_number_survives_to_the_last_bit(folder: RunFolder) -> None:
    numbers = tuple(np.random.default_rng(0).normal(size=100).tolist())
    assert folder.once(Phase("phase", tuple[float, ...]), lambda: numbers) == numbers


def test_text_stays_readable() -> None:
    assert "θ₀ → ü" in encode_json({"text": "θ₀ → ü"})


# --- the meter ----------------------------------------------------------------------------------------------------------------


def test_a_meter_reads_seconds_and_bytes() -> None:
    with Meter() as meter:
        block = np.ones(25_000_000)  # 200 MB
        block.sum()
        time.sleep(0.05)
    reading = meter.reading()
    assert 0.05 <= reading.wall_seconds < 10
    assert 200e6 < reading.peak_memory_bytes < 50e9


def test_the_peak_is_the_block_s_own() -> None:
    """On Linux the high-water mark starts again with every block; elsewhere it is the process's own and never falls."""
    # Pages of its own: malloc may hand out what an earlier test freed and what is still resident.
    with Meter() as large, mmap.mmap(-1, 200_000_000) as pages:
        for start in range(0, len(pages), 4096):
            pages[start] = 1
    with Meter() as small:
        pass
    fall = large.reading().peak_memory_bytes - small.reading().peak_memory_bytes
    assert fall > 150e6 if metering._CLEAR_REFS.exists() else fall <= 0


def test_a_meter_works_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metering, "_CLEAR_REFS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(metering.Path, "read_text", _refuse)
    with Meter() as meter:
        pass
    assert meter.reading().peak_memory_bytes > 1e6


def _refuse(*args: object, **kwargs: object) -> Iterator[str]:
    raise FileNotFoundError


def test_a_meter_stops_at_the_end_of_its_block() -> None:
    with Meter() as meter:
        pass
    threading.Event().wait(0.05)
    assert meter.reading().wall_seconds < 0.05
