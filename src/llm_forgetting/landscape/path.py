"""Linear paths between two checkpoints in delta-W space."""

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.landscape.factors import WeightUpdate

PATH_STEPS = 101

# The path is fitted from a little before its start, where it is to be differentiated: at the end of a fit its second derivative
# is the worst of it.
LEAD = 0.1

# Step of the differences that differentiate fitted paths, in t: fits are smooth, so their error is 1e-4 of what they differ.
DIFFERENCE = 1e-3

# From one bowl into another the loss is steep: lower degrees were never enough, and eight check points cost more than they.
PATH_FIRST_DEGREE = 12


def interpolate(first: WeightUpdate, second: WeightUpdate, t: float) -> WeightUpdate:
    """delta W_1 + t (delta W_2 - delta W_1), of the two ranks together."""
    return WeightUpdate.combine([(1 - t, first), (t, second)]) if t != 1 else second


def selection_mask(count: int, pool: int) -> NDArray[np.bool_]:
    """Which of a task's `count` landscape items, drawn from `pool`, choose the repair; the others of the pool judge it.

    All of them where at least as many others are left, else every second one, beginning with the first.
    """
    return np.ones(count, dtype=bool) if pool >= 2 * count else np.asarray(np.arange(count) % 2 == 0)
