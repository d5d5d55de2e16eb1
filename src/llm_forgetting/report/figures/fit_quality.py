"""How far the values behind a figure may be off, in words that belong on the figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import RANGE_CAP
from llm_forgetting.report.figures.layout import together

# An error is told as a share of the loss's range, but never of more than this many nats (as it was judged).


@dataclass(frozen=True)
class Quality:
    """A fact for the caption, and alarms where it must not be overlooked."""

    fact: str
    alarms: tuple[str, ...] = ()


def quality(fit: Mapping[str, Any] | None, error: Mapping[str, Any] | None, values: Floats) -> Quality:
    """How many evaluations stand behind fitted (or gridded) `values`, and how far they may be off."""
    if fit is None or error is None:
        return Quality(f"grid, {values.size} evaluations")
    count, relative = f"{fit['evaluations']} evaluations", float(error["relative"])
    finite = values[np.isfinite(values)]
    whole = f"of {RANGE_CAP:g} nats" if finite.size and np.ptp(finite) > RANGE_CAP else "of the range"
    if not relative <= float(fit["tolerance"]):
        return Quality(count, (f"NOT CONVERGED: {together(f'error {_percent(relative)} {whole}')}",))
    return Quality(f"{count}, {together(f'error {_percent_above(relative)} {whole}')}")


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def _percent_above(share: float) -> str:
    """Rounded up to one digit, never down; no smaller than 0.01%."""
    percent = 100 * max(share, 1e-4)
    unit = 10.0 ** math.floor(math.log10(percent))
    return f"{math.ceil(percent / unit - 1e-6) * unit:g}%"


def space_alarms(space: str) -> tuple[str, ...]:
    """What must stand on every figure of a space whose landscapes another gauge of the same adapter would change."""
    return (f"not comparable: {together('raw coordinates')}",) if space == "raw" else ()
