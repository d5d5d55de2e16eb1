"""What an intervention does to forgetting, and what is left of it at matched learning of task 2.

An arm that learns less of task 2 forgets less of task 1 without being any better: learning and forgetting trade off. So
each arm is compared with the baseline twice, as it is and at the same learning. A function-preserving control, such as
rescaling (A, B) before task 2, is an arm like any other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.study.statistics.clusters import MINIMUM_PAIRS, MeanOverPairs, fit_over_pairs, mean_over_pairs
from llm_forgetting.study.statistics.permutation import PermutationTest, sign_flip
from llm_forgetting.study.statistics.runs import Floats, Indices, Run, columns, numbered, partners

_ROUNDING = 1e-12


@dataclass(frozen=True)
class ArmEffect:
    """Arm less baseline in runs that agree in task pair and in the factors `matched_on`.

    unmatched: runs of either arm without a partner, or whose number is missing, NaN or infinite.
    ratio: the difference is one of natural logarithms, so that exp(difference) is the factor between arm and baseline: for
    positive numbers that differ in scale, of which one large one would decide the mean.
    """

    arm: object
    baseline: object
    outcome: str
    matched_on: tuple[str, ...]
    difference: MeanOverPairs
    unmatched: int
    ratio: bool = False


@dataclass(frozen=True)
class MatchedEffect:
    """Arm less baseline in outcome at equal learning, by analysis of covariance within task pairs.

        value = mean over units, and over the pairs p of each, of
                (mean y_arm,p - mean y_base,p) - b (mean l_arm,p - mean l_base,p)
        b = sum (l - mean l)(y - mean y) / sum (l - mean l)^2,  means over the runs of one arm in one pair

    in the runs whose learning l lies in the range that both arms reach in their pair. The line is taken to be straight
    there and the same for both arms; noise in l flattens b, so that too little is adjusted for. adjusted: jackknife over
    units (first tasks, or pairs where none share one); test: sign-flip of the units' adjusted differences, b taken as given;
    learning_difference: of all runs, one value per pair, before any run is left out; runs_used of n_runs, pairs_overlapping of
    n_pairs: how well the learning could be matched at all; adjusted speaks of the overlapping pairs only.
    refusal: why there is no adjusted difference, else None.
    """

    arm: object
    baseline: object
    outcome: str
    learning: str
    n_runs: int
    n_pairs: int
    excluded: int
    runs_used: int
    pairs_overlapping: int
    learning_difference: MeanOverPairs
    adjusted: Estimate | None = None
    slope: Estimate | None = None
    test: PermutationTest | None = None
    refusal: str | None = None


def compare_arms(
    runs: Sequence[Run],
    outcome: str,
    *,
    factor: str,
    arm: object,
    baseline: object,
    matched_on: Sequence[str] = ("seed",),
    ratio: bool = False,
    seed: int,
) -> ArmEffect:
    """The effect of setting `factor` to `arm` instead of `baseline`, in runs that are otherwise alike; `ratio`: of logarithms.

    Raises ValueError if no runs match, if two runs of one arm agree in pair and `matched_on` (name more factors), or if the
    logarithm of a number is wanted that is not positive.
    """
    known = [math.isfinite(run.number(outcome)) for run in runs]
    both = partners(runs, known, factor=factor, arm=arm, baseline=baseline, matched_on=matched_on)
    if not both:
        raise ValueError(f"no run with {factor} = {arm!r} has a partner with {factor} = {baseline!r}")
    total = sum(run.factors.get(factor) in (arm, baseline) for run in runs)
    values = np.array([[runs[n].number(outcome) for n in pair] for pair in both]).T
    if ratio and not (values > 0).all():
        raise ValueError(f"ratios need positive numbers: {outcome} is {values.min():.3g} in a run")
    differences = np.subtract(*(np.log(values) if ratio else values))
    matched = [runs[base] for _, base in both]
    pairs, _ = numbered([run.pair for run in matched])
    first_tasks, _ = numbered([run.first_task or run.pair for run in matched])
    mean = mean_over_pairs(differences, pairs, seed=seed, first_tasks=first_tasks)
    return ArmEffect(arm, baseline, outcome, tuple(matched_on), mean, total - 2 * len(both), ratio)


def compare_at_matched_learning(
    runs: Sequence[Run], outcome: str, *, learning: str, factor: str, arm: object, baseline: object, seed: int
) -> MatchedEffect:
    """The effect of `arm` on `outcome` at equal `learning`; see `MatchedEffect`.

    Refused where fewer than `MINIMUM_PAIRS` units have runs of both arms that learnt alike, or where the learning
    of those runs does not vary. Raises ValueError if no task pair has both arms.
    """
    chosen = [run for run in runs if run.factors.get(factor) in (arm, baseline)]
    data = columns(chosen, [learning, outcome])
    is_arm = np.array([run.factors.get(factor) == arm for run in chosen], dtype=np.bool_)[data.rows]
    both = [pair for pair in range(data.n_pairs) if len(set(is_arm[data.pairs == pair])) == 2]
    if not both:
        raise ValueError(f"no task pair has runs with {factor} = {arm!r} and with {factor} = {baseline!r}")
    arms = _Arms(data.values[:, 0], data.values[:, 1], data.pairs, data.first_tasks, is_arm)
    kept = np.isin(data.pairs, both)
    learnt = arms.take(kept)
    effect = MatchedEffect(
        arm=arm,
        baseline=baseline,
        outcome=outcome,
        learning=learning,
        n_runs=int(kept.sum()),
        n_pairs=len(both),
        excluded=data.excluded,
        runs_used=0,
        pairs_overlapping=0,
        learning_difference=mean_over_pairs(
            learnt.differences(learnt.learning), np.array(both), seed=seed, first_tasks=learnt.units
        ),
    )
    return _adjusted(effect, arms.take(arms.in_common_range()), seed)


@dataclass(frozen=True, eq=False)
class _Arms:
    """Learning, outcome, task pair, first task and arm of runs, each (n,)."""

    learning: Floats
    outcome: Floats
    pairs: Indices
    first_tasks: Indices
    is_arm: NDArray[np.bool_]

    def take(self, kept: NDArray[np.bool_] | Indices) -> "_Arms":
        learning, outcome, is_arm = self.learning[kept], self.outcome[kept], self.is_arm[kept]
        return _Arms(learning, outcome, self.pairs[kept], self.first_tasks[kept], is_arm)

    @property
    def units(self) -> Indices:
        """The first task of each pair, (n_pairs,)."""
        return self.first_tasks[np.unique(self.pairs, return_index=True)[1]]

    def in_common_range(self) -> NDArray[np.bool_]:
        """The runs whose learning both arms reach in their task pair, of pairs where that leaves runs of both arms."""
        kept = np.zeros(self.learning.size, dtype=np.bool_)
        for pair in np.unique(self.pairs):
            here = self.pairs == pair
            sides = [self.learning[here & (self.is_arm == side)] for side in (True, False)]
            if all(side.size for side in sides):
                low, high = max(side.min() for side in sides), min(side.max() for side in sides)
                inside = here & (low <= self.learning) & (self.learning <= high)
                kept |= inside if len(set(self.is_arm[inside])) == 2 else False
        return kept

    def differences(self, values: Floats) -> Floats:
        """Mean of the arm less mean of the baseline in each pair, (n_pairs,)."""
        differences = []
        for pair in np.unique(self.pairs):
            here = self.pairs == pair
            differences.append(values[here & self.is_arm].mean() - values[here & ~self.is_arm].mean())
        return np.array(differences, dtype=np.float64)

    def slope(self) -> float:
        """b of `MatchedEffect`; NaN where learning does not vary."""
        cells = 2 * self.pairs + self.is_arm
        x, y = (_centred(values, cells) for values in (self.learning, self.outcome))
        spread = float(x @ x)
        return float(x @ y) / spread if spread > _ROUNDING * float(self.learning @ self.learning) else math.nan

    def adjusted_differences(self) -> Floats:
        """The adjusted difference of each unit, (n_units,), the mean over its pairs."""
        of_pair = self.differences(self.outcome) - self.slope() * self.differences(self.learning)
        return np.array([of_pair[self.units == unit].mean() for unit in np.unique(self.units)])


def _adjusted(effect: MatchedEffect, arms: _Arms, seed: int) -> MatchedEffect:
    effect = replace(effect, runs_used=arms.learning.size, pairs_overlapping=np.unique(arms.pairs).size)
    overlapping, unit = np.unique(arms.first_tasks).size, effect.learning_difference.unit
    if overlapping < MINIMUM_PAIRS:
        reason = (
            f"both arms learnt alike in {overlapping} {unit}{'s' * (overlapping != 1)}, and {MINIMUM_PAIRS} are needed"
        )
        return replace(effect, refusal=reason)
    if not math.isfinite(arms.slope()):
        return replace(effect, refusal="learning does not vary among the runs of one arm in one task pair")

    def fit(rows: Indices) -> tuple[float, float]:
        some = arms.take(rows)
        return float(some.adjusted_differences().mean()), some.slope()

    adjusted, slope = fit_over_pairs(fit, arms.first_tasks, unit=unit)
    return replace(effect, adjusted=adjusted, slope=slope, test=sign_flip(arms.adjusted_differences(), seed=seed))


def _centred(values: Floats, cells: Indices) -> Floats:
    numbers = np.unique(cells, return_inverse=True)[1]
    return np.asarray(values - (np.bincount(numbers, weights=values) / np.bincount(numbers))[numbers])
