"""Largest eigenvalue by steepest ascent of the Rayleigh quotient."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from llm_forgetting.curvature.operators import Weights
from llm_forgetting.curvature.results import Eigenvalue


class State(Protocol):
    """Where an iteration keeps the number of its steps and its vectors."""

    def read(self) -> tuple[int, list[Weights]] | None:
        """The latest."""
        ...

    def write(self, done: int, vectors: Sequence[Weights]) -> None:
        """Replace it."""
        ...


# Cosine between x and its residual from which the residual counts as rounding.
SKEW = 0.03


def largest_eigenvalue(
    product: Callable[[Weights], Weights],
    x: Weights,
    steps: int,
    advance: Callable[[], object] = lambda: None,
    state: State | None = None,
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric operator, from below.

    Steepest ascent of the Rayleigh quotient: from x to the top of the plane that x and H x span, whose image needs no product
    of its own. At most four vectors are there at a time: x, its image, the new direction and its image. The ascent ends early
    where rounding dominates the residual: it is then not orthogonal to x any more, and the next plane would throw the value
    off.

    Args:
        product: H of a vector.
        x: Start, not 0; one that nobody else holds is let go.
        steps: Number of products, fewer where the ascent ends early.
        advance: Called `steps` times, after every product.
        state: What the ascent goes on from, and where it keeps x and its image after every product.

    Returns:
        The Rayleigh quotient at the end, with the norm of its residual, or what rounding makes of that.
    """
    before = state.read() if state else None
    if before:
        first, vectors = before
        x, image = (Weights({name: part.to(x[name]) for name, part in vector.items()}) for vector in vectors)
    else:
        first, x = 1, Weights(x)
        x.become([(1 / x.norm(), x)])
        image = product(x)
        if state:
            state.write(1, [x, image])
    for _ in range(first):
        advance()
    for done in range(first, steps):
        alpha = x.inner(image)
        q = Weights.combine([(1.0, image), (-alpha, x)])
        beta = q.norm()
        if beta:
            q.become([(1 / beta, q)])
        if not beta or abs(x.inner(q)) > SKEW:
            for _ in range(done, steps):
                advance()
            break
        of_q = product(q)
        advance()
        _, axes = np.linalg.eigh([[alpha, beta], [beta, q.inner(of_q)]])
        c, s = map(float, axes[:, 1])
        x.become([(c, x), (s, q)])
        image.become([(c, image), (s, of_q)])
        if state:
            state.write(done + 1, [x, image])
        del q, of_q
    value = x.inner(image)
    rounding = torch.finfo(next(iter(image.values())).dtype).eps * abs(value)
    return Eigenvalue(value, max(Weights.combine([(1.0, image), (-value, x)]).norm(), rounding))
