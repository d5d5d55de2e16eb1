"""The command line: `llm-forgetting COMMAND`, with what `_USAGE` lists."""

import codecs
import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence

from llm_forgetting import __version__
from llm_forgetting.cli.adapters import evaluate, landscape, repair
from llm_forgetting.cli.check import check
from llm_forgetting.cli.pairs import forecast
from llm_forgetting.cli.report import compare, report
from llm_forgetting.cli.run import run
from llm_forgetting.cli.signals import stoppable, stopped
from llm_forgetting.cli.study import study
from llm_forgetting.cli.tasks import tasks
from llm_forgetting.errors import UserError, is_out_of_memory, refusal, system_error
from llm_forgetting.files import is_text
from llm_forgetting.progress import say

_LONGEST = 1200
"""Characters of a complaint; of a longer one the middle is left out."""

# What signs of ours are where the terminal has none but ASCII.
_PLAIN = {"±": "+/-", "−": "-", "–": "-", "×": "x", "≤": "<=", "≥": ">=", "…": "...", "Δ": "D", "·": ".", "→": "->"}

_USAGE = """\
usage: llm-forgetting COMMAND [options]

  run        fine-tune on each task in turn, measure forgetting and the loss landscape   (the main job)
  repair     interpolate between two checkpoints to the lowest mean loss of both tasks, and score that adapter
  landscape  the loss landscape of anyone's saved LoRA adapter, on any tasks
  forecast   what the landscape at one saved adapter forecasts of another, beside what is observed
  study      many runs that answer the question, with error bars over runs
  report     report.html of a finished run, study, landscape, forecast or evaluation, drawn again from its folder
  compare    finished runs side by side, or two logs of lm-evaluation-harness, on the terminal and as a page
  check      exit status 0, 1 or 3: forgetting is within a limit, above it, or neither can be said
  evaluate   accuracy of a model, a saved adapter or a pair on whole test splits, as lm-evaluation-harness measures it
  tasks      the subjects and groups that can be named as tasks, with their item counts

`llm-forgetting COMMAND --help` says more. Start with `llm-forgetting run` (ten minutes, nothing to set up)
or `llm-forgetting run --config smoke` (under a minute, a toy)."""


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "repair": repair,
    "landscape": landscape,
    "forecast": forecast,
    "evaluate": evaluate,
    "study": study,
    "report": report,
    "compare": compare,
    "check": check,
    "tasks": tasks,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `llm-forgetting`; returns the exit status."""
    return guarded(_command, list(sys.argv[1:] if arguments is None else arguments))


def _command(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        say(_USAGE)
        return 0 if given else 2
    if given[0] in ("-V", "--version", "version"):
        say(f"llm-forgetting {__version__}")
        return 0
    if sys.flags.optimize > 1:
        raise UserError("python must keep docstrings, which transformers reads, and was started with -OO; leave it out")
    if strange := [word for word in given if not is_text(word)]:
        raise UserError(f"every argument must be text in UTF-8 without NUL, was {strange[0]!r}")
    if given[0] not in _COMMANDS:
        near = difflib.get_close_matches(given[0], _COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"a command is needed, one of {', '.join(_COMMANDS)}; was {given[0]!r}{hint}")
    return _COMMANDS[given[0]](given[1:])


def run_main() -> int:
    """Entry point of main.py: any command; options without one are those of `run`."""
    given = sys.argv[1:]
    named = bool(given) and (not given[0].startswith("-") or given[0] in ("-V", "--version"))
    return main(given if named else ["run", *given])


def guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; what the user can mend becomes one line on stderr and exit status 2."""
    _prepare_streams()
    try:
        with stoppable():
            try:
                return command(arguments)
            finally:
                sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        # The reader (head, less) has gone; give Python's own exit something to flush into.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if refused := system_error(error):
            return _fail(refusal(refused))
        if is_out_of_memory(error):
            return _fail(
                "memory ran out; lower evaluation.batch_size and landscape.batch_size, or take a smaller model"
            )
        raise


def _prepare_streams() -> None:
    """Let no stream that is closed, or knows no sign of ours, end a command."""
    codecs.register_error("in_words", _in_words)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="in_words")


def _in_words(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    given = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in given), error.end


def _fail(message: str) -> int:
    """One line on stderr, whatever stands in the input that it quotes; the exit status."""
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in message)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"error: {line}\n")
    return 2
