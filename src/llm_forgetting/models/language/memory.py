"""Memory of a forward or backward pass: how many tokens fit, and going on with less where they did not."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch
from torch import nn

from llm_forgetting.errors import is_out_of_memory

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Of a device without memory, on which a program is only counted (see `allocation_count`).
UNLIMITED = 2**62
# Share of the free memory that a backward pass may plan with; the rest is for temporaries and fragmentation.
SHARE = 0.5


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that can still be allocated, bytes; what PyTorch keeps for itself counts as free."""
    if device.type == "meta":
        return UNLIMITED
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def tangent_bytes_per_token(model: nn.Module) -> int:
    """What a tangent pass keeps of one token until it has gone back: value and tangent of every linear layer's input and
    output, in float32.

    At LLaMA-2 7B 20 MB, of which a count of all allocations there finds 21.
    """
    linear = [
        module for module in model.modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    return 2 * 4 * sum(_features(module) for module in linear)


def _features(module: Any) -> int:
    return int(getattr(module, "in_features", 0) or module.nx) + int(getattr(module, "out_features", 0) or module.nf)


def tokens_that_fit(model: nn.Module, device: torch.device) -> int:
    """Tokens of one tangent pass that the free memory allows, at least 1."""
    return tokens_within(free_bytes(device), tangent_bytes_per_token(model))


def tokens_within(free: int, bytes_per_token: int) -> int:
    """Tokens in `SHARE` of `free` bytes, at least 1."""
    return max(1, int(SHARE * free) // max(1, bytes_per_token))


def release(device: torch.device) -> None:
    """Give back what a failed pass held; call it outside the handler, whose traceback holds tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def with_smaller_pieces(compute: Callable[[int], Result], size: int, device: torch.device) -> tuple[Result, int]:
    """`compute`(size), begun again with half the size whenever memory runs out; with the size that sufficed.

    What it raises for want of memory is raised on where a size of 1 is too much.
    """
    while True:
        try:
            return compute(size), size
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            log.info("memory ran out with %d items at a time; going on with %d", size, size // 2)
        size //= 2
        release(device)


class OutOfMemoryRetry:
    """Runs batches whole while memory suffices; from the first that does not fit on, in halves (quarters, ...) of its size."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._limit: int | None = None

    def run(self, batch: tuple[int, ...], compute: Callable[[tuple[int, ...]], None]) -> None:
        """Call `compute` for all of `batch`; what it raises for want of memory is raised on where a single item is too much."""
        waiting = [batch]
        while waiting:
            piece = waiting.pop(0)
            size = min(len(piece), self._limit or len(piece))
            if size < len(piece):
                waiting = [piece[start : start + size] for start in range(0, len(piece), size)] + waiting
                continue
            try:
                compute(piece)
            except (MemoryError, RuntimeError) as error:
                if len(piece) == 1 or not is_out_of_memory(error):
                    raise
                self._limit = len(piece) // 2
                log.info("memory ran out with %d items in a batch; going on with %d", len(piece), self._limit)
                waiting.insert(0, piece)
            else:
                continue
            release(self._device)
