"""Evaluations that are made once: looked up in a journal first, so that a scan that was stopped goes on at its next point."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.factors import WeightUpdate

# From points to their values (m,), in order.
Evaluator = Callable[[Iterable[WeightUpdate]], Iterator[Floats]]


class Objective(Protocol):
    """Losses of K tasks at points of a landscape, by way of m smooth values per point; all that a scan knows of a model."""

    @property
    def names(self) -> Sequence[str]:
        """The K tasks."""
        ...

    def evaluating(self) -> AbstractContextManager[Evaluator]:
        """Context with an evaluator; the model moves meanwhile, and is as before afterwards."""
        ...

    def losses(self, values: Floats) -> Floats:
        """(..., K) mean losses of the tasks, from values (..., m)."""
        ...


class Journal:
    """A text file with a line per evaluation and its CRC-32, appended at once; a last line that was cut short is written anew,
    and a line that is damaged counts as not there.

    Numbers are written so that they come back bit for bit. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Floats] = {}
        if path is not None and path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]
            for line in whole.splitlines():
                text, _, checksum = line.rpartition(b"\t")
                if checksum == _checksum(text):
                    key, values = json.loads(text)
                    self._known[key] = np.array(values, dtype=np.float64)
            with path.open("r+b") as file:  # cut in place: at no moment is what was evaluated not there
                file.truncate(len(whole) + bool(whole))

    def get(self, key: str) -> Floats | None:
        """The values kept under `key`."""
        return self._known.get(key)

    def put(self, key: str, values: Floats) -> None:
        """Keep `values` (m,)."""
        self._known[key] = values
        if self._path is not None:
            text = json.dumps([key, values.tolist()]).encode()
            with self._path.open("ab") as file:
                file.write(text + b"\t" + _checksum(text) + b"\n")

    def clear(self) -> None:
        """Forget everything: the scan is finished and its result kept elsewhere."""
        self._known.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _checksum(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()


class CachedEvaluator:
    """Values (p, m) at coordinates of a named family of points, each evaluated once."""

    def __init__(
        self, values_at: Evaluator, journal: Journal | None = None, advance: Callable[[], object] = lambda: None
    ):
        self._values_at = values_at
        self._journal = journal or Journal()
        self._advance = advance
        self._asked: set[str] = set()

    @property
    def evaluations(self) -> int:
        """Different points asked for so far, those that stood in the journal included."""
        return len(self._asked)

    def at(self, family: str, coordinates: Floats, point: Callable[[Sequence[float]], WeightUpdate]) -> Floats:
        """(p, m) values at `coordinates` (p, d); `point` maps one row of them to what is evaluated.

        Points are made one at a time, when their turn comes.

        Returns:
            (p, m) values, a row per row of `coordinates`.
        """
        rows = [tuple(map(float, row)) for row in coordinates]
        keys = [" ".join([family, *(repr(x + 0.0) for x in row)]) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if self._journal.get(key) is None}
        self._asked |= set(keys)
        for _ in range(len(set(keys)) - len(missing)):
            self._advance()
        for key, values in zip(missing, self._values_at(point(row) for row in missing.values()), strict=True):
            self._journal.put(key, values)
            self._advance()
        kept = [self._journal.get(key) for key in keys]
        return np.stack([values for values in kept if values is not None])


@contextmanager
def cached(
    objective: Objective, journal: Path | None = None, advance: Callable[[], object] = lambda: None
) -> Iterator[CachedEvaluator]:
    """Context with the cached evaluations of `objective`, kept in the file `journal`; `advance` is called for each."""
    kept = Journal(journal)
    with objective.evaluating() as evaluate:
        yield CachedEvaluator(evaluate, kept, advance)
