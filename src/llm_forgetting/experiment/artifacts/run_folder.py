"""The run folder: every artifact is written whole or not at all, and a phase whose artifact exists is not computed again."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_forgetting.errors import UserError, refusal
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.artifacts.phase_artifacts import Phase, PhaseArtifact, Result, artifact_kind
from llm_forgetting.files import decode, encode, write_text
from llm_forgetting.results import Timing


@contextmanager
def holding(lock: Path, busy: str) -> Iterator[None]:
    """Hold the file `lock` for this process; UserError `busy` where another one does, or for what the system refuses."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(refusal(OSError(error.errno, error.strerror, str(lock)))) from error
    try:
        yield
    finally:
        held.release()


class RunFolder:
    """`outputs/experiment_TIMESTAMP/`: artifacts of one run, and the lock that keeps a second process out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.phases = path / "phases"

    @classmethod
    def create(cls, parent: Path, prefix: str = "experiment") -> "RunFolder":
        """A new folder `PREFIX_TIMESTAMP`; two that start within one second get different ones."""
        stamp = time.strftime(f"{prefix}_%Y%m%d_%H%M%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for name in [stamp, *(f"{stamp}_{n}" for n in range(2, 1000))]:
                try:
                    (parent / name).mkdir()
                except FileExistsError:
                    continue
                (parent / name / "phases").mkdir()
                return cls(parent / name)
        except OSError as error:
            raise UserError(
                f"output.folder must be writable, {parent} is not ({error.strerror}); choose another"
            ) from error
        raise UserError(f"{parent} holds a thousand runs of this second; choose another output.folder")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run."""
        if not (path / "config.yaml").is_file():
            raise UserError(f"--resume needs the folder of an earlier run (with its config.yaml), {path} is not one")
        try:
            (path / "phases").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--resume needs a folder that can be written, {path} cannot ({error.strerror})") from error
        return cls(path)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for this process."""
        busy = f"{self.path} is being written by another process; wait for it or end it first"
        return holding(self.path / ".lock", busy)

    def remove_if_unused(self) -> None:
        """Remove the folder unless a phase was finished in it: a mistyped name leaves nothing behind."""
        if not any(self.phases.glob("*.json")):
            shutil.rmtree(self.path, ignore_errors=True)

    def once(self, phase: Phase[Result], compute: Callable[[], Result]) -> Result:
        """The result of `phase`: read back if it is there, else computed, measured and written.

        What is returned has been through JSON in both cases, so that a resumed run sees exactly what an uninterrupted one saw.
        """
        if not self.has(phase):
            with Meter() as meter:
                result = compute()
            artifact = PhaseArtifact(phase=phase.name, **vars(meter.reading()), result=result)
            write_text(self._artifact(phase.name), encode(artifact, artifact_kind(phase)))
            for journal in self.phases.glob("*.journal"):  # what it held is in the artifact now
                journal.unlink()
        return self._read(phase)

    def read(self, phase: Phase[Result]) -> Result | None:
        """The result of `phase`, None where it has not been computed."""
        return self._read(phase) if self.has(phase) else None

    def _read(self, phase: Phase[Result]) -> Result:
        path = self._artifact(phase.name)
        return decode(artifact_kind(phase), path.read_bytes(), file=path.name).result

    def has(self, phase: Phase[Any]) -> bool:
        """Whether `phase` has been computed."""
        return self._artifact(phase.name).exists()

    def _artifact(self, phase: str) -> Path:
        return self.phases / f"{phase}.json"

    def timings(self) -> dict[str, Timing]:
        """Wall seconds and peak memory of every phase computed so far, in the order of the files' creation."""
        files = sorted(self.phases.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: decode(Timing, path.read_bytes(), file=path.name) for path in files}

    def write(self, name: str, text: str) -> Path:
        """Write `text` to file `name` of the folder, atomically."""
        write_text(self.path / name, text)
        return self.path / name
