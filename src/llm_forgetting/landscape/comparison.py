"""Changes of each task's loss surface from one checkpoint to the next; numbers only."""

from collections.abc import Mapping
from itertools import pairwise

from llm_forgetting.landscape.metrics import MeanRise, SurfaceMetrics, welch_half_width
from llm_forgetting.landscape.records import (
    ChangeVerdict,
    CheckpointLandscape,
    ComparedMetrics,
    LandscapeChange,
    MeanRiseChange,
    MetricChange,
    ScaleChange,
)

COMPARED = ("centre", "maximum", "standard_deviation", "curvature_centre", "curvature_inner", "range")


def compare_landscapes(landscapes: Mapping[str, CheckpointLandscape]) -> tuple[LandscapeChange, ...]:
    """Each metric before and after, for every pair of successive checkpoints and every task that was scanned at both.

    The mean rise carries the standard error of its difference, its two sides taken as independent.

    Args:
        landscapes: By checkpoint name, in order.

    Returns:
        One entry per pair and task, with its verdict (`judge`).
    """
    return tuple(
        _change(task, first, second, landscapes[first], landscapes[second])
        for first, second in pairwise(landscapes)
        for task in landscapes[first].surfaces
        if task in landscapes[second].surfaces
    )


def _change(
    task: str, first: str, second: str, before: CheckpointLandscape, after: CheckpointLandscape
) -> LandscapeChange:
    rise, later_rise = before.surfaces[task].mean_rise, after.surfaces[task].mean_rise
    change = later_rise.value - rise.value
    stderr = float((rise.stderr**2 + later_rise.stderr**2) ** 0.5)
    metrics = _compared(before.surfaces[task].metrics, after.surfaces[task].metrics)
    verdict = judge(rise, later_rise, metrics.curvature_centre.change)
    return LandscapeChange(
        task=task,
        before=first,
        after=second,
        metrics=metrics,
        mean_rise=MeanRiseChange(rise.value, later_rise.value, change, stderr, rise.directions),
        sharper={"sharper": True, "flatter": False}.get(verdict),
        relative_scale=ScaleChange(before.relative_scale, after.relative_scale),
        verdict=verdict,
    )


def judge(before: MeanRise, after: MeanRise, curvature: float) -> ChangeVerdict:
    """Verdict on a change of the mean rise, where `curvature` is that of the curvature at the centre.

    Returns:
        No verdict where the rise is negative on either side, because the checkpoint is no minimum of the task. Else none is
        shown where Welch's 95% t interval of the change covers 0: a random direction is one sample. Else none where the
        curvature changed the other way. Else sharper or flatter.
    """
    if before.value < 0 or after.value < 0:
        return "no verdict: not a minimum"
    change = after.value - before.value
    half = welch_half_width((before.stderr, after.stderr), (before.directions, after.directions))
    if not abs(change) > half:
        return "no difference shown"
    if change * curvature < 0:
        return "no verdict: measures disagree"
    return "sharper" if change > 0 else "flatter"


def _compared(before: SurfaceMetrics, after: SurfaceMetrics) -> ComparedMetrics:
    pairs = {name: (float(getattr(before, name)), float(getattr(after, name))) for name in COMPARED}
    return ComparedMetrics(**{name: MetricChange(old, new, new - old) for name, (old, new) in pairs.items()})
