"""Results of curvature estimates, each with its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats, Floats1, mean_stderr
from llm_forgetting.landscape.results import Saved


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value; an eigenvalue is within `residual` = |H v - value v| of it, or what rounding makes of that."""

    value: float
    residual: float


@dataclass(frozen=True)
class Trace:
    """`value` = tr H +- `stderr` (one standard error); infinite where there was a single probe."""

    value: float
    stderr: float


def mean_trace(samples: Sequence[float]) -> Trace:
    """The trace from independent unbiased estimates."""
    return estimate(0.0, samples)


def estimate(known: float, samples: Sequence[float]) -> Trace:
    """The trace from a part that is `known` and independent unbiased estimates of the rest."""
    if not samples:
        return Trace(known, math.inf)
    mean, stderr = mean_stderr(np.asarray(samples, dtype=np.float64))
    return Trace(known + mean, stderr)


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Spectral density: weights (p,), which sum to 1, at eigenvalues (p,)."""

    eigenvalues: Floats1
    weights: Floats1

    def moment(self, power: int) -> float:
        """tr H^power / n."""
        return float(self.weights @ self.eigenvalues**power)

    def smooth(self, at: Floats, width: float) -> Floats:
        """Density at `at`, every eigenvalue blurred by a Gaussian of standard deviation `width`."""
        z = (at[:, None] - self.eigenvalues) / width
        return np.asarray(np.exp(-(z**2) / 2) @ self.weights / (width * (2 * math.pi) ** 0.5))


@dataclass(frozen=True)
class HessianSpectrum(Saved):
    """Spectrum of the Hessian of the mean loss (of the tasks' mean, where there are several) at a model.

    `largest` and `smallest` eigenvalues with residuals |H v - value v|, `trace` +- one standard error, also of the diagonal
    block of every parameter or adapted module, and the spectral density as weights at eigenvalues. `description` says in
    which `dimension` coordinates. `products` is what it took. `note` says why there are fewer eigenvalues than asked for.
    """

    largest: tuple[Eigenvalue, ...]
    smallest: tuple[Eigenvalue, ...]
    trace: Trace
    trace_by_module: dict[str, Trace]
    density: SpectralDensity
    gradient_norm: float
    dimension: int
    description: str
    products: int
    note: str | None = None


@dataclass(frozen=True)
class ForecastOfStep(Saved):
    """Change of the mean loss along a step D, in nats: `first_order` g.D, `second_order` g.D + D.HD / 2, and `observed`.

    `curvature` is D.HD, `distance` |D|, `loss` the loss where the step begins.
    """

    loss: float
    first_order: float
    curvature: float
    second_order: float
    observed: float
    distance: float
