"""Checksums of a folder's artifacts and of what they were computed from: manifest.json. No torch."""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from llm_forgetting.errors import UserError, program
from llm_forgetting.files import decode, encode, whole_folder, write_bytes, write_text

MANIFEST = "manifest.json"
Kind = TypeVar("Kind")
TURN = ".manifest.lock"
"""File that is there while several processes write into a folder: who holds its lock may write the manifest."""
INPUTS = {
    "config": "the configuration ({}, and the file of data.definitions)",
    "rows": "the questions of task {}",
    "shots": "the few-shot rows of task {}",
    "probes": "the items of probe {}",
    "samples": "the documents of harness:{}",
    "text": "the control text ({})",
    "backbone": "the backbone's {}",
    "adapter": "{}",
}
"""Kinds of inputs, and what messages call one by its name."""


@dataclass(frozen=True)
class Manifest:
    """Manifest of a folder: manifest.json. Every checksum is a SHA-256 in hexadecimal.

    artifacts: by path in the folder, in the order of first writing; an artifact that was replaced has two, of before and of
    now. results: of what each phase found, without its times. inputs: of what was read, by kind and name. sha256: of this
    record while its own `sha256` is empty.
    """

    artifacts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    sha256: str = ""


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file in hexadecimal, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path in there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) or "" for path in files}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, an empty one where there is none; UserError where it is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        return Manifest()
    advice = f"{path} is damaged; put it back, or remove it: then nothing can be checked"
    data = path.read_bytes()
    try:
        manifest = decode(Manifest, data, file=MANIFEST)
    except UserError as error:
        raise UserError(f"{advice} ({error})") from error
    if manifest.sha256 != digest(data.replace(manifest.sha256.encode(), b"")):
        raise UserError(advice)
    return manifest


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """The manifest is read and written by this process alone, where several write into the folder (see TURN)."""
    if not (folder / TURN).exists():
        yield
        return
    with FileLock(folder / TURN):
        yield


def _save(folder: Path, manifest: Manifest) -> None:
    unsealed = replace(manifest, sha256="")
    write_text(folder / MANIFEST, encode(replace(unsealed, sha256=digest(encode(unsealed).encode()))))


def record(folder: Path, artifacts: Mapping[str, str], results: Mapping[str, str] | None = None) -> None:
    """Record checksums of artifacts by their path in `folder`, before they get their names there."""
    with _turn(folder):
        known = read_manifest(folder)
        entries = dict(known.artifacts)
        for name, now in artifacts.items():
            before = file_digest(folder / name)
            entries[name] = (*(kept for kept in entries.get(name, ()) if kept == before != now), now)
        _save(folder, replace(known, artifacts=entries, results={**known.results, **(results or {})}))


def forget(folder: Path, phases: Sequence[str]) -> None:
    """Record no longer the artifacts of `phases`, which are about to be removed."""
    with _turn(folder):
        known = read_manifest(folder)
        names = {f"phases/{name}.{suffix}" for name in phases for suffix in ("json", "npz")}
        artifacts = {name: found for name, found in known.artifacts.items() if name not in names}
        results = {name: found for name, found in known.results.items() if name not in phases}
        _save(folder, replace(known, artifacts=artifacts, results=results))


def write(folder: Path, name: str, data: bytes, results: Mapping[str, str] | None = None) -> None:
    """Write artifact `name` of `folder`: its checksum first, so that after a crash it is there as recorded, or not there."""
    record(folder, {name: digest(data)}, results)
    write_bytes(folder / name, data)


@contextmanager
def recorded_folder(folder: Path, name: str) -> Iterator[Path]:
    """`whole_folder` for a part of `folder`, whose files are recorded before it gets its name."""
    with whole_folder(folder / name) as scratch:
        yield scratch
        record(folder, {f"{name}/{file}": found for file, found in folder_digests(scratch).items()})


def damaged(folder: Path, part: str = "") -> list[str]:
    """Recorded artifacts that are not there as they were written; of those whose path begins with `part`."""
    artifacts = {name: known for name, known in read_manifest(folder).artifacts.items() if name.startswith(part)}
    return [name for name, known in artifacts.items() if file_digest(folder / name) not in known]


def checked(folder: Path, name: str) -> bytes:
    """The bytes of an artifact, unchecked where its folder's manifest does not list it (or is not there).

    UserError where it cannot be read, or is not what was written.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise UserError(
            f"{folder / name} must be a file that can be read, and is not ({error.strerror or error}); {_remedy(folder)}"
        ) from error
    known = read_manifest(folder).artifacts.get(name)
    if known is not None and digest(data) not in known:
        raise UserError(_said(folder / name, _remedy(folder)))
    return data


def read_checked(kind: type[Kind], folder: Path, name: str) -> Kind:
    """The record of an artifact, with its arrays out of the file beside it; UserError as `checked` and `decode`."""
    found = checked(folder, name)
    return decode(kind, found, file=str(folder / name), beside=lambda other: checked(folder, Path(other).name))


def require_whole(folder: Path, part: str, remedy: str) -> None:
    """Raise UserError where a recorded file of the sub-folder `part` is not there as it was written."""
    for name in damaged(folder, f"{part}/"):
        raise UserError(_said(folder / name, remedy))


def _said(path: Path, remedy: str) -> str:
    state = "damaged or another one" if path.exists() else "gone"
    return f"{path} must be what was written (see {MANIFEST}), it is {state}; {remedy}"


def _remedy(folder: Path) -> str:
    """What to do where an artifact of `folder` is damaged that its command writes again."""
    if (folder / "config.yaml").is_file():
        return f"it is written again by: {program()} run --resume {shlex.quote(str(folder))}"
    return "put it back, or make it again by the command that wrote it"


def unchecked(folder: Path) -> list[str]:
    """One line where artifacts of a run are older than its manifest, or than manifests; else nothing."""
    patterns = (
        *("config.yaml", "results.json", "results.npz", "items.jsonl", "phases/*.json", "phases/*.npz"),
        "checkpoint_*/adapter_model.safetensors",
    )
    there = [path.relative_to(folder).as_posix() for pattern in patterns for path in sorted(folder.glob(pattern))]
    missing = [name for name in there if name not in read_manifest(folder).artifacts]
    if not missing:
        return []
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return [f"{folder}: no checksum in {MANIFEST} for {missing[0]}{more}, which could not be checked"]


def require_inputs(folder: Path, kind: str, checksums: Mapping[str, str]) -> None:
    """Record what is read for `folder`, by name; UserError where something is not what it was when it was read first."""
    with _turn(folder):
        known = read_manifest(folder)
        before = known.inputs.get(kind, {})
        for name, checksum in before.items():
            if checksums.get(name) != checksum:
                raise UserError(
                    f"{INPUTS[kind].format(name)} must be the same as when {folder} was begun, and is not; undo the change, "
                    f"or start anew in another folder"
                )
        if set(checksums) - set(before):
            _save(folder, replace(known, inputs={**known.inputs, kind: {**before, **checksums}}))


def take_inputs(folder: Path, source: Path, kinds: Sequence[str], *, task: str | None = None) -> None:
    """Hold `folder` to the inputs of the folder that it takes artifacts from; of rows to those of `task` alone, if given."""
    known, taken = read_manifest(folder).inputs, read_manifest(source).inputs
    for kind in kinds:
        checksums = taken.get(kind, {})
        if task is not None and kind in ("rows", "shots"):
            checksums = {name: checksum for name, checksum in checksums.items() if name == task}
        require_inputs(folder, kind, {**known.get(kind, {}), **checksums})
