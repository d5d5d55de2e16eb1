"""Disks that are full, read-only or broken, and signals: one line or a hint, and nothing that was computed is lost."""

import errno
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, THOROUGH, Moment, Shell, read_results, same_results
from small_study import SMALL

from llm_forgetting.cli.main import main
from llm_forgetting.cli.signals import Stopped, stoppable
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.study.scheduler import StudyFolder

pytestmark = pytest.mark.usefixtures("one_thread")

# --- disks ------------------------------------------------------------------------------------------------------------

REMEDIES = {errno.ENOSPC: "make room", errno.EROFS: "choose a folder that can be written", errno.EIO: "check that disk"}
DATA = ["--task", "synthetic_1", "--data.source", "synthetic"]
COMMANDS: dict[str, list[str]] = {
    "report": ["report", "RUN"],
    "compare": ["compare", "RUN", "RUN2", "--output", "compare.html"],
    "records": ["study", "--records", str(ROOT / "docs/results/flatness/records.json.gz"), "--folder", "study"],
    "study": ["study", "small.yaml", "--folder", "study", "--workers", "1"],
    "repair": ["repair", "RUN"],
    "evaluate": ["evaluate", "RUN/checkpoint_after_task1", *DATA, "--limit", "4"],
    "landscape": ["landscape", "RUN/checkpoint_after_task1", *DATA, "--landscape.num_items", "4"],
}
CASES = [(command, number) for command in COMMANDS for number in REMEDIES]


@pytest.mark.parametrize(("command", "number"), CASES if THOROUGH else CASES[::4])
def test_a_disk_that_takes_nothing_is_one_line(  # noqa: PLR0917
    command: str,
    number: int,
    tiny_run: Path,
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is written gets its name at the end, by os.replace: from here on that fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(shell.cache))
    for name in ("RUN", "RUN2"):
        shutil.copytree(tiny_run, tmp_path / name)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    before = {path: path.read_bytes() for path in (tmp_path / "RUN").rglob("*.json")}

    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr()
    assert re.fullmatch("error: [^\n]+\n", said.err), said.err
    assert os.strerror(number) in said.err
    assert {path: path.read_bytes() for path in before} == before
    if command == "evaluate":
        assert "synthetic_1" in said.out  # the table, which is in no file


LOCKS = {
    errno.ENOLCK: "choose a disk that can lock files",
    errno.EOPNOTSUPP: "choose a disk that can lock files",
    errno.EIO: "check that disk",
    errno.EACCES: "is being written by another",
}


@pytest.mark.parametrize("folder", [RunFolder, StudyFolder])
@pytest.mark.parametrize("number", LOCKS)
def test_a_lock_that_the_disk_refuses_is_one_line(
    folder: Callable[[Path], Any], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=LOCKS[number]) as error, folder(tmp_path).locked():
        pass
    assert "\n" not in str(error.value)


# --- signals ----------------------------------------------------------------------------------------------------------

SIGNALS = [
    ("training_step", signal.SIGTERM, 2),
    ("landscape_point", signal.SIGINT, 2),
    ("landscape_point", signal.SIGHUP, 1),
    ("training_step", signal.SIGHUP, 1),
    ("trainer_state", signal.SIGTERM, 1),
]


@pytest.mark.parametrize(("kind", "number", "times"), SIGNALS if THOROUGH else SIGNALS[:1])
def test_a_signal_says_how_to_go_on_and_going_on_works(
    kind: str, number: signal.Signals, times: int, shell: Shell, tiny_run: Path
) -> None:
    stopped = shell.run_tiny(moment=Moment(kind, count=3, signal=number, times=times))
    assert stopped.status == 128 + number, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "stopped; nothing finished is lost. Go on with: " in stopped.stdout
    assert f"run --resume {stopped.folder}" in stopped.stdout
    assert shell.run("--resume", stopped.folder).status == 0
    assert same_results(read_results(stopped.folder), read_results(tiny_run))


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Puts the handlers of signals back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_whatever_comes_within_a_second_changes_nothing() -> None:
    put_back = []

    def stop_many_times() -> None:
        with stoppable():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                put_back.append(True)

    with pytest.raises(Stopped) as stop:
        stop_many_times()
    signal.raise_signal(signal.SIGINT)  # while the command says how to go on
    assert put_back == [True]
    assert stop.value.number == signal.SIGTERM


@pytest.mark.usefixtures("_handlers")
def test_a_command_that_ends_by_itself_leaves_the_handlers_as_they_were() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    with stoppable():
        signal.raise_signal(signal.SIGHUP)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before
