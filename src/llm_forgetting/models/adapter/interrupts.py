"""Ctrl-C at the right moment: never between two weights that are being moved or put back."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

Interruptible = Callable[[], AbstractContextManager[None]]


class _DeferredHandler:
    """A handler of SIGINT that waits until it is allowed."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self._allowed = False
        self._waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._allowed:
            self._handler(number, frame)
        else:
            self._waiting = True

    def deliver(self) -> None:
        """Hand on what has been waiting."""
        if self._waiting:
            self._waiting = False
            self._handler(signal.SIGINT, None)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            self.deliver()
            yield
        finally:
            self._allowed = False


@contextmanager
def defer_interrupts() -> Iterator[Interruptible]:
    """Ctrl-C deferred: within the block it takes effect only inside `with interruptible():`, and at the block's end.

    So it never falls between two parameters that are being moved or put back, however often it is pressed. Where Python
    does not handle Ctrl-C, or this thread does not, nothing is changed.

    Yields:
        `interruptible`.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield nullcontext
        return
    deferred = _DeferredHandler(handler)
    signal.signal(signal.SIGINT, deferred)
    try:
        yield deferred.allowed
    finally:
        signal.signal(signal.SIGINT, handler)
    deferred.deliver()
