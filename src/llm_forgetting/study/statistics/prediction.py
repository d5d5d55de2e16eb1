"""Does a measure predict forgetting for a task pair it has not seen?

Each first task in turn is left out with all its pairs (a pair that shares it would tell its numbers); a line outcome = a + b
measure is fitted to the others and predicts its runs. The rivals are the mean of the others and, where one is named, a line in
a baseline measure (|D|, say).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.study.statistics.calibration import fit_line
from llm_forgetting.study.statistics.clusters import MeanOverPairs, mean_over_pairs
from llm_forgetting.study.statistics.runs import TASK_PAIR, Columns, Floats, Run, columns


@dataclass(frozen=True)
class PairPrediction:
    """How well a line in `measure` predicts the outcome of task pairs that were left out of its fit.

    error, mean_error, baseline_error: mean absolute error, in the unit of the outcome, of the line, of the mean of the
    other units and of the line in the baseline measure, in the same runs; skill: 1 - sum of squares of the line's errors
    over that of the mean's, at most 1, negative where the mean is nearer; gain_over_mean and gain_over_baseline: mean
    over units of their absolute error less the line's, positive where the measure predicts better. The intervals treat
    the left-out units as independent, though their fits share runs: take them as a guide.
    refusal: why there is no prediction, else None; unit: what is left out, a task pair or a first task.
    """

    measure: str
    outcome: str
    baseline: str | None
    n_runs: int
    n_pairs: int
    excluded: int
    error: float | None = None
    mean_error: float | None = None
    baseline_error: float | None = None
    skill: float | None = None
    gain_over_mean: MeanOverPairs | None = None
    gain_over_baseline: MeanOverPairs | None = None
    refusal: str | None = None
    unit: str = TASK_PAIR


def predict_unseen_pairs(
    runs: Sequence[Run], outcome: str, measure: str, *, baseline: str | None = None, seed: int
) -> PairPrediction:
    """Leave-one-unit-out prediction of `outcome` by `measure`.

    Refused below three units, or where the measure or the baseline is constant in the units of a fit.
    """
    names = [measure] if baseline is None or baseline == measure else [measure, baseline]
    data = columns(runs, [*names, outcome])
    about = (measure, outcome, names[1] if len(names) == 2 else None, data.n_runs, data.n_pairs, data.excluded)
    if data.n_units < 3:
        return PairPrediction(*about, refusal=f"prediction of unseen {data.unit}s needs at least three", unit=data.unit)
    predicted = [_left_out(data, column) for column in range(len(names))]
    if not np.isfinite(predicted).all():
        return PairPrediction(*about, refusal="a line cannot be fitted to a constant measure", unit=data.unit)
    y = data.values[:, -1]
    errors = np.array([_left_out(data, None) - y, *(values - y for values in predicted)])
    absolute = np.abs(errors)
    gains = [
        mean_over_pairs(absolute[rival] - absolute[1], data.pairs, seed=seed, first_tasks=data.first_tasks)
        for rival in range(len(errors))
    ]
    return PairPrediction(
        *about,
        error=float(absolute[1].mean()),
        mean_error=float(absolute[0].mean()),
        baseline_error=float(absolute[2].mean()) if len(names) == 2 else None,
        skill=_skill(errors[1], errors[0]),
        gain_over_mean=gains[0],
        gain_over_baseline=gains[2] if len(names) == 2 else None,
        unit=data.unit,
    )


def _left_out(data: Columns, column: int | None) -> Floats:
    """The prediction for every run from the other units, by a line in a column or by their mean."""
    predicted: Floats = np.empty(data.n_runs)
    y = data.values[:, -1]
    for unit in range(data.n_units):
        here = data.first_tasks == unit
        if column is None:
            predicted[here] = y[~here].mean()
        else:
            slope, intercept = fit_line(data.values[~here, column], y[~here])
            predicted[here] = intercept + slope * data.values[here, column]
    return predicted


def _skill(errors: Floats, of_mean: Floats) -> float | None:
    total = float(of_mean @ of_mean)
    return 1 - float(errors @ errors) / total if total > 0 else None
