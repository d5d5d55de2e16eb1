"""Are forecasts of forgetting right in size? Forecast beside observed forgetting, over runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.study.statistics.association import Coefficient, spearman_over_runs
from llm_forgetting.study.statistics.clusters import fit_over_pairs
from llm_forgetting.study.statistics.runs import TASK_PAIR, Floats, Run, columns


@dataclass(frozen=True)
class Calibration:
    """Forecasts f beside observed values y, in the unit of the outcome, over the runs where both are finite.

    slope and intercept: of y = intercept + slope f by least squares; (1, 0) for a calibrated forecast, a slope below 1
    where forecasts are spread too widely; rank_correlation: Spearman's rho over all runs, with the interval of
    `resampling`; mean_error: mean(f - y);
    mean_absolute_error: mean |f - y|; sign_right: share of runs in which f and y have the same sign;
    r_squared: 1 - sum (y - f)^2 / sum (y - mean y)^2, of the forecast as it stands against the mean of all runs, which it
    was not told; negative where the mean is nearer. Intervals: jackknife over units (`clusters.fit_over_pairs`).
    refusal: why slope, intercept and r_squared are missing, else None; unit, n_units: a first task, or a task pair where none
    share one, and how many there are.
    """

    forecast: str
    outcome: str
    n_runs: int
    n_pairs: int
    excluded: int
    mean_error: Estimate
    mean_absolute_error: Estimate
    sign_right: Estimate
    slope: Estimate | None = None
    intercept: Estimate | None = None
    rank_correlation: Coefficient | None = None
    r_squared: float | None = None
    refusal: str | None = None
    unit: str = TASK_PAIR
    n_units: int = 0


def calibrate(runs: Sequence[Run], forecast: str, outcome: str, *, seed: int) -> Calibration:
    """How well `forecast` predicted `outcome`. Raises ValueError if no run has both."""
    data = columns(runs, [forecast, outcome])
    if data.n_runs == 0:
        raise ValueError(f"no run has a finite {forecast} and a finite {outcome}")
    f, y = data.values.T
    error, absolute, sign = fit_over_pairs(lambda rows: _errors(f[rows], y[rows]), data.first_tasks, unit=data.unit)
    sizes = (data.n_runs, data.n_pairs, data.excluded)
    about = (forecast, outcome, *sizes, error, _cut(absolute, 0.0, np.inf), _cut(sign, 0.0, 1.0))
    if data.n_runs < 3 or np.ptp(f) == 0 or np.ptp(y) == 0:
        reason = "a line needs three runs whose forecasts and outcomes differ"
        return Calibration(*about, refusal=reason, unit=data.unit, n_units=data.n_units)
    slope, intercept = fit_over_pairs(lambda rows: fit_line(f[rows], y[rows]), data.first_tasks, unit=data.unit)
    rho = spearman_over_runs(data, seed=seed)
    r_squared = 1 - float(((y - f) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return Calibration(*about, slope, intercept, rho, r_squared, unit=data.unit, n_units=data.n_units)


def fit_line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of least squares; (NaN, NaN) where x does not vary."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 0 else float("nan")
    return slope, float(y.mean() - slope * x.mean())


def _errors(f: Floats, y: Floats) -> tuple[float, float, float]:
    return float((f - y).mean()), float(np.abs(f - y).mean()), float((np.sign(f) == np.sign(y)).mean())


def _cut(estimate: Estimate, least: float, most: float) -> Estimate:
    """The estimate with its interval cut to what can be."""
    if estimate.interval is None:
        return estimate
    low, high = max(estimate.interval.low, least), min(estimate.interval.high, most)
    return Estimate(estimate.value, estimate.stderr, Interval(low, high, method=estimate.interval.method))
