"""Random numbers of the CPU and of another device, brought back to where they were."""

from collections.abc import Callable
from functools import partial

import torch


def rewinding(device: torch.device) -> Callable[[], None]:
    """What brings the random numbers of the CPU and of `device` back to where they are now."""
    states = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((partial(module.set_rng_state, device=device), module.get_rng_state(device)))

    def rewind() -> None:
        for restore, state in states:
            restore(state)

    return rewind
