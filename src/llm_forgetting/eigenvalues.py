"""What is known of a spectrum: single eigenvalues, a trace, a density. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.objective import Floats


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value; an eigenvalue is within `residual` = |H v - value v| of it."""

    value: float
    residual: float


@dataclass(frozen=True)
class Trace:
    """`value` = tr H +- `stderr` (one standard error); infinite where there was a single probe."""

    value: float
    stderr: float


def mean_trace(samples: Sequence[float]) -> Trace:
    """Of independent unbiased estimates."""
    return estimate(0.0, samples)


def estimate(known: float, samples: Sequence[float]) -> Trace:
    """A part that is known and the mean of samples of the rest."""
    if not samples:
        return Trace(known, math.inf)
    spread = float(np.std(samples, ddof=1)) / len(samples) ** 0.5 if len(samples) > 1 else math.inf
    return Trace(known + float(np.mean(samples)), spread)


@dataclass(frozen=True)
class Density:
    """Spectral density: `weights` (p,) at `eigenvalues` (p,), the mean of several quadratures; the weights sum to 1."""

    eigenvalues: Floats
    weights: Floats

    def moment(self, power: int) -> float:
        """tr H^power / n."""
        return float(self.weights @ self.eigenvalues**power)

    def smooth(self, at: Floats, width: float) -> Floats:
        """Density at `at`, every eigenvalue blurred by a Gaussian of standard deviation `width`."""
        z = (at[:, None] - self.eigenvalues) / width
        return np.asarray(np.exp(-(z**2) / 2) @ self.weights / (width * (2 * math.pi) ** 0.5))
