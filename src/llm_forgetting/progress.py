"""Progress reports of long computations."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
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


def program() -> str:
    """The command line's name as it works where the user stands: `llm-forgetting` if the shell finds this environment's own,
    else its path; `python main.py` where that was started.
    """
    main, script = Path(__file__).parents[2] / "main.py", Path(sys.executable).with_name("llm-forgetting")
    found = shutil.which(sys.argv[0]) or sys.argv[0]
    if main.is_file() and Path(found).resolve() == main:
        return f"{_typed(Path(sys.executable))} {shlex.quote(sys.argv[0])}"
    return _typed(script) if script.is_file() else f"{_typed(Path(sys.executable))} -m llm_forgetting"


def _typed(program: Path) -> str:
    """What to type for a program of this environment: its name if the shell finds this one by it, else its path."""
    names = ("python", "python3") if program == Path(sys.executable) else (program.name,)
    for name in names:
        if (found := shutil.which(name)) and Path(found).parent == program.parent:
            return name
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))


def duration(seconds: float, *, rough: bool = False) -> str:
    """Seconds as `42 s` or `3 min 20 s`; `rough`, for estimates: one unit, as `42 s`, `20 min` or `3.5 h`."""
    if rough and seconds >= 7200:
        return f"{seconds / 3600:.{1 if seconds < 36000 else 0}f} h"
    if seconds < (120 if rough else 90):
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if rough else f"{int(seconds // 60)} min {int(seconds % 60)} s"
