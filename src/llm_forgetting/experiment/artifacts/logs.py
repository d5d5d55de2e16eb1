"""Logging of a run: its log file, and libraries kept quiet on the terminal."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def quiet_libraries() -> None:
    """Libraries' own bars and chatter would tear ours apart; what they warn of goes to run.log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # `python -W error` is about one's own code; libraries warn of much
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
