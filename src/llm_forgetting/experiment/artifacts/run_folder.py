"""The run folder: every artifact is written whole or not at all, and a phase whose artifact is whole is not computed again."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_forgetting.errors import UserError, refusal
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    Phase,
    PhaseArtifact,
    Result,
    artifact_kind,
    follows_from,
)
from llm_forgetting.files import decode, encode, encode_with_arrays, manifest, remove_temporary, without_arrays
from llm_forgetting.results import Timing

WRITTEN_AGAIN = ("results.json", "results.npz", "items.jsonl", "results.md", "landscape.json", "landscape.npz")
"""What the end of a run or scan writes, also where it is resumed with nothing left to compute."""


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
        self._notify: Callable[[str], None] = lambda line: None

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
        """Hold the folder for this process; what a killed one left unfinished is removed."""
        busy = f"{self.path} is being written by another process; wait for it or end it first"
        with holding(self.path / ".lock", busy):
            (self.path / manifest.TURN).unlink(missing_ok=True)
            for folder in [self.path, *filter(Path.is_dir, self.path.rglob("*"))]:
                remove_temporary(folder)
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Workers may write artifacts meanwhile, one process each; only for who holds the folder."""
        (self.path / manifest.TURN).touch()
        try:
            yield
        finally:
            (self.path / manifest.TURN).unlink(missing_ok=True)

    def check(self, notify: Callable[[str], None]) -> None:
        """Compare every artifact with its checksum: a damaged phase is removed, and so computed again; `notify` hears of it.

        UserError where the checkpoint of a task that need not be trained again is damaged; whether one that is gone is needed
        shows later.
        """
        self._notify = notify
        for line in manifest.unchecked(self.path):
            notify(line)
        damaged = [self.path / name for name in manifest.damaged(self.path)]
        for path in (path for path in damaged if path.parent == self.phases):
            self._remove(path, "is damaged or gone, and is computed again")
            path.with_suffix(".json").unlink(missing_ok=True)  # which means nothing without its arrays
        for path in damaged:
            if path.name in WRITTEN_AGAIN and path.parent == self.path:
                notify(f"{path.name} is damaged or gone, and is written again")
            elif path == self.path / "config.yaml":
                notify("config.yaml was changed since the run was started")
            elif path.parent.name.startswith("checkpoint_after_"):
                task = path.parent.name.removeprefix("checkpoint_after_")
                if not path.exists():
                    notify(f"{path.parent.name}/{path.name} is gone")
                elif self._artifact(f"train_{task}").exists():
                    self.require_checkpoint(task)

    def require_checkpoint(self, task: str) -> None:
        """Raise UserError where the checkpoint after `task1`, `task2`, ... is not there as it was written."""
        again = f"put it back, or remove {self._artifact(f'train_{task}')}: then --resume trains it again"
        manifest.require_whole(self.path, f"checkpoint_after_{task}", again)

    def _remove(self, path: Path, why: str) -> None:
        path.unlink(missing_ok=True)
        self._notify(f"phases/{path.name} {why}")

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
            timing = _together([meter.reading(), *map(self._timing, self._parts(phase))])
            artifact = PhaseArtifact(phase=phase.name, **vars(timing), result=result)
            found = manifest.digest(encode(result, phase.kind).encode())
            self._remove_what_followed(phase.name, found)
            self._write_phase(phase.name, encode(artifact, artifact_kind(phase)), found)
        self._remove_parts(phase)
        return self._read(phase)

    def _parts(self, phase: Phase[Any]) -> list[str]:
        return [path.stem for start in phase.parts for path in sorted(self.phases.glob(f"{start}*.json"))]

    def _remove_parts(self, phase: Phase[Any]) -> None:
        """Remove journals and artifacts of the phase's parts: what they held is in its artifact now."""
        if parts := self._parts(phase):
            manifest.forget(self.path, parts)
        for part in parts:
            self._artifact(part).unlink()
            self._artifact(part).with_suffix(".npz").unlink(missing_ok=True)
        for start in (f"{phase.name}.", *phase.parts):
            for journal in self.phases.glob(f"{start}*journal"):
                _remove_journal(journal)

    def take(self, phase: Phase[Result], source: "RunFolder") -> None:
        """The artifact of `phase` out of another run's folder, which it names; UserError where it is damaged."""
        kind = artifact_kind(phase)
        file = str(source._artifact(phase.name))
        artifact = decode(kind, source._bytes(phase), file=file, beside=source._beside)
        found = manifest.digest(encode(artifact.result, phase.kind).encode())
        self._write_phase(phase.name, encode(replace(artifact, taken_from=source.path.name), kind), found)

    def _write_phase(self, name: str, text: str, found: str) -> None:
        text, arrays = without_arrays(text, f"{name}.npz")
        if arrays is not None:
            manifest.write(self.path, f"phases/{name}.npz", arrays)
        manifest.write(self.path, f"phases/{name}.json", text.encode(), {name: found})

    def _remove_what_followed(self, name: str, found: str) -> None:
        """Where a phase is computed again and finds something else, as another machine may: remove what followed from it."""
        earlier = manifest.read_manifest(self.path).results
        if earlier.get(name, found) == found:
            return
        order = list(earlier)
        for later in order[order.index(name) + 1 :]:
            if follows_from(later, name) and self._artifact(later).exists():
                self._remove(self._artifact(later), f"follows from {name}, which came out differently: computed again")
        for journal in self.phases.glob("*.journal"):
            if follows_from(journal.stem, name):
                _remove_journal(journal)
        for scratch in self.phases.glob("trainer_*"):
            shutil.rmtree(scratch)

    def read(self, phase: Phase[Result]) -> Result | None:
        """The result of `phase`, None where it has not been computed; UserError where its artifact is damaged."""
        return self._read(phase) if self.has(phase) else None

    def _read(self, phase: Phase[Result]) -> Result:
        kind = artifact_kind(phase)
        return decode(kind, self._bytes(phase), file=f"{phase.name}.json", beside=self._beside).result

    def _bytes(self, phase: Phase[Any]) -> bytes:
        return manifest.checked(self.path, f"phases/{phase.name}.json")

    def _beside(self, name: str) -> bytes:
        return manifest.checked(self.path, f"phases/{Path(name).name}")

    def has(self, phase: Phase[Any]) -> bool:
        """Whether `phase` has been computed."""
        return self._artifact(phase.name).exists()

    def _artifact(self, phase: str) -> Path:
        return self.phases / f"{phase}.json"

    def timings(self) -> dict[str, Timing]:
        """Wall seconds and peak memory of every phase computed so far, in the order of the files' creation."""
        files = sorted(self.phases.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: self._timing(path.stem) for path in files}

    def seconds(self, phase: Phase[Any]) -> float:
        """Wall seconds of a phase, 0 where it has not been computed."""
        return self._timing(phase.name).wall_seconds if self.has(phase) else 0.0

    def _timing(self, name: str) -> Timing:
        path = self._artifact(name)
        return decode(Timing, path.read_bytes(), file=path.name)

    def write(self, name: str, text: str) -> Path:
        """Write `text` to file `name` of the folder, atomically, its checksum before it."""
        manifest.write(self.path, name, text.encode())
        return self.path / name

    def write_record(self, name: str, record: object) -> None:
        """`write` for a record; its large arrays, where it has many, go into the .npz file of the same name first."""
        arrays_file = Path(name).with_suffix(".npz").name
        text, arrays = encode_with_arrays(record, arrays_file)
        if arrays is not None:
            manifest.write(self.path, arrays_file, arrays)
        self.write(name, text)


def _together(timings: Sequence[Timing]) -> Timing:
    """Seconds of all, and the most memory of any."""
    gpu = [timing.peak_gpu_memory_bytes for timing in timings if timing.peak_gpu_memory_bytes is not None]
    return Timing(
        round(sum(timing.wall_seconds for timing in timings), 3),
        max(timing.peak_memory_bytes for timing in timings),
        max(gpu, default=None),
    )


def _remove_journal(journal: Path) -> None:
    if journal.is_dir():
        shutil.rmtree(journal)
    else:
        journal.unlink(missing_ok=True)
