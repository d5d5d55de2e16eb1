"""Measuring on somebody else's model without a trace: modes, random numbers, buffers, and Ctrl-C at the right moment."""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

Interruptible = Callable[[], AbstractContextManager[None]]


@contextmanager
def preserve_model_state(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module's mode, every parameter's `requires_grad`, every buffer (bit for
    bit) and the random streams of Python, numpy and torch are as before. Parameters are the business of who moves them.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with _same_random_numbers(model), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if not buffer.is_meta and not torch.equal(buffer, content):
                    buffer.copy_(content)


@contextmanager
def _same_random_numbers(model: torch.nn.Module) -> Iterator[None]:
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _Held:
    """A handler of SIGINT that waits until it is allowed."""

    def __init__(self, handler: Callable[[int, Any], Any]) -> None:
        self._handler = handler
        self._allowed = False
        self._waiting = False

    def __call__(self, number: int, frame: Any) -> None:
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
    """Within the block Ctrl-C takes effect only inside `with interruptible():`, which the block is given, and at its end.

    So it never falls between two parameters that are being moved or put back, however often it is pressed. Where Ctrl-C is no
    business of Python's, or of this thread's, nothing is changed.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield nullcontext
        return
    held = _Held(handler)
    signal.signal(signal.SIGINT, held)
    try:
        yield held.allowed
    finally:
        signal.signal(signal.SIGINT, handler)
    held.deliver()
