"""Contestants of a benchmark as processes: one JSON object per line in, {"call": name, ...arguments}, and one out."""

import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch


def serve(contestants: Mapping[str, Callable[[Path], Any]], packages: Sequence[str]) -> None:
    """Load contestant argv[1] on case argv[2], say which versions of `packages` these are, then answer until stdin ends."""
    # Whatever else is printed goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    def say(answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    contestant = contestants[sys.argv[1]](Path(sys.argv[2]))
    say({package: version(package) for package in packages})
    for line in sys.stdin:
        question = json.loads(line)
        say(getattr(contestant, question.pop("call"))(**question))


class Metered:
    """Seconds of a block, and the most memory that this process held in it beyond what it held before (Linux; else None)."""

    figures: dict[str, float | None]

    def __enter__(self) -> "Metered":
        self._before = resident("VmRSS")
        if self._before is not None:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, peak = time.perf_counter() - self._start, resident("VmHWM")
        taken = None if peak is None or self._before is None else peak - self._before
        self.figures = {"seconds": seconds, "peak_bytes": taken}


def resident(line: str) -> int | None:
    """VmRSS or VmHWM of this process, in bytes."""
    path = Path("/proc/self/status")
    found = re.search(rf"{line}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return None if found is None else int(found.group(1)) * 1024


def direction(name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal entries for the parameter `name`: the same in every process."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(number))
