"""Checksums of a folder: recorded before a name is given, compared by whoever reads."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.files import manifest
from llm_forgetting.files.manifest import MANIFEST


class Crash(BaseException):
    """What a killed process is to the code that it runs."""


def crash(*args: object) -> None:
    raise Crash


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def test_a_checksum_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    manifest.write(tmp_path, "phase.json", b"abc", {"phase": "result"})
    # the test vector of FIPS 180-2, appendix B.1
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    found = content(tmp_path)
    assert found["artifacts"] == {"phase.json": [abc]}
    assert found["results"] == {"phase": "result"}
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8").replace(found["sha256"], "")
    assert found["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert manifest.checked(tmp_path, "phase.json") == b"abc"
    assert manifest.damaged(tmp_path) == []


def test_after_a_crash_at_any_moment_an_artifact_is_as_recorded_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = os.replace, []

    def few(source: object, target: object) -> None:
        if not left:
            raise Crash
        left.pop()
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", few)
    for data in (b"first", b"second"):
        for moves in range(3):  # none, the manifest's, and the artifact's
            left[:] = [None] * moves
            if moves < 2:
                with pytest.raises(Crash):
                    manifest.write(tmp_path, "file", data)
            else:
                manifest.write(tmp_path, "file", data)
            expected = {0: [], 1: ["file"] if data == b"first" else [], 2: []}[moves]
            assert manifest.damaged(tmp_path) == expected
            assert (tmp_path / "file").exists() == (not expected and (data, moves) != (b"first", 0))
    assert manifest.checked(tmp_path, "file") == b"second"


def test_an_earlier_version_of_a_file_passes_only_while_it_is_replaced(tmp_path: Path) -> None:
    for data in (b"first", b"second", b"third"):
        manifest.write(tmp_path, "file", data)
    assert content(tmp_path)["artifacts"]["file"] == [manifest.digest(b"second"), manifest.digest(b"third")]
    (tmp_path / "file").write_bytes(b"first")
    assert manifest.damaged(tmp_path) == ["file"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "foreign": lambda path: path.write_bytes(b'{"artifacts": {}}'),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    manifest.write(tmp_path, "results.json", b'{"a": 1}')
    DAMAGES[damage](tmp_path / "results.json")
    assert manifest.damaged(tmp_path) == ["results.json"]
    with pytest.raises(UserError, match=r"results\.json must be .*; put it back, or make it again") as error:
        manifest.checked(tmp_path, "results.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    manifest.write(tmp_path, "results.json", b'{"a": 1}')
    DAMAGES[damage](tmp_path / MANIFEST)
    with pytest.raises(UserError, match=r"manifest\.json is damaged; put it back, or remove it") as error:
        manifest.checked(tmp_path, "results.json")
    assert "\n" not in str(error.value)


def test_a_manifest_of_a_later_version_is_read(tmp_path: Path) -> None:
    manifest.write(tmp_path, "results.json", b"new")
    later = {**content(tmp_path), "sha256": "", "later": 1}
    text = json.dumps(later)
    (tmp_path / MANIFEST).write_text(text.replace('"sha256": ""', f'"sha256": "{manifest.digest(text.encode())}"'))
    assert manifest.checked(tmp_path, "results.json") == b"new"


def test_what_no_manifest_lists_is_read_unchecked_and_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"old")
    assert manifest.checked(tmp_path, "results.json") == b"old"
    (line,) = manifest.unchecked(tmp_path)
    assert line.endswith("no checksum in manifest.json for results.json, which could not be checked")
    manifest.write(tmp_path, "results.json", b"new")
    assert manifest.unchecked(tmp_path) == []


def test_the_files_of_a_folder_are_recorded_before_it_has_its_name(tmp_path: Path) -> None:
    with manifest.recorded_folder(tmp_path, "checkpoint") as scratch:
        (scratch / "weights").write_bytes(b"abc")
        assert not (tmp_path / MANIFEST).exists()
    assert list(content(tmp_path)["artifacts"]) == ["checkpoint/weights"]
    manifest.require_whole(tmp_path, "checkpoint", "do this")
    flip(tmp_path / "checkpoint/weights")
    with pytest.raises(UserError, match=r"checkpoint/weights must be what was written .* another one; do this"):
        manifest.require_whole(tmp_path, "checkpoint", "do this")
    (tmp_path / "checkpoint/weights").unlink()
    with pytest.raises(UserError, match=r"it is gone; do this"):
        manifest.require_whole(tmp_path, "checkpoint", "do this")
    manifest.require_whole(tmp_path, "check", "another part")


def test_an_input_must_stay_what_it_was(tmp_path: Path) -> None:
    manifest.require_inputs(tmp_path, "backbone", {"config.json": "1"})
    manifest.require_inputs(tmp_path, "backbone", {"config.json": "1", "came_later.json": "2"})
    for changed in ({"config.json": "2"}, {"came_later.json": "2"}):
        with pytest.raises(UserError, match=r"the backbone's config\.json must be the same as when .* was begun"):
            manifest.require_inputs(tmp_path, "backbone", changed)
    manifest.require_inputs(tmp_path, "rows", {"anatomy": "1"})


def test_a_folder_is_held_to_the_inputs_of_what_it_takes_from_another(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    for path in (source, folder):
        path.mkdir()
    manifest.require_inputs(source, "rows", {"first": "1", "second": "2"})
    manifest.require_inputs(folder, "rows", {"third": "3"})
    manifest.take_inputs(folder, source, ("rows",), task="first")
    assert content(folder)["inputs"] == {"rows": {"third": "3", "first": "1"}}
    manifest.require_inputs(source, "text", {"evaluation.text": "1"})
    manifest.take_inputs(folder, source, ("rows", "text"))
    assert content(folder)["inputs"]["text"] == {"evaluation.text": "1"}
    other = tmp_path / "other"
    other.mkdir()
    manifest.require_inputs(other, "rows", {"first": "changed"})
    with pytest.raises(UserError, match="the questions of task first must be the same"):
        manifest.take_inputs(folder, other, ("rows",), task="first")
