"""Small models, batches and losses for the tests of the public API, and all that can be told of a model."""

import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Batch = tuple[torch.Tensor, torch.Tensor]
DOUBLE = torch.float64


def network(dtype: torch.dtype = DOUBLE, seed: int = 0) -> torch.nn.Sequential:
    """3 -> 4 -> 3, tanh: 31 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).to(dtype)


def some_batches(dtype: torch.dtype = DOUBLE, sizes: tuple[int, ...] = (5, 5, 2), seed: int = 1) -> list[Batch]:
    """Ragged batches of points in three classes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, generator=generator, dtype=dtype), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def mean_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def over_all(model: torch.nn.Module, batches: list[Batch]) -> float:
    """The definition: mean over the items, not over the batches."""
    with torch.no_grad():
        return float(mean_loss(model, (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).clone() for tensor in tensors])


def draw_like(model: torch.nn.Module, seed: int, scale: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()
    }


class Point(torch.nn.Module):
    """A (2, 3) matrix and a bias, whose loss is any function of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6, dtype=DOUBLE).reshape(2, 3) / 7 + 0.1)
        self.bias = torch.nn.Parameter(torch.tensor([0.5, -0.5], dtype=DOUBLE))


class Watch:
    """A loss that keeps the parameters it was asked at."""

    def __init__(self, function: Callable[[torch.nn.Module, Any], torch.Tensor]) -> None:
        self.function = function
        self.seen: list[torch.Tensor] = []

    def __call__(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.seen.append(flat(model.parameters()))
        return self.function(model, batch)


def three_states(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """The live state and two around it; variances stay positive."""
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        noise = {n: 0.2 * seed * torch.rand(t.shape, generator=generator) for n, t in model.state_dict().items()}
        found.append({n: t + noise[n].to(t) for n, t in model.state_dict().items()})
    return found


class Everything:
    """All that can be told of a model and its adapter, to the bit, and of the world around it."""

    def __init__(self, model: torch.nn.Module) -> None:
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        gradients = {f"gradient of {name}": p.grad for name, p in parameters.items() if p.grad is not None}
        self.tensors = {name: _bits(tensor) for name, tensor in {**model.state_dict(), **gradients}.items()}
        self.world = {
            "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # type: ignore[index, union-attr]
            "handler": signal.getsignal(signal.SIGINT),
            "grad": torch.is_grad_enabled(),
        }
        self.model = {
            "buffers": [id(buffer) for buffer in model.buffers()],
            "modes": [module.training for module in modules.values()],
            "trained": [name for name, p in parameters.items() if p.requires_grad],
            "hooks": [(*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in modules.values()],
            "forwards": [name for name, module in modules.items() if "forward" in vars(module)],
            "adapters off": [getattr(module, "disable_adapters", None) for module in modules.values()],
            "attention": [getattr(getattr(m, "config", None), "_attn_implementation", None) for m in modules.values()],
        }

    def assert_same(self, model: torch.nn.Module) -> None:
        """Model and world are as they were when this was made."""
        now = Everything(model)
        self.assert_same_tensors(now)
        assert (now.model, now.world) == (self.model, self.world)

    def assert_same_tensors(self, now: "Everything") -> None:
        """Weights, buffers and gradients are, whatever else is on its way."""
        assert now.tensors.keys() == self.tensors.keys()
        for name, tensor in now.tensors.items():
            assert torch.equal(tensor, self.tensors[name]), name


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().reshape(-1).view(torch.uint8)
