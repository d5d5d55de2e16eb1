"""Progress reports of long computations."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, str], None]


class Progress(Protocol):
    """A display. Every method may do nothing."""

    def phase(self, number: int, total: int, title: str, *, kept: bool) -> None:
        """Phase `number` of `total` begins; `kept`: its artifact exists and is read back."""

    def note(self, message: str) -> None:
        """One line that is worth knowing."""

    def warn(self, message: str) -> None:
        """One line that is worth worrying about."""

    def bar(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A progress bar; call what it yields with (steps done since the last call, a short text)."""


def _ignore(steps: int, text: str) -> None:
    pass


class Silent:
    """A `Progress` that shows nothing."""

    def phase(self, number: int, total: int, title: str, *, kept: bool) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        """A bar that is not drawn."""
        yield _ignore


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


def duration(seconds: float, *, rough: bool = False) -> str:
    """Seconds as `42 s` or `3 min 20 s`; `rough`, for estimates: one unit, as `42 s`, `20 min` or `3.5 h`."""
    if rough and seconds >= 7200:
        return f"{seconds / 3600:.{1 if seconds < 36000 else 0}f} h"
    if seconds < (120 if rough else 90):
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if rough else f"{int(seconds // 60)} min {int(seconds % 60)} s"
