"""Largest eigenvalue by steepest ascent of the Rayleigh quotient."""

import math
from collections.abc import Callable

import numpy as np
import torch

from llm_forgetting.curvature.operators import Weights
from llm_forgetting.curvature.results import Eigenvalue


def largest_eigenvalue(
    product: Callable[[Weights], Weights], x: Weights, steps: int, advance: Callable[[], None] = lambda: None
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric operator, from below, by `steps` products.

    Steepest ascent of the Rayleigh quotient: from x to the top of the plane that x and H x span, whose image needs no product
    of its own. Three vectors are kept at a time.
    """
    x = _combined((1 / _norm(x), x))
    image = product(x)
    advance()
    for _ in range(steps - 1):
        alpha = _inner(x, image)
        q = _combined((1.0, image), (-alpha, x))
        beta = _norm(q)
        if not beta:
            break
        q = _combined((1 / beta, q))
        of_q = product(q)
        advance()
        _, vectors = np.linalg.eigh([[alpha, beta], [beta, _inner(q, of_q)]])
        c, s = map(float, vectors[:, 1])
        x, image = _combined((c, x), (s, q)), _combined((c, image), (s, of_q))
    value = _inner(x, image)
    return Eigenvalue(value, _norm(_combined((1.0, image), (-value, x))))


def _combined(*terms: tuple[float, Weights]) -> Weights:
    (first, x), *others = terms
    found = {name: first * part for name, part in x.items()}
    for c, y in others:
        for name, part in found.items():
            part.add_(y[name], alpha=c)
    return found


def _inner(x: Weights, y: Weights) -> float:
    return sum(float((part * y[name]).sum(dtype=torch.float64)) for name, part in x.items())


def _norm(x: Weights) -> float:
    return math.sqrt(_inner(x, x))
