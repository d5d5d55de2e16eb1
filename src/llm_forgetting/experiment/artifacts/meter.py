"""Wall time and peak memory of one block of work."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_forgetting.results import Timing

_CLEAR_REFS = Path("/proc/self/clear_refs")


def _reset_peak() -> None:
    """On Linux, let the kernel's high-water mark start again from here; elsewhere the peak is the process's own."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return


def peak_resident_bytes() -> int:
    """The largest resident memory since the last reset (Linux) or since the process began (elsewhere), in bytes;
    0 where the system does not tell.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """A context manager that measures its block: wall seconds, peak resident memory, peak GPU memory if there is one."""

    def __enter__(self) -> "Meter":
        _reset_peak()
        self._cuda: Any = _cuda_in_use()
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()
        self._wall_seconds, self._peak_bytes = 0.0, 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wall_seconds = time.perf_counter() - self._start
        self._peak_bytes = peak_resident_bytes()

    def reading(self) -> Timing:
        """What the block took."""
        gpu_bytes = None if self._cuda is None else self._cuda.max_memory_allocated()
        return Timing(round(self._wall_seconds, 3), self._peak_bytes, gpu_bytes)


def _cuda_in_use() -> Any:
    """torch.cuda where a GPU is in use; torch is not imported for the sake of asking."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
