"""Tiny backbones on disk, made once per session; the tiers of the tests, and which tests may start a process.

`make check` runs what has none of the markers in TIERS. A test that starts a process without one of them fails.
"""

import multiprocessing.process
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import shell, smoke_run, tiny_run
from tiny_models import save, tiny_gpt2, tiny_llama

__all__ = ["shell", "smoke_run", "tiny_run"]  # fixtures


# The longest first: whoever balances the workers begins with them.
TIERS = ("study", "process", "browser", "slow")
# Whoever uses one of these fixtures waits for a process.
TIER_OF_FIXTURE = {
    "uninterrupted": "study",
    "shell": "process",
    "smoke_run": "process",
    "tiny_run": "process",
    "browser": "browser",
}
STARTS_A_PROCESS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, tier in TIER_OF_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(tier)
    items.sort(key=lambda item: min((TIERS.index(mark) for mark in _tiers(item)), default=len(TIERS)))


def _tiers(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()} & set(TIERS)


class _Guard:
    """Fails a test that starts a process and is not marked: a fast test must stay one."""

    forbids = False

    def __call__(self, event: str, arguments: Any = ()) -> None:
        if self.forbids and event in STARTS_A_PROCESS:
            pytest.fail(f"{event}{arguments!r:.200}: mark the test `process`, `browser` or `study` (tests/conftest.py)")


guard = _Guard()
sys.addaudithook(guard)
_start = multiprocessing.process.BaseProcess.start


def _guarded_start(process: multiprocessing.process.BaseProcess) -> None:
    guard("os.fork", process)
    _start(process)


multiprocessing.process.BaseProcess.start = _guarded_start  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard.forbids = not _tiers(item) & {"study", "process", "browser"}
    try:
        return (yield)
    finally:
        guard.forbids = False


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), tiny_llama())


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("gpt2"), tiny_gpt2())


@pytest.fixture(params=["llama", "gpt2"])
def any_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices are fastest on one thread, by far so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
