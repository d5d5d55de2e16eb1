"""Records of second derivatives: spectrum and sharpness at a checkpoint, and what it forecasts of the next. No torch.

Losses are in nats; g and H are gradient and Hessian of a task's mean loss, D = delta W_2 - delta W_1 the merged
difference.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from llm_forgetting.arrays import Floats1
from llm_forgetting.curvature.results import Eigenvalue, SpectralDensity, Trace
from llm_forgetting.files import OMITTED


@dataclass(frozen=True)
class WeightSpectrum:
    """Trace and largest eigenvalue of H in the merged weights of the adapted modules, and how many weights these
    are.
    """

    dimension: int
    trace: Trace
    largest: Eigenvalue


@dataclass(frozen=True)
class WorstCase:
    """Worst-case sharpness: max over |e| <= radius of L(theta + e) - L(theta), nats, from below: by one step along g,
    and by projected ascent of `steps` steps.
    """

    radius: float
    one_step: float
    ascent: float
    steps: int


@dataclass(frozen=True)
class AverageCase:
    """Average-case sharpness: E L(theta + e) - L(theta), nats, +- one stderr over independent e of norm `radius`."""

    radius: float
    value: float
    stderr: float
    samples: int


@dataclass(frozen=True)
class CriticalSharpness:
    """Critical sharpness 2 / eta_c: eta_c = `step`, the first step along -u at which the loss exceeds its start.

    `value` and `step` are None where it means nothing: `slope` g.u / |u| <= 0, or no step up to `longest` brought the
    loss back. `curvature` is u.Hu / |u|^2.
    """

    value: float | None
    step: float | None
    slope: float
    curvature: float
    longest: float


@dataclass(frozen=True)
class Sharpness:
    """Sharpness of the loss at a checkpoint in canonical factors, each measure on `items_per_step` items."""

    items_per_step: int
    worst_case: WorstCase
    average_case: AverageCase
    critical: CriticalSharpness


@dataclass(frozen=True)
class SpectrumRecord:
    """Spectrum of H (nats per squared unit of the canonical factors) of the task just learnt, at one checkpoint.

    largest, smallest: extreme eigenvalues; trace and its parts by module; repeated_product_difference: relative
    difference of two equal products; difference_error: relative error of products by differences, None for exact ones;
    weights: None where it was not asked for.
    """

    items: tuple[str, ...]
    dimension: int
    gradient_norm: float
    largest: tuple[Eigenvalue, ...]
    smallest: tuple[Eigenvalue, ...]
    trace: Trace
    trace_by_module: dict[str, Trace]
    density: SpectralDensity
    repeated_product_difference: float
    difference_error: float | None
    weights: WeightSpectrum | None
    sharpness: Sharpness


@dataclass(frozen=True)
class Divergence:
    """Divergence KL(p_1 || p_2) of the answer distributions on items of the new task, nats, with its stderr."""

    value: float
    stderr: float
    items: int


@dataclass(frozen=True)
class Validity:
    """Validity of the quadratic forecast: up to the share `fraction` of the path it is within `tolerance` nats of the
    loss.
    """

    fraction: float
    tolerance: float


@dataclass(frozen=True, eq=False)
class PathForecast:
    """Path's own slope and curvature at its start (nats), the relative disagreement of that curvature with D.HD, and
    the quadratic forecast (s,) at the path's steps (nats).
    """

    slope: float
    curvature: float
    curvature_error: float
    disagreement: float
    quadratic: Floats1
    validity: Validity


@dataclass(frozen=True)
class TaskForecast:
    """Forecast of one task's change of loss, and what happened: loss at the start, g.D, D.HD, g.D + D.HD / 2 and the
    observed change, all nats. `path` is None where the path of these items was not measured. `curvature_error`: of D.HD
    from differences of slopes, nats; that of the second order is half of it; absent where D.HD is exact.
    """

    items: tuple[str, ...]
    loss: float
    first_order: float
    curvature: float
    second_order: float
    observed: float
    path: PathForecast | None
    curvature_error: Annotated[float | None, OMITTED] = None


@dataclass(frozen=True)
class RivalPredictors:
    """Rival predictors of the change of `task`: lambda_max |D|^2 / 2 and the rise of a random step as long as D (nats),
    the alignment of D with H (None where the trace is not distinguishable from 0), and relative critical sharpness.
    """

    task: str
    quadratic_bound: float
    average_rise: Trace
    alignment: float | None
    relative_critical_sharpness: float | None


@dataclass(frozen=True)
class ForecastPhase:
    """Forecasts at checkpoint `start` of the losses at `to`, by task and split, as the phase leaves them; update_norm
    is |D|. relative_critical: None without `curvature.spectrum`.
    """

    start: Annotated[str, Field(alias="from")]
    to: str
    update_norm: float
    relative_critical: CriticalSharpness | None
    divergence: Divergence
    tasks: dict[str, dict[str, TaskForecast]]


@dataclass(frozen=True)
class ForecastRecord(ForecastPhase):
    """Forecasts as in the phase, and beside them the rival predictors (None where there is no spectrum in the
    weights).
    """

    rivals: RivalPredictors | None
