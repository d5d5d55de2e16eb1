"""Changes of a task's landscape between checkpoints, on records made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from llm_forgetting.landscape.comparison import COMPARED, compare_landscapes, judge
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


NONE, MINIMUM, DISAGREE = "no difference shown", "no verdict: not a minimum", "no verdict: measures disagree"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((1.0, 0.3), (2.3, 0.4), "sharper"),  # the change's stderr is 0.5, t(5.6) = 2.49
        ((1.0, 0.3), (2.2, 0.4), NONE),  # more than two stderrs, which four directions cannot carry
        ((2.3, 0.3), (1.0, 0.4), "flatter"),
        ((1.0, 0.3), (0.01, 0.4), NONE),
        ((1.0, 0.0), (1.0, 0.0), NONE),
        ((1.0, 0.0), (2.0, 0.0), "sharper"),
        ((-0.06, 0.006), (0.001, 0.0), MINIMUM),
        ((1.0, 0.3), (-0.5, 0.4), MINIMUM),
        ((1.0, 0.3), (math.nan, 0.4), NONE),
        ((1.0, 0.3), (math.inf, math.nan), NONE),
    ],
)
def test_a_verdict_needs_minima_and_a_change_that_the_directions_can_carry(
    before: tuple[float, float], after: tuple[float, float], verdict: str
) -> None:
    (change,) = compare_landscapes({"after_task1": landscape(*before), "after_task2": landscape(*after, scale=1.5)})
    assert change.verdict == verdict
    assert change.sharper is {"sharper": True, "flatter": False}.get(verdict)
    assert (change.task, change.before, change.after) == ("a", "after_task1", "after_task2")
    assert (change.relative_scale.before, change.relative_scale.after) == (1.0, 1.5)
    np.testing.assert_allclose(change.mean_rise.change, after[0] - before[0])
    np.testing.assert_allclose(change.mean_rise.stderr, np.hypot(before[1], after[1]))


@pytest.mark.parametrize("directions", [(2, 2), (4, 4), (3, 9)])
def test_the_verdict_is_that_of_welchs_test(directions: tuple[int, int]) -> None:
    for seed in range(60):
        generator = np.random.default_rng(seed)
        first, second = (generator.normal(2 + k, 0.1 + k / 2, n) for k, n in enumerate(directions))
        rises = [MeanRise(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5), len(x)) for x in (first, second)]
        if min(rise.value for rise in rises) < 0:
            continue
        shown = stats.ttest_ind(first, second, equal_var=False).pvalue < 0.05
        assert judge(*rises, 0.0) in (("sharper", "flatter") if shown else (NONE,))


def test_measures_that_disagree_and_a_single_direction_give_no_verdict() -> None:
    low, high = MeanRise(1.0, 0.01, 4), MeanRise(2.0, 0.01, 4)
    assert judge(low, high, -1.0) == judge(high, low, 1.0) == DISAGREE
    assert judge(low, high, 1.0) == "sharper"
    assert judge(low, high, math.nan) == "sharper"
    assert judge(replace(low, directions=1), high, 1.0) == NONE


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
