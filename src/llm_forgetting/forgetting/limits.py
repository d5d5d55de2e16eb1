"""Whether forgetting is shown to stay within a limit, shown to exceed it, or neither."""

import math
from dataclasses import dataclass
from typing import Literal

from llm_forgetting.forgetting.intervals import Interval

LimitOutcome = Literal["kept", "forgotten", "cannot be said"]


@dataclass(frozen=True)
class LimitedForgetting:
    """Forgetting of one task (positive = lost; a share, or nats) held against the most that is allowed.

    The outcome follows from the 95% interval: `kept` where all of it is at most `limit`, `forgotten` where all of it is
    above; each is wrong for at most 2.5% of samples of items. `cannot be said` otherwise, and without an interval.
    """

    task: str
    n: int
    value: float
    interval: Interval | None
    limit: float

    @property
    def outcome(self) -> LimitOutcome:
        """What is shown."""
        if self.interval is None or not math.isfinite(self.interval.low + self.interval.high):
            return "cannot be said"
        if self.interval.high <= self.limit:
            return "kept"
        return "forgotten" if self.interval.low > self.limit else "cannot be said"

    @property
    def items_needed(self) -> int | None:
        """About how many items would tell, if the value stayed as it is; None where that cannot be said.

        The interval's width is taken to shrink as 1 / sqrt(n): n (reach / |limit - value|)^2, where reach is how far the
        interval goes from the value on the limit's side.
        """
        if self.interval is None or not math.isfinite(self.value) or self.value == self.limit:
            return None
        reach = self.interval.high - self.value if self.value < self.limit else self.value - self.interval.low
        return math.ceil(self.n * (reach / abs(self.limit - self.value)) ** 2)
