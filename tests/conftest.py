"""Tiny backbones on disk, made once per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import shell, smoke_run, tiny_run
from tiny_models import save, tiny_gpt2, tiny_llama

__all__ = ["shell", "smoke_run", "tiny_run"]  # fixtures


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
