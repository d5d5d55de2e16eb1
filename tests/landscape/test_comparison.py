"""Changes of a task's landscape between checkpoints, on records made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llm_forgetting.landscape.comparison import COMPARED, compare_landscapes
from llm_forgetting.landscape.metrics import MeanRise, SurfaceMetrics
from llm_forgetting.landscape.records import (
    BasinRadius,
    CheckpointLandscape,
    GaugeSelfTest,
    LineProfiles,
    TaskSurface,
)

METRICS = SurfaceMetrics(
    centre=1.0, maximum=1.0, standard_deviation=1.0, curvature_centre=1.0, curvature_centre_error=None, curvature_inner=1.0,
    curvature_inner_error=None, range=1.0, centre_eigenvalues=(1.0, 1.0), share_within=1.0, flat=False, non_finite_cells=0,
)  # fmt: skip


def landscape(rise: float, stderr: float, scale: float = 1.0, metrics: SurfaceMetrics = METRICS) -> CheckpointLandscape:
    line, square = np.zeros(3), np.zeros((3, 3))
    surface = TaskSurface(
        items=("a/0",), loss=square, four_way_loss=square, accuracy=square, letter_mass=square, error=None, metrics=metrics,
        mean_rise=MeanRise(rise, stderr, 4), lines=LineProfiles(line, square, line, line, line, BasinRadius(0.1, None)),
        measured_loss=line,
    )  # fmt: skip
    return CheckpointLandscape(
        space="adapter", method="grid", distance=1.0, alphas=line, betas=line, adapter_norm=scale, reference_norm=1.0,
        relative_scale=scale, update_norm=1.0, direction_cosine=0.0, evaluations=9, fit=None, note=None, points=square,
        surfaces={"a": surface}, gauge_self_test=GaugeSelfTest(1, (1.0, 1.0), 0.0, (1.0, 1.0), 0.0, 1e-4, True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "sharper"),
    [
        ((1.0, 0.3), (2.01, 0.4), True),  # the change's stderr is 0.5
        ((1.0, 0.3), (1.99, 0.4), None),
        ((1.0, 0.3), (-0.01, 0.4), False),
        ((1.0, 0.3), (0.01, 0.4), None),
        ((1.0, 0.0), (1.0, 0.0), None),
        ((1.0, 0.3), (math.nan, 0.4), None),
        ((1.0, 0.3), (math.inf, math.nan), None),
    ],
)
def test_sharper_is_more_than_two_standard_errors(
    before: tuple[float, float], after: tuple[float, float], sharper: bool | None
) -> None:
    (change,) = compare_landscapes({"after_task1": landscape(*before), "after_task2": landscape(*after, scale=1.5)})
    assert change.sharper is sharper
    assert (change.task, change.before, change.after) == ("a", "after_task1", "after_task2")
    assert (change.relative_scale.before, change.relative_scale.after) == (1.0, 1.5)
    np.testing.assert_allclose(change.mean_rise.change, after[0] - before[0])
    np.testing.assert_allclose(change.mean_rise.stderr, np.hypot(before[1], after[1]))


def test_every_metric_is_compared_after_minus_before() -> None:
    first = landscape(0, 1, metrics=replace(METRICS, maximum=5.0, range=math.inf))
    second = landscape(0, 1, metrics=replace(METRICS, maximum=3.0, range=2.0))
    (change,) = compare_landscapes({"after_task1": first, "after_task2": second})
    maximum = change.metrics.maximum
    assert (maximum.before, maximum.after, maximum.change) == (5.0, 3.0, -2.0)
    assert change.metrics.range.change == -math.inf
    assert set(vars(change.metrics)) == set(COMPARED)


def test_successive_checkpoints_are_compared_and_one_alone_is_not() -> None:
    three = {f"after_task{k}": landscape(k, 0.1) for k in (1, 2, 3)}
    assert [(change.before, change.after) for change in compare_landscapes(three)] == [
        ("after_task1", "after_task2"),
        ("after_task2", "after_task3"),
    ]
    assert compare_landscapes({"after_task1": three["after_task1"]}) == ()
