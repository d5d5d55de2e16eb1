"""The exceptions that are meant for the user's eyes, and what is said of those that only the system can explain."""

import errno
import os
import re
import shlex
import shutil
import sys
from pathlib import Path


class UserError(Exception):
    """What the user can mend: one line that says what must hold, what was given, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class UnreachableError(UserError):
    """Data that only the network has, and the network did not give: what is asked for may still be right."""


_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    errno.EFBIG: "allow larger files (ulimit -f)",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "allow this user to read and write there"),
    errno.EROFS: "choose a folder that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP), "choose a disk that can lock files"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check that disk"),
    None: "check that there is room and that files may be written there",
}


def refusal(error: OSError, folder: object = "a file") -> str:
    """One line on what the system refused, and what to do; `folder` is what was written where the error names no file."""
    said = " ".join(str(error.strerror or error).split())
    if error.errno is None and type(error) is not OSError:  # a library's own, such as a connection's
        return f"{type(error).__name__}: {said}"
    what = f"{folder} could not be written" if error.filename is None else f"{error.filename} could not be used"
    return f"{what}: {said}; {_REMEDIES.get(error.errno, 'check that path')}"


def system_error(error: Exception) -> OSError | None:
    """`error` as what the system refused, also where a library says so in words of its own; None for anything else."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, tokenizers
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if type(error).__name__ == "SafetensorError":
        return OSError(str(error))
    if "inline_container" in str(error):  # all that torch.save says where the disk is full
        return OSError("a file of weights was not taken whole")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        phrase in said
        for phrase in ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
    )


def is_broken_device(error: BaseException) -> bool:
    """Whether a GPU refuses this process all further work, as it does after an illegal access or a failed assertion."""
    said = str(error).lower()
    return not is_out_of_memory(error) and any(
        phrase in said for phrase in ("cuda error:", "hip error:", "device-side assert", "status_execution_failed")
    )


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
