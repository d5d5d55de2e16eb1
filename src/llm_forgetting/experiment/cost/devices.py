"""Devices that a run may have: their memory, and what they compute per second."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch

from llm_forgetting.errors import UserError

# Bytes of a CUDA context, and of Python, PyTorch and the rest on a CPU.
CONTEXT = 0.5e9
REST = 0.7e9
# What an allocator cannot use of a GPU's memory for want of a piece of the right size.
FRAGMENTATION = 0.1
# Share of a matrix rate that a run's forward and backward passes reach. On the CPU the rate itself is measured.
EFFICIENCY: Mapping[str, float] = {"bfloat16": 0.4, "float16": 0.4, "tf32": 0.4, "float32": 0.8}
CPU_EFFICIENCY = 0.65


@dataclass(frozen=True)
class Device:
    """A GPU or this machine's CPU.

    `memory` in bytes; `rate` says how many floating-point operations per second a run does in an arithmetic, None where that is
    not known.
    """

    name: str
    memory: int
    gpu: bool
    rate: Callable[[str], float | None]

    @property
    def capacity(self) -> int:
        """Bytes that tensors can have."""
        return int(self.memory - (CONTEXT if self.gpu else REST))

    def required(self, peak_bytes: float) -> float:
        """Bytes of memory that a device must have for `peak_bytes` of tensors alive at once."""
        return (1 + FRAGMENTATION) * peak_bytes + CONTEXT if self.gpu else peak_bytes + REST


def _card(name: str, gigabytes: int, *, bf16: float, tf32: float, float32: float) -> Device:
    """A GPU by its dense matrix rates, TFLOP/s, as its maker gives them."""
    rates = {"bfloat16": bf16, "float16": bf16, "tf32": tf32, "float32": float32}
    return Device(name, gigabytes * 10**9, True, lambda kind: 1e12 * rates[kind] * EFFICIENCY[kind])


CARDS: Mapping[str, Device] = {
    device.name: device
    for device in (
        _card("RTX-4090", 24, bf16=165, tf32=83, float32=83),
        _card("A100-40", 40, bf16=312, tf32=156, float32=19.5),
        _card("A100-80", 80, bf16=312, tf32=156, float32=19.5),
        _card("H100", 80, bf16=989, tf32=494, float32=67),
        _card("H200", 141, bf16=989, tf32=494, float32=67),
    )
}
"""Classes of GPUs by the name that `--gpu` takes."""


def card(name: str) -> Device:
    """The class of GPUs called `name`; UserError that lists them where there is none."""
    device = {known.lower(): each for known, each in CARDS.items()}.get(name.lower())
    if device is None:
        raise UserError(f"--gpu must be one of {', '.join(CARDS)}, was {name!r}")
    return device


def own_device(name: str) -> Device:
    """The device that a run with `model.device` = `name` is made on."""
    if name == "cpu" or not torch.cuda.is_available():
        return this_cpu()
    properties = torch.cuda.get_device_properties(0)
    memory, known = int(properties.total_memory), _like(properties.name)
    return Device(properties.name, memory, True, known.rate if known is not None else lambda kind: None)


def _like(name: str) -> Device | None:
    """The class that a GPU belongs to by its full name, such as NVIDIA A100-SXM4-80GB."""
    words = name.upper().replace("-", " ").split()
    return next((device for known, device in CARDS.items() if _model(known) in words), None)


def _model(known: str) -> str:
    family, _, rest = known.partition("-")
    return rest if family == "RTX" else family


def this_cpu() -> Device:
    """This machine's CPU; its rates are measured when they are asked for."""
    measured: dict[torch.dtype, float] = {}

    def rate(arithmetic: str) -> float:
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(arithmetic, torch.float32)
        if dtype not in measured:
            measured[dtype] = CPU_EFFICIENCY * matrix_rate(dtype)
        return measured[dtype]

    return Device("this CPU", int(psutil.virtual_memory().total), False, rate)


def matrix_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a matrix product of this machine's CPU, measured now."""
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    best = 0.0
    begun = time.perf_counter()
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
        if time.perf_counter() - begun > 1:
            break
    return best
