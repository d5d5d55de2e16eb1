"""Files on a disk: written whole or not at all; of a user, read only where they are what they should be."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_forgetting.errors import UserError

MAX_BYTES = 2_000_000


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`, whatever happens in between."""
    partial = _temporary(path)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes away
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder that becomes `path` when the block ends well, and vanishes when it does not.

    What is in it is on the disk before it has its name, with the rights that the umask grants.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _temporary(path)
    scratch.mkdir()
    try:
        yield scratch
        rights = scratch.stat().st_mode & 0o666
        for written in (file for file in scratch.rglob("*") if file.is_file()):
            written.chmod(rights)
            _sync(written)
        _sync(scratch)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # where no folder can be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove what a killed process left in `folder` of files and folders called `name`; only for who holds its lock."""
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_regular(path: Path, setting: str, kind: str = "a YAML file", most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `most`, which must be `kind`: a pipe would be waited for without end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{setting} must be {kind}; {path} is a folder, pipe or device")
        if status.st_size > most:
            raise UserError(f"{setting} must be {kind} of at most {most:,} bytes; {path} has {status.st_size:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{setting} must be {kind}; {path} cannot be read: {error.strerror or error}") from error


def user_path(text: str) -> Path:
    """The path that `text` names, `~` being a home folder; UserError where nobody here is called so."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{text} must begin with a home folder that is known here, or be written out: {error}"
        ) from error


def is_text(text: str) -> bool:
    """Whether a text can be written: in UTF-8 (no half of a surrogate pair), and without NUL."""
    return "\0" not in text and not re.search("[\ud800-\udfff]", text)
