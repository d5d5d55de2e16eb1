"""The run folder: every artifact is written whole or not at all, and a phase whose artifact exists is not computed again."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.files import Json, encode_json, write_text


class RunFolder:
    """`outputs/experiment_TIMESTAMP/`: artifacts of one run, and the lock that keeps a second process out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.phases = path / "phases"
        self._lock = FileLock(path / ".lock")

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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path} is being written by another process; wait for it or end it first") from error
        try:
            yield
        finally:
            self._lock.release()

    def remove_if_unused(self) -> None:
        """Remove the folder unless a phase was finished in it: a mistyped name leaves nothing behind."""
        if not any(self.phases.glob("*.json")):
            shutil.rmtree(self.path, ignore_errors=True)

    def once(self, name: str, compute: Callable[[], Json]) -> Json:
        """The result of phase `name`: read back if it is there, else computed, measured and written.

        The artifact `phases/NAME.json` holds `result`, `wall_seconds` and `peak_memory_bytes`. What is returned has
        been through JSON in both cases, so that a resumed run sees exactly what an uninterrupted one saw.
        """
        path = self.phases / f"{name}.json"
        if not path.exists():
            with Meter() as meter:
                result = compute()
            write_text(path, encode_json({"phase": name, **meter.reading(), "result": result}))
            for journal in self.phases.glob("*.journal"):  # what it held is in the artifact now
                journal.unlink()
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def has(self, name: str) -> bool:
        """Whether phase `name` has been computed."""
        return (self.phases / f"{name}.json").exists()

    def timings(self) -> dict[str, dict[str, float]]:
        """Wall seconds and peak memory of every phase computed so far, in the order of the file names' creation."""
        files = sorted(self.phases.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        entries = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        keys = ("wall_seconds", "peak_memory_bytes", "peak_gpu_memory_bytes")
        return {entry["phase"]: {key: entry[key] for key in keys if key in entry} for entry in entries}

    def save_results(self, content: dict[str, Json]) -> dict[str, Json]:
        """Write results.json, the last artifact of a run; returns its content as a reader will see it."""
        path = self.write("results.json", encode_json(content))
        saved: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
        return saved

    def write(self, name: str, text: str) -> Path:
        """Write `text` to file `name` of the folder, atomically."""
        write_text(self.path / name, text)
        return self.path / name
