"""What every command of the command line needs: a parser that complains in one line, a quiet screen, a log."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from llm_forgetting.errors import UserError


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaint is one line."""

    def __init__(self, program: str, **kwargs: object) -> None:
        super().__init__(prog=program, allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def quiet_libraries() -> None:
    """Libraries' own bars and chatter would tear ours apart; what they warn of goes to run.log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written must not tear the screen apart
    import datasets
    import transformers

    messages: Any = transformers.logging
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything that is logged, and every traceback, into `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("llm_forgetting").setLevel(logging.INFO)
    try:
        yield
    except Exception:
        root.exception("the run stopped")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def positive(text: str) -> int:
    """A whole number of at least 1, for an option's `type`."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, was {text!r}")
    return int(text)
