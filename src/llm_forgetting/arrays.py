"""Arrays: the float type, and rounding noise set to zero."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Losses, correlations and shares are of the size of 1, and sums over items or runs keep some thirteen of float64's digits.
ROUNDING = 1e-12


def settled(value: float) -> float:
    """`value`, or 0 where rounding alone makes numbers of that size; 1e-5 is a number."""
    return 0.0 if abs(value) < ROUNDING else value
