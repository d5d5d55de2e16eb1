"""Ctrl-C, `kill` and a terminal that closes: a command unwinds once, and says how to go on."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from llm_forgetting.progress import say

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_APART = 1.0
"""Seconds within which a further signal changes nothing: what is being put back is put back."""


class Stopped(KeyboardInterrupt):
    """The command was ended by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block a signal that ends the process raises Stopped; one that was ignored before still is.

    After that the handlers stay: a second signal must not end the process while it says how to go on.
    """
    last = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _APART:
            raise Stopped(number)

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS if main}
    taken = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in taken.items() if last == -math.inf else ():
            signal.signal(number, handler)


def stopped(stop: KeyboardInterrupt, hint: str = "") -> int:
    """The exit status of a command that `stop` ended, as shells count it; says so with a hint how to go on."""
    if hint:
        with contextlib.suppress(OSError):  # the terminal may be gone
            say(f"\nstopped; {hint}")
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
