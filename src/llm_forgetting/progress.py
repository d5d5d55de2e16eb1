"""What a long computation tells whoever is watching."""

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
