"""State of a model and of random streams, kept while it is measured: modes, gradient flags, buffers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
