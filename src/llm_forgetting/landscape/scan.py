"""Losses over planes and lines through a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llm_forgetting.landscape.directions import Direction, point
from llm_forgetting.landscape.gauge import Adapter, Factors
from llm_forgetting.objective import AnswerStatistics, Floats


class Objective(Protocol):
    """The loss of fixed items, as a function of the adapter: one `AnswerStatistics` per task, from one pass."""

    def __call__(self, point: dict[str, Factors], /) -> Sequence[AnswerStatistics]: ...


@dataclass(frozen=True)
class PlaneScan:
    """Per task the statistics at theta + alphas[i] d + betas[j] e, leading axes (i, j)."""

    alphas: Floats
    betas: Floats
    tasks: tuple[AnswerStatistics, ...]


def stacked(points: Sequence[Sequence[AnswerStatistics]]) -> tuple[AnswerStatistics, ...]:
    """Statistics of many points, one per task, with the points along a new first axis."""
    return tuple(
        AnswerStatistics(
            letter_logits=np.stack([entry.letter_logits for entry in entries]),
            rest=np.stack([entry.rest for entry in entries]),
            answers=entries[0].answers,
        )
        for entries in zip(*points, strict=True)
    )


def scan_plane(
    objective: Objective,
    adapter: Adapter,
    d: Direction,
    e: Direction,
    *,
    distance: float,
    resolution: int,
    advance: Callable[[], None] = lambda: None,
) -> PlaneScan:
    """Evaluate theta + a d + b e on the odd grid a, b in linspace(-distance, distance, resolution), exact centre.

    result.tasks[t].surface("loss")[i, j] = L_t(theta + alphas[i] d + betas[j] e). `advance` is called after each point.
    """
    half = resolution // 2
    axis = np.arange(-half, half + 1, dtype=np.float64) * (distance / half)
    points = []
    for a in axis:
        for b in axis:
            points.append(objective(point(adapter, [(float(a), d), (float(b), e)])))
            advance()
    shape = (resolution, resolution)
    tasks = tuple(
        AnswerStatistics(
            s.letter_logits.reshape(*shape, *s.letter_logits.shape[1:]), s.rest.reshape(*shape, -1), s.answers
        )
        for s in stacked(points)
    )
    return PlaneScan(axis, axis.copy(), tasks)


def scan_line(
    objective: Objective,
    adapter: Adapter,
    d: Direction,
    steps: Sequence[float],
    advance: Callable[[], None] = lambda: None,
) -> tuple[AnswerStatistics, ...]:
    """Per task the statistics at theta + a d for every a in `steps`, leading axis the step."""
    points = []
    for a in steps:
        points.append(objective(point(adapter, [(float(a), d)])))
        advance()
    return stacked(points)
