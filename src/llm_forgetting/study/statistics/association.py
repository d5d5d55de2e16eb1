"""Do the measures of a study go with forgetting? Rank correlations over runs, never more than that.

Every coefficient is given twice. `over_runs` takes all runs together and mixes differences between task pairs with those
within them; its interval resamples whole units and it has no p-value, since few units carry it. `within_pairs` compares
runs of one pair only; its p-value permutes the outcome within pairs as `exchangeability` says, and its interval holds the
correlations that this test does not reject. With four pairs of eight runs, intra-class correlation 0.5 and no association it
rejects in 4.5% of studies at 5%, the test of Spearman's rho over all runs in 20% (49% if the pairs' own effects are
correlated by 0.9). A correlation of 0.5 within pairs is found in 71% of such studies, in 88% with six pairs. The partial
test rejects in 4.8% where a common cause that is given makes the plain one reject in 53% (six pairs of eight runs).
1000 studies each, 250 for the partial test: benchmarks/study_statistics.py.

Task pairs that share a first task share its checkpoints. Refusals and power count first checkpoints and first tasks, not runs
and pairs.

A partial coefficient given |D| or learning is not nearer the truth than the plain one: |D| may be a mediator. Both are
shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.forgetting.multiplicity import holm
from llm_forgetting.study.statistics.exchangeability import Orders, orders_within
from llm_forgetting.study.statistics.permutation import (
    Arrangements,
    PermutationTest,
    arrange,
    kendall_statistic,
    partial_statistic,
    spearman_statistic,
)
from llm_forgetting.study.statistics.power import SIGNIFICANCE, detectable_correlation
from llm_forgetting.study.statistics.rank_correlation import (
    centred_ranks,
    comparisons,
    kendall,
    partial_spearman,
    spearman,
)
from llm_forgetting.study.statistics.resampling import correlation_interval, whole_units
from llm_forgetting.study.statistics.runs import FIRST_TASK, TASK_PAIR, Columns, Floats, Indices, Run, columns

LARGEST_DETECTABLE = 0.8
"""A study that would miss a correlation of this size more than one time in five draws no conclusion."""

MINIMUM_PAIRS_OVER = 4
"""Fewest units (task pairs, or first tasks) for an interval that resamples whole ones."""


@dataclass(frozen=True)
class Coefficient:
    """A rank correlation. `interval` is None in studies too small for one, `test` for coefficients over all runs."""

    value: float
    interval: Interval | None
    test: PermutationTest | None = None


@dataclass(frozen=True)
class Association:
    """One measure beside one outcome, in the runs where both are finite.

    spearman, kendall: over all runs, and within pairs; partial: Spearman's rho given each set of `given`, over all runs
    and within pairs, by the residual method on ranks; excluded: runs left out for missing, NaN or infinite numbers;
    p_value: of Spearman's rho within pairs; p_adjusted: Holm's, None for the primary measure; detectable: the
    correlation within pairs that a study of this size sees with 80% power, at the first Holm step for measures that are
    not primary; refusal: why no conclusion is drawn, else None; coefficients that do not exist are None; unit, n_units: a first
    task, or a task pair where none share one, and how many there are; n_points: first checkpoints.
    """

    measure: str
    outcome: str
    n_runs: int
    n_pairs: int
    excluded: int
    primary: bool
    detectable: float = 1.0
    spearman_over_runs: Coefficient | None = None
    spearman_within_pairs: Coefficient | None = None
    kendall_over_runs: Coefficient | None = None
    kendall_within_pairs: Coefficient | None = None
    partial: tuple["PartialAssociation", ...] = ()
    p_value: float | None = None
    p_adjusted: float | None = None
    refusal: str | None = None
    unit: str = TASK_PAIR
    n_units: int = 0
    n_points: int = 0

    @property
    def shown(self) -> bool:
        """Whether an association within pairs is shown: significant after adjustment, and not refused."""
        p = self.p_value if self.primary else self.p_adjusted
        return self.refusal is None and p is not None and p <= SIGNIFICANCE


@dataclass(frozen=True)
class PartialAssociation:
    """Spearman's rho given other columns; `reason` says why it is missing."""

    given: tuple[str, ...]
    over_runs: Coefficient | None
    within_pairs: Coefficient | None
    reason: str | None = None


@dataclass(frozen=True)
class Associations:
    """All measures of a study with one outcome; tests: how many measures share the Holm adjustment."""

    outcome: str
    primary: str
    tests: int
    measures: Mapping[str, Association]


def associate(
    runs: Sequence[Run],
    outcome: str,
    measures: Sequence[str],
    *,
    primary: str,
    given: Sequence[Sequence[str]] = (),
    seed: int,
) -> Associations:
    """Each of `measures` with `outcome` over `runs`; `primary` was named before the study and is not adjusted.

    given: sets of columns for partial correlations, such as [["update_norm"], ["learning"], ["update_norm", "learning"]].
    Raises ValueError for names that no run has, repeated measures, or a primary measure that is not among them.
    """
    if primary not in measures or len(set(measures)) != len(measures) or outcome in measures:
        raise ValueError("measures must be distinct, hold the primary one and not the outcome")
    associations = {
        name: _associate(runs, name, outcome, primary=name == primary, given=given, seed=seed) for name in measures
    }
    adjusted = holm({name: a.p_value for name, a in associations.items() if a.p_value is not None and not a.primary})
    judged = {
        name: _judged(replace(a, p_adjusted=adjusted.get(name)), len(adjusted)) for name, a in associations.items()
    }
    return Associations(outcome, primary, len(adjusted), judged)


def spearman_over_runs(data: Columns, *, seed: int) -> Coefficient:
    """Spearman's rho of the first two columns over all runs, with an interval that resamples whole units."""
    return _over_runs(spearman, [comparisons(column) for column in data.values.T[:2]], data, seed)


def _associate(
    runs: Sequence[Run], measure: str, outcome: str, *, primary: bool, given: Sequence[Sequence[str]], seed: int
) -> Association:
    data = columns(runs, [measure, outcome])
    empty = Association(measure, outcome, data.n_runs, data.n_pairs, data.excluded, primary)
    empty = replace(empty, unit=data.unit, n_units=data.n_units, n_points=data.n_points)
    refusal = _not_comparable(data, (measure, outcome))
    if refusal:
        return replace(empty, refusal=refusal)
    x, y = (comparisons(column) for column in data.values.T)
    a, b = (_within_ranks(signs, data.pairs) for signs in (x, y))
    orders = _orders(data, seed)
    rho = arrange(spearman_statistic(a, b), orders)
    return replace(
        empty,
        spearman_over_runs=_over_runs(spearman, (x, y), data, seed),
        spearman_within_pairs=_within_pairs(rho, data),
        kendall_over_runs=_over_runs(kendall, (x, y), data, seed),
        kendall_within_pairs=_within_pairs(arrange(kendall_statistic(x, y, data.pairs), orders), data),
        partial=tuple(_partial(runs, measure, outcome, tuple(names), seed) for names in given),
        p_value=rho.test().p_value,
    )


def _within_pairs(arranged: Arrangements, data: Columns, covariates: int = 0) -> Coefficient:
    enough = detectable_correlation(data.n_points - covariates, data.n_units) <= LARGEST_DETECTABLE
    interval = arranged.interval("permutation within task pairs, Fisher z") if enough else None
    return Coefficient(arranged.observed, interval, arranged.test())


def _over_runs(
    correlation: Callable[[Floats, Floats, Floats, Indices], Floats], signs: Sequence[Floats], data: Columns, seed: int
) -> Coefficient:
    def coefficients(weights: Floats) -> Floats:
        return correlation(signs[0], signs[1], weights, np.zeros_like(data.pairs))

    value, interval = float(coefficients(np.ones((1, data.n_runs)))[0]), None
    if data.n_units >= MINIMUM_PAIRS_OVER:
        weights = whole_units(data.first_tasks, seed=seed)
        interval = correlation_interval(
            coefficients, weights, df=data.n_units - 1, method=f"bootstrap over {data.unit}s"
        )
    return Coefficient(value, interval)


def _orders(data: Columns, seed: int) -> Orders:
    firsts, points = data.first_tasks, data.checkpoints
    return orders_within(data.pairs, seed=seed, first_tasks=firsts, checkpoints=points, settings=data.settings)


def _partial(runs: Sequence[Run], measure: str, outcome: str, given: tuple[str, ...], seed: int) -> PartialAssociation:
    if measure in given or outcome in given or not given:
        return PartialAssociation(given, None, None, "a number is not compared given itself, or given nothing")
    data = columns(runs, [measure, outcome, *given])
    refusal = _not_comparable(data, (measure, outcome, *given))
    if refusal:
        return PartialAssociation(given, None, None, refusal)
    x, y, *others = (comparisons(column) for column in data.values.T)

    def correlation(a: Floats, b: Floats, weights: Floats, blocks: Indices) -> Floats:
        return partial_spearman([a, b, *others], weights, blocks)

    over_runs, arranged = (
        _over_runs(correlation, (x, y), data, seed),
        partial_arrangements(x, y, others, _orders(data, seed)),
    )
    if not np.isfinite(over_runs.value) or arranged is None:
        return PartialAssociation(given, None, None, "the ranks are a combination of those they are compared given")
    return PartialAssociation(given, over_runs, _within_pairs(arranged, data, len(others)))


def partial_arrangements(x: Floats, y: Floats, others: Sequence[Floats], orders: Orders) -> Arrangements | None:
    """The partial correlation within blocks of comparisons (n, n) given others; None where theirs combine to x or y."""
    first, second, *given = (_within_ranks(signs, orders.blocks) for signs in (x, y, *others))
    covariates = np.stack(given, axis=1)
    if any(np.linalg.matrix_rank(np.column_stack([covariates, rank])) <= len(given) for rank in (first, second)):
        return None
    basis = np.linalg.qr(covariates)[0]
    a, b = (rank - basis @ (basis.T @ rank) for rank in (first, second))
    return arrange(partial_statistic(a, b, covariates), orders)


def _within_ranks(signs: Floats, pairs: Indices) -> Floats:
    return np.asarray(centred_ranks(signs, np.ones((1, len(signs))), pairs)[0])


def _not_comparable(data: Columns, names: Sequence[str]) -> str | None:
    if data.n_points - data.n_units < 2:
        what = f"{data.n_runs} usable runs of {data.n_pairs} task pairs"
        if data.unit == FIRST_TASK:
            what = f"{data.n_points} first checkpoints of {data.n_units} first tasks"
        return f"{what} leave nothing to compare within pairs"
    for name, column in zip(names, data.values.T, strict=True):
        if all(np.ptp(column[data.pairs == pair]) == 0 for pair in range(data.n_pairs)):
            return f"{name} is the same in all runs of every task pair"
    return None


def _judged(association: Association, tests: int) -> Association:
    """The association with what it could have seen and, where it could have seen too little, the refusal."""
    if association.spearman_within_pairs is None or association.spearman_within_pairs.test is None:
        return association
    size, steps = (association.n_points, association.n_units), 1 if association.primary else tests
    smallest, level = association.spearman_within_pairs.test.smallest, SIGNIFICANCE / steps
    reason = None
    if smallest > level:
        reason = f"no arrangement of these runs gives a p-value below {smallest:.2g}, and {level:.2g} is needed"
    elif detectable_correlation(*size) > LARGEST_DETECTABLE:
        reason = f"a correlation of {LARGEST_DETECTABLE} would be missed more than one time in five"
    return replace(association, detectable=detectable_correlation(*size, tests=steps), refusal=reason)
