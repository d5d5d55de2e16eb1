"""Moving a model with LoRA layers to other updates delta W, and back without a trace.

The layers are PEFT's (`get_base_layer`, `fan_in_fan_out`), their own adapters switched off by the caller.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.spaces import NoisyUpdate
from llm_forgetting.models.adapter.interrupts import defer_interrupts
from llm_forgetting.models.adapter.widened import wide_weight


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.get_base_layer().weight
    return weight


@torch.no_grad()
def merged_weight(layer: Any, update: Factors) -> torch.Tensor:
    """W + B A of one layer, (d_out, d_in), whichever way round the layer keeps W; float32 or better."""
    weight = wide_weight(layer.get_base_layer())
    upright = weight.T if layer.fan_in_fan_out else weight
    return upright + (update.B @ update.A).to(upright)


@contextmanager
def merged(layers: Mapping[str, Any]) -> Iterator[Callable[[WeightUpdate], None]]:
    """A setter that writes W + B A (and noise, in weight space) into every layer, from a snapshot of W taken now.

    On leaving, W is copied back from the snapshot: an inverse step would drift. Costs one copy of these weights.
    """
    weights = [_weight(layer) for layer in layers.values()]
    snapshot = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def move(point: WeightUpdate) -> None:
        for (name, layer), weight, original in zip(layers.items(), weights, snapshot, strict=True):
            update = point[name]
            B, A = update.B.to(weight), update.A.to(weight)
            left, right = (A.T, B.T) if layer.fan_in_fan_out else (B, A)
            torch.addmm(original, left, right, out=weight)
            if isinstance(update, NoisyUpdate):
                upright = weight.T if layer.fan_in_fan_out else weight
                for rows, block in update.blocks():
                    upright[rows] += block.to(weight)

    try:
        yield move
    finally:
        with torch.no_grad(), defer_interrupts():
            for weight, original in zip(weights, snapshot, strict=True):
                weight.copy_(original)
        snapshot.clear()  # `move` may outlive the block, the weights do not


@contextmanager
def unmerged(layers: Mapping[str, Any]) -> Iterator[Callable[[Sequence[WeightUpdate]], None]]:
    """A setter that adds (x A_p^T) B_p^T to what every layer makes of row p of the batch; W is never written.

    One point serves every row. Several points are one batch with a row for each, so they share one forward of the backbone.
    A point of weight space comes alone; its noise is drawn again, some rows at a time, in every forward.
    """
    stacks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    noise: dict[str, NoisyUpdate] = {}

    def move(points: Sequence[WeightUpdate]) -> None:
        noise.clear()
        for name, layer in layers.items():
            device = _weight(layer).device
            updates = [point[name] for point in points]
            if isinstance(updates[0], NoisyUpdate):
                if len(updates) > 1:
                    raise ValueError(f"a point of weight space is computed alone, got {len(updates)} points")
                noise[name] = updates[0]
            rank = max(update.A.shape[0] for update in updates)
            A = torch.stack([F.pad(update.A, (0, 0, 0, rank - update.A.shape[0])) for update in updates])
            B = torch.stack([F.pad(update.B, (0, rank - update.B.shape[1])) for update in updates])
            stacks[name] = (A.to(device), B.to(device))

    def added(name: str, x: torch.Tensor) -> torch.Tensor:
        A, B = stacks[name]
        x = x.to(A.dtype)
        if len(A) > 1:
            return torch.bmm(torch.bmm(x, A.transpose(1, 2)), B.transpose(1, 2))
        y = F.linear(F.linear(x, A[0]), B[0])
        if name in noise:
            y += torch.cat([F.linear(x, block.to(x)) for _, block in noise[name].blocks()], dim=-1)
        return y

    with adding(layers, added):
        yield move


@contextmanager
def adding(layers: Mapping[str, Any], change: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the block `change`(name, x) is added to the output of every layer, of its input x."""

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + change(name, inputs[0]).to(output.dtype)

        return add

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
