"""Quality of the values behind a picture: how many evaluations, and how far a fit may be off, in words."""

from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import RANGE_CAP
from llm_forgetting.landscape.records import FitError, FitSummary
from llm_forgetting.report.tables.landscape import percent_above
from llm_forgetting.report.tables.run import share
from llm_forgetting.report.views.captions import together

# A larger error is marked even where a fit was allowed it.
MARKED = 0.01


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
    """Quality of fitted `values`, any shape, in nats; an error above the tolerance, or above 1%, is an alarm."""
    finite = values[np.isfinite(values)]
    size = f"of {RANGE_CAP:g} nats" if finite.size and np.ptp(finite) > RANGE_CAP else "of the range"
    count, text = f"{evaluations} evaluations", together(f"error {percent_above(error.relative)} {size}")
    if not error.relative <= tolerance:
        return FitQuality(count, (f"NOT CONVERGED: {text}",))
    if error.relative > MARKED:
        return FitQuality(count, (f"{text} {together(f'(accepted up to {share(tolerance)})')}",))
    return FitQuality(f"{count}, {text}")
