"""Changes of each task's loss surface from one checkpoint to the next; numbers only."""

from collections.abc import Mapping
from itertools import pairwise

from llm_forgetting.landscape.metrics import SurfaceMetrics
from llm_forgetting.landscape.records import (
    CheckpointLandscape,
    ComparedMetrics,
    LandscapeChange,
    MeanRiseChange,
    MetricChange,
    ScaleChange,
)

COMPARED = ("centre", "maximum", "standard_deviation", "curvature_centre", "curvature_inner", "range")


def compare_landscapes(landscapes: Mapping[str, CheckpointLandscape]) -> tuple[LandscapeChange, ...]:
    """Each metric before and after, for every pair of successive checkpoints and every task.

    The mean rise carries the standard error of its difference, its two sides taken as independent.

    Args:
        landscapes: By checkpoint name, in order.

    Returns:
        One entry per pair and task; `sharper` says whether the mean rise grew by more than two such errors (True), fell by
        more (False), or neither (None): one random direction is one sample.
    """
    return tuple(
        _change(task, first, second, landscapes[first], landscapes[second])
        for first, second in pairwise(landscapes)
        for task in landscapes[first].surfaces
    )


def _change(
    task: str, first: str, second: str, before: CheckpointLandscape, after: CheckpointLandscape
) -> LandscapeChange:
    rise, later_rise = before.surfaces[task].mean_rise, after.surfaces[task].mean_rise
    change = later_rise.value - rise.value
    stderr = float((rise.stderr**2 + later_rise.stderr**2) ** 0.5)
    return LandscapeChange(
        task=task,
        before=first,
        after=second,
        metrics=_compared(before.surfaces[task].metrics, after.surfaces[task].metrics),
        mean_rise=MeanRiseChange(rise.value, later_rise.value, change, stderr, rise.directions),
        sharper=True if change > 2 * stderr else False if change < -2 * stderr else None,
        relative_scale=ScaleChange(before.relative_scale, after.relative_scale),
    )


def _compared(before: SurfaceMetrics, after: SurfaceMetrics) -> ComparedMetrics:
    pairs = {name: (float(getattr(before, name)), float(getattr(after, name))) for name in COMPARED}
    return ComparedMetrics(**{name: MetricChange(old, new, new - old) for name, (old, new) in pairs.items()})
