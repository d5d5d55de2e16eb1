"""Replay of a deterministic computation that was stopped: what it had made is read back, bit for bit."""

import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_forgetting.curvature.operators import SymmetricOperator, Weights

CHECKSUM = "crc32"
SHARE = 0.5
"""Share of the free disk that may be taken."""


class Replay:
    """Arrays of a deterministic computation, kept by their number in it, a file each, until the whole is done.

    The computation is gone through again: an array that is there is read back, one that is not, or is damaged, is computed.
    Without a folder everything is computed and nothing kept.

    Attributes:
        computed: How many arrays were computed here, not read back.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._place = [0]
        self.computed = 0

    def _named(self, place: Sequence[int]) -> Path | None:
        return None if self._folder is None else self._folder / ".".join(f"{number:05d}" for number in place)

    def _next(self) -> Path | None:
        path = self._named(self._place)
        self._place[-1] += 1
        return path

    def array(self, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` makes, or made before the computation was stopped; on the CPU where it is read back."""
        path = self._next()
        if (found := _read(path)) is not None:
            return found["array"]
        made = compute()
        self.computed += 1
        _write(path, {"array": made})
        return made

    def numbers(self, compute: Callable[[], Sequence[float]]) -> list[float]:
        """The numbers that `compute` makes, or made; of the arrays that it asks for on the way none is kept after it."""
        self._place.append(0)
        try:
            path = self._named(self._place[:-1])
            if (found := _read(path)) is not None:
                return [float(number) for number in found["array"]]
            made = list(compute())
        finally:
            self._place.pop()
            self._place[-1] += 1
        self.computed += 1
        _write(path, {"array": torch.tensor(made, dtype=torch.float64)})
        for inner in path.parent.glob(f"{path.name}.*") if path else ():
            inner.unlink()
        return made

    def state(self) -> "ReplayedState":
        """The state of an iteration, of which the latest is all that is needed."""
        return ReplayedState(self._next())


class ReplayedState:
    """State of an iteration: the number of steps done and its vectors, in one file that every step replaces."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> tuple[int, list[Weights]] | None:
        """Steps done, and the vectors after them; None where there is no whole state."""
        found = _read(self._path)
        if found is None:
            return None
        done, vectors = int(found.pop("done")), dict[str, Weights]()
        for key, part in found.items():
            number, _, name = key.partition(" ")
            vectors.setdefault(number, Weights())[name] = part
        return done, [vectors[number] for number in sorted(vectors)]

    def write(self, done: int, vectors: Sequence[Weights]) -> None:
        """Keep the state after `done` steps."""
        parts = {f"{number} {name}": part for number, vector in enumerate(vectors) for name, part in vector.items()}
        _write(self._path, {"done": torch.tensor(done), **parts})


class ReplayedOperator(SymmetricOperator):
    """A symmetric operator whose products are replayed."""

    def __init__(self, operator: SymmetricOperator, replay: Replay) -> None:
        super().__init__(operator.shape[0], dtype=operator.dtype, device=operator.device, blocks=operator.blocks)
        self._operator = operator
        self._replay = replay

    def _product(self, vector: Tensor) -> Tensor:
        return self._replay.array(lambda: self._operator @ vector).to(self.device)


def replay_in(folder: Path | None, needed: float, notify: Callable[[str], None]) -> Replay:
    """A replay in `folder` where `needed` bytes fit on its disk; else one that keeps nothing, and `notify` hears of it."""
    if folder is None:
        return Replay()
    free = shutil.disk_usage(folder.parent).free
    if needed > SHARE * free:
        notify(
            f"{folder.name} would take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB of free disk, so nothing is kept before "
            "the phase is done: if it is stopped, it begins anew"
        )
        return Replay()
    if needed > 1e9:
        notify(f"{folder.name} takes up to {needed / 1e9:.1f} GB of disk until the phase is done")
    folder.mkdir(parents=True, exist_ok=True)
    return Replay(folder)


def _checksum(arrays: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _write(path: Path | None, arrays: Mapping[str, Tensor]) -> None:
    if path is None:
        return
    kept = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    save_file(kept, partial, metadata={CHECKSUM: _checksum(kept)})
    partial.replace(path)


def _read(path: Path | None) -> dict[str, Tensor] | None:
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError):
        return None
    return found if checksum == _checksum(found) else None
