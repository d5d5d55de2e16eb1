"""Quality of the values behind a picture: how many evaluations, and how far a fit may be off, in words."""

import math
from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import RANGE_CAP
from llm_forgetting.landscape.records import FitError, FitSummary
from llm_forgetting.report.views.captions import together


@dataclass(frozen=True)
class FitQuality:
    """Quality as a fact for the caption, and as alarms where it must not be overlooked."""

    fact: str
    alarms: tuple[str, ...] = ()


def surface_quality(fit: FitSummary | None, error: FitError | None, values: Floats) -> FitQuality:
    """Quality of a surface's `values`, any shape, in nats; without a fit every one of them was evaluated."""
    if fit is None or error is None:
        return FitQuality(f"grid, {values.size} evaluations")
    return fit_quality(error, values, evaluations=fit.evaluations, tolerance=fit.tolerance)


def fit_quality(error: FitError, values: Floats, *, evaluations: int, tolerance: float) -> FitQuality:
    """Quality of fitted `values`, any shape, in nats; an error above the tolerance is an alarm."""
    finite = values[np.isfinite(values)]
    size = f"of {RANGE_CAP:g} nats" if finite.size and np.ptp(finite) > RANGE_CAP else "of the range"
    count = f"{evaluations} evaluations"
    if not error.relative <= tolerance:
        return FitQuality(count, (f"NOT CONVERGED: {together(f'error {_percent(error.relative)} {size}')}",))
    return FitQuality(f"{count}, {together(f'error {_percent_above(error.relative)} {size}')}")


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def _percent_above(share: float) -> str:
    """Rounded up to one digit, never down; no smaller than 0.01%."""
    percent = 100 * max(share, 1e-4)
    unit = 10.0 ** math.floor(math.log10(percent))
    return f"{math.ceil(percent / unit - 1e-6) * unit:g}%"
