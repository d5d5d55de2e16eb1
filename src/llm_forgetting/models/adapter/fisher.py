"""Empirical Fisher information on delta W: whole diagonals, and Kronecker factors, from the adapted layers' own passes.

A layer computes y = W x + delta W x, so the gradient of an item's log-likelihood in delta W is G = sum over tokens of
g x^T, with x the layer's input and g the gradient in its output. Neither depends on how delta W is factorised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llm_forgetting.landscape.gauge import Factors, at_least_float32


@dataclass(frozen=True)
class Diagonal:
    """F_ij = mean over items of G_ij^2, (d_out, d_in): as large as the weight."""

    squares: torch.Tensor

    def quadratic(self, moved: Factors) -> torch.Tensor:
        """sum_ij F_ij (B A)_ij^2, with a graph; forms one matrix of the weight's size."""
        return (self.squares * (moved.B @ moved.A).square()).sum()


@dataclass(frozen=True)
class Kronecker:
    """F = inputs (x) outputs (K-FAC): mean of x x^T over tokens, (d_in, d_in), and of sum g g^T over items, (d_out, d_out)."""

    inputs: torch.Tensor
    outputs: torch.Tensor

    def quadratic(self, moved: Factors) -> torch.Tensor:
        """vec(D)^T F vec(D) = tr(outputs D inputs D^T) of D = B A, with a graph; no matrix of the weight's size."""
        return ((moved.B.T @ self.outputs @ moved.B) * (moved.A @ self.inputs @ moved.A.T)).sum()


Fisher = Mapping[str, Diagonal | Kronecker]
Tell = Callable[[str, torch.Tensor, torch.Tensor], None]


def _told(tell: Tell, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
    tell(name, x, at_least_float32(g.detach()).flatten(0, -2))


@contextmanager
def _watched(layers: Mapping[str, Any], tell: Tell) -> Iterator[None]:
    """Within the block `tell` hears inputs (tokens, d_in) and output gradients (tokens, d_out) of every backward pass."""

    def watch(name: str, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x = at_least_float32(inputs[0].detach()).flatten(0, -2)
        hear = partial(_told, tell, name, x)
        output.register_hook(hear)  # type: ignore[no-untyped-call]

    handles = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: watch(name, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def diagonal_fisher(layers: Mapping[str, Any], log_likelihoods: Sequence[Callable[[], torch.Tensor]]) -> Fisher:
    """The diagonal of the empirical Fisher information on delta W.

    Args:
        layers: The adapted layers by name.
        log_likelihoods: Per item what computes its log-likelihood, with a graph, in a pass of its own.

    Returns:
        Per layer the mean over items of the squared gradient in delta W.
    """
    sums: dict[str, torch.Tensor] = {}
    for compute in log_likelihoods:
        gradients: dict[str, torch.Tensor] = {}

        def add(name: str, x: torch.Tensor, g: torch.Tensor, into: dict[str, torch.Tensor] = gradients) -> None:
            into[name] = into[name] + g.T @ x if name in into else g.T @ x

        _backward(layers, compute, add)
        for name, gradient in gradients.items():
            sums[name] = sums[name] + gradient.square() if name in sums else gradient.square()
    return {name: Diagonal(total / len(log_likelihoods)) for name, total in sums.items()}


def kronecker_fisher(layers: Mapping[str, Any], log_likelihoods: Sequence[Callable[[], torch.Tensor]]) -> Fisher:
    """Kronecker factors of the empirical Fisher information on delta W.

    Tokens are taken to be independent, and inputs of output gradients (Martens & Grosse 2015). With items of one token the
    only approximation is the second.

    Args:
        layers: The adapted layers by name.
        log_likelihoods: As for `diagonal_fisher`.

    Returns:
        Per layer mean over tokens of x x^T, and mean over items of the sum over tokens of g g^T.
    """
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    tokens = dict.fromkeys(layers, 0)

    def add(name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        inputs[name] = inputs[name] + x.T @ x if name in inputs else x.T @ x
        outputs[name] = outputs[name] + g.T @ g if name in outputs else g.T @ g
        tokens[name] += len(x)

    for compute in log_likelihoods:
        _backward(layers, compute, add)
    return {name: Kronecker(inputs[name] / tokens[name], outputs[name] / len(log_likelihoods)) for name in inputs}


def _backward(
    layers: Mapping[str, Any],
    compute: Callable[[], torch.Tensor],
    tell: Tell,
) -> None:
    """One item's pass back; the trained weights get no gradient from it."""
    trained = [parameter for layer in layers.values() for parameter in layer.parameters() if parameter.requires_grad]
    with _watched(layers, tell):
        likelihood = compute()
        torch.autograd.grad(likelihood, trained, allow_unused=True)
