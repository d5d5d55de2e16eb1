"""Associations over the runs of a study: known answers, level, power and coverage under pairs of runs that are alike."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from llm_forgetting.forgetting.multiplicity import holm
from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.exchangeability import orders_within
from llm_forgetting.study.statistics.permutation import (
    arrange,
    kendall_statistic,
    partial_statistic,
    sign_flip,
    spearman_statistic,
)
from llm_forgetting.study.statistics.power import correlation_power, detectable_correlation
from llm_forgetting.study.statistics.rank_correlation import (
    centred_ranks,
    comparisons,
    kendall,
    partial_spearman,
    spearman,
)
from llm_forgetting.study.statistics.resampling import correlation_interval, whole_units
from llm_forgetting.study.statistics.runs import Run, columns


def study(rng, pairs, runs, within, between=0.0):
    """Labels of task pairs and two columns, correlated within and between pairs."""
    of_pair = rng.multivariate_normal([0, 0], [[1, between], [between, 1]], pairs)
    of_run = rng.multivariate_normal([0, 0], [[1, within], [within, 1]], pairs * runs)
    labels = np.repeat(np.arange(pairs), runs)
    values = math.sqrt(0.5) * (of_pair[labels] + of_run)
    return labels, values[:, 0], values[:, 1]


def as_runs(labels, y, **measures):
    names = list(measures)
    rows = zip(labels, y, *measures.values(), strict=True)
    return [
        Run(f"pair {p}", {}, dict(zip(names, values, strict=True)), {"forgetting": b, "learning": b**2})
        for p, b, *values in rows
    ]


def some_runs(pairs=6, runs=8, seed=0):
    rng = np.random.default_rng(seed)
    labels, x, y = study(rng, pairs, runs, 0.6)
    return as_runs(labels, y, sharpness=x, norm=rng.normal(size=x.size), trace=x + rng.normal(size=x.size))


def ones(n):
    return np.ones((1, n))


def within_ranks(x, labels):
    return centred_ranks(comparisons(x), ones(x.size), labels)[0]


def permuted(x, y, labels, seed=0, draws=499):
    a, b = within_ranks(x, labels), within_ranks(y, labels)
    return arrange(spearman_statistic(a, b), orders_within(labels, seed=seed, draws=draws)).test()


# Rank correlations


@pytest.mark.parametrize("ties", [False, True])
def test_in_one_block_they_are_those_of_scipy(ties):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 40)).astype(float) if ties else rng.normal(size=(2, 40))
    block = np.zeros(40, dtype=int)
    signs = comparisons(x), comparisons(y)
    assert spearman(*signs, ones(40), block)[0] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(*signs, ones(40), block)[0] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_weights_that_count_are_repeated_runs():
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(3, 12))
    counts = np.array([2, 0, 1, 3, 1, 0, 0, 1, 1, 1, 1, 1])
    block, repeated = np.zeros(12, dtype=int), np.repeat(np.arange(12), counts)
    signs, weights = [comparisons(v) for v in (x, y, z)], counts[None, :].astype(float)
    assert spearman(*signs[:2], weights, block)[0] == pytest.approx(stats.spearmanr(x[repeated], y[repeated])[0])
    assert kendall(*signs[:2], weights, block)[0] == pytest.approx(stats.kendalltau(x[repeated], y[repeated])[0])
    again = [comparisons(v[repeated]) for v in (x, y, z)]
    expected = partial_spearman(again, ones(12), np.zeros(12, dtype=int))[0]
    assert partial_spearman(signs, weights, block)[0] == pytest.approx(expected)


def test_within_pairs_by_hand():
    """Pair a falls while pair b rises above it: over all runs rho > 0; concordant 1, discordant 3 within pairs."""
    x, y = np.array([1.0, 2, 3, 11, 12]), np.array([3.0, 2, 1, 14, 15])
    pairs = np.array([0, 0, 0, 1, 1])
    signs = comparisons(x), comparisons(y)
    assert kendall(*signs, ones(5), pairs)[0] == pytest.approx((1 - 3) / 4)
    # Ranks 1 2 3 4 5 and 3 2 1 4 5, centred within pairs: -1 0 1 | -.5 .5 and 1 0 -1 | -.5 .5.
    assert spearman(*signs, ones(5), pairs)[0] == pytest.approx((-2 + 0.5) / 2.5)
    assert spearman(*signs, ones(5), np.zeros(5, dtype=int))[0] > 0.5


def test_kendall_within_pairs_is_the_mean_of_the_pairs_taus():
    labels, x, y = study(np.random.default_rng(2), 4, 9, 0.5)
    taus = [stats.kendalltau(x[labels == p], y[labels == p]).statistic for p in range(4)]
    assert kendall(comparisons(x), comparisons(y), ones(36), labels)[0] == pytest.approx(np.mean(taus))


PARTIAL = {
    "x": [3.1, 0.4, 2.2, 5.9, 4.1, 1.3, 6.5, 2.9, 3.8, 0.9],
    "y": [1.2, 0.3, 2.5, 2.1, 3.3, 0.8, 2.9, 1.9, 0.2, 1.1],
    "z": [0.5, 0.1, 1.9, 2.2, 1.4, 0.7, 2.4, 0.6, 1.1, 1.0],
    "u": [2.0, 1.5, 0.3, 1.1, 2.8, 0.2, 0.9, 2.2, 1.7, 0.6],
}


@pytest.mark.parametrize(("given", "pingouin"), [("z", 0.251212), ("zu", -0.124614)])
def test_partial_correlations_are_those_of_pingouin(given, pingouin):
    """pingouin 0.7.0, partial_corr(data, "x", "y", list(given), method="spearman")."""
    signs = [comparisons(np.array(PARTIAL[name])) for name in ("x", "y", *given)]
    assert partial_spearman(signs, ones(10), np.zeros(10, dtype=int))[0] == pytest.approx(pingouin, abs=1e-6)


def test_partial_correlations_are_those_of_residuals_and_of_the_formula():
    ranks = {name: stats.rankdata(values) - 5.5 for name, values in PARTIAL.items()}
    design = np.column_stack([ranks["z"], ranks["u"]])
    residuals = [r - design @ np.linalg.lstsq(design, r)[0] for r in (ranks["x"], ranks["y"])]
    signs = {name: comparisons(np.array(values)) for name, values in PARTIAL.items()}
    block = np.zeros(10, dtype=int)
    both = partial_spearman([signs[name] for name in "xyzu"], ones(10), block)[0]
    assert both == pytest.approx(np.corrcoef(residuals)[0, 1])
    xy, xz, yz = (stats.spearmanr(PARTIAL[a], PARTIAL[b])[0] for a, b in ("xy", "xz", "yz"))
    one = partial_spearman([signs[name] for name in "xyz"], ones(10), block)[0]
    assert one == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))


def test_what_cannot_be_ranked_is_nan():
    x = np.arange(6.0)
    same, block = comparisons(np.ones(6)), np.zeros(6, dtype=int)
    assert np.isnan(spearman(comparisons(x), same, ones(6), block)).all()
    assert np.isnan(kendall(comparisons(x), same, ones(6), block)).all()
    assert np.isnan(partial_spearman([comparisons(x), comparisons(-x), comparisons(x**3)], ones(6), block)).all()


# Permutations


def test_four_points_exactly():
    """Of 24 orders two agree perfectly (either way) with 1 2 3 4; 1 2 4 3 ties with 8 orders at |rho| >= 0.8."""
    one, x = np.zeros(4, dtype=int), np.arange(4.0)
    perfect = permuted(x, x**2, one)
    assert (perfect.p_value, perfect.smallest, perfect.arrangements, perfect.exact) == (2 / 24, 2 / 24, 24, True)
    assert permuted(x, np.array([1.0, 2, 4, 3]), one).p_value == 8 / 24


def test_exact_p_values_enumerate_within_pairs_only():
    labels, x, y = study(np.random.default_rng(3), 2, 4, 0.5)
    a, b = within_ranks(x, labels), within_ranks(y, labels)
    orders = [[*p, *q] for p in itertools.permutations(range(4)) for q in itertools.permutations(range(4, 8))]
    expected = np.mean([abs(a @ b[order]) >= abs(a @ b) - 1e-9 for order in orders])
    found = permuted(x, y, labels)
    assert (found.p_value, found.arrangements, found.exact) == (expected, 576, True)
    signs = comparisons(x), comparisons(y)
    tau = arrange(kendall_statistic(*signs, labels), orders_within(labels, seed=0)).test()
    taus = [abs(kendall(signs[0], comparisons(y[order]), ones(8), labels)[0]) for order in orders]
    assert tau.p_value == np.mean(np.array(taus) >= taus[0] - 1e-9)


def test_drawn_orders_stay_in_their_pair_and_are_reproducible():
    labels = np.repeat([0, 1, 2], [8, 5, 7])[np.random.default_rng(0).permutation(20)]
    orders = orders_within(labels, seed=1, draws=50)
    assert not orders.exact
    assert (labels[orders.rows] == labels).all()
    assert np.array_equal(orders.rows, orders_within(labels, seed=1, draws=50).rows)
    assert not np.array_equal(orders.rows, orders_within(labels, seed=2, draws=50).rows)


def test_drawn_p_values_are_never_zero():
    x = np.arange(20.0)
    found = permuted(x, x, np.zeros(20, dtype=int), draws=99)
    assert (found.p_value, found.smallest, found.exact) == (0.01, 0.01, False)


def test_ties_raise_the_least_p_value():
    """Outcomes 0 0 0 1: four of 24 orders put the 1 at the top, six at the bottom likewise."""
    found = permuted(np.arange(4.0), np.array([0.0, 0, 0, 1]), np.zeros(4, dtype=int))
    assert found.p_value == found.smallest == 12 / 24


def test_sign_flips_by_hand():
    """Of 8 sign patterns of 1 2 3, |sum| >= 4 in: 6, 4, -4, -6."""
    assert sign_flip(np.array([-1.0, 2, 3]), seed=0).p_value == 4 / 8
    assert sign_flip(np.arange(1.0, 7), seed=0).p_value == 2 / 64
    many = sign_flip(np.ones(30), seed=0, draws=99)
    assert (many.p_value, many.exact) == (0.01, False)


def test_level_and_power_within_pairs():
    """Four pairs of eight runs, intra-class correlation 0.5: the naive test finds what is not there, ours does not."""
    rng, n = np.random.default_rng(5), 500
    rejected = np.zeros(3)
    for k in range(n):
        labels, x, y = study(rng, 4, 8, 0.0)
        rejected[:2] += [permuted(x, y, labels, k, 199).p_value <= 0.05, stats.spearmanr(x, y).pvalue <= 0.05]
        labels, x, y = study(rng, 4, 8, 0.5)
        rejected[2] += permuted(x, y, labels, k, 199).p_value <= 0.05
    level, naive, power = rejected / n
    assert 0.03 <= level <= 0.072
    assert 0.16 <= naive <= 0.27
    assert 0.65 <= power <= 0.8


# Many measures, and what could have been seen


def test_holm_by_hand():
    """Sorted .01 .02 .03 .5: 4 x .01, 3 x .02, max(.06, 2 x .03), max(.06, .5)."""
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02})
    assert adjusted == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.5, "b": 0.06})
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match="b"):
        holm({"a": 0.5, "b": math.nan})


def test_a_correlation_of_one_half_needs_29_runs():
    assert correlation_power(28, 0.5) < 0.8 < correlation_power(29, 0.5)
    assert correlation_power(44, 0.5, tests=8) < 0.8 < correlation_power(45, 0.5, tests=8)


def test_power_is_that_of_simulated_correlations():
    rng, n = np.random.default_rng(6), 12
    x = rng.normal(size=(40_000, n))
    y = 0.6 * x + 0.8 * rng.normal(size=x.shape)
    centred = [v - v.mean(axis=1, keepdims=True) for v in (x, y)]
    r = (centred[0] * centred[1]).sum(axis=1) / np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    t = r * np.sqrt((n - 2) / (1 - r**2))
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, n - 2)) == pytest.approx(correlation_power(n, 0.6), abs=0.008)


def test_the_detectable_correlation_inverts_the_power():
    assert correlation_power(48 - 6 + 1, detectable_correlation(48, 6)) == pytest.approx(0.8, abs=1e-3)
    assert detectable_correlation(48, 6, tests=8) > detectable_correlation(48, 6)
    assert detectable_correlation(9) <= 0.8 < detectable_correlation(8)
    assert detectable_correlation(6, 4) == 1.0
    with pytest.raises(ValueError, match="correlation"):
        correlation_power(9, 0.0)
    with pytest.raises(ValueError, match="at least 4"):
        correlation_power(3, 0.5)


# Intervals


@pytest.mark.parametrize("blocked", [True, False])
def test_intervals_cover(blocked):
    """Six pairs of eight runs, intra-class correlation 0.5, correlations 0.5 within and 0.3 between pairs."""
    rng, values, intervals = np.random.default_rng(7), [], []
    for k in range(1500):
        labels, x, y = study(rng, 6, 8, 0.5, 0.3)
        blocks = labels if blocked else np.zeros_like(labels)
        signs = comparisons(x), comparisons(y)
        values.append(spearman(*signs, ones(48), blocks)[0])
        if k < 300 and blocked:
            ranks = [within_ranks(v, labels) for v in (x, y)]
            arranged = arrange(spearman_statistic(*ranks), orders_within(labels, seed=k, draws=199))
            assert arranged.observed == pytest.approx(values[-1])
            intervals.append(arranged.interval("permutation"))
        elif k < 300:
            weights = whole_units(labels, seed=k, resamples=199)
            interval = correlation_interval(lambda w, s=signs, b=blocks: spearman(*s, w, b), weights, df=5, method="")
            intervals.append(interval)
    truth = np.mean(values)
    assert 0.915 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.985


def test_resamples_keep_whole_units():
    labels = np.repeat([0, 1, 2], [1, 4, 6])
    whole = whole_units(labels, seed=0, resamples=50)
    assert all((np.ptp(whole[:, labels == p], axis=1) == 0).all() for p in range(3))
    assert np.allclose(whole[:, [0, 1, 5]].sum(axis=1), 3)
    with pytest.raises(ValueError, match="at least two"):
        whole_units(np.zeros(4, dtype=int), seed=0)


def test_no_interval_where_resamples_are_degenerate():
    def constant(weights):
        return np.full(len(weights), 0.5)

    assert correlation_interval(constant, np.ones((10, 4)), df=3, method="") is None
    assert correlation_interval(lambda w: constant(w) * np.nan, np.ones((10, 4)), df=3, method="") is None


# The whole table


def test_associate_gives_the_parts():
    runs = some_runs()
    data = columns(runs, ["sharpness", "forgetting"])
    found = associate(runs, "forgetting", ["sharpness", "norm", "trace"], primary="sharpness", seed=3)
    one = found.measures["sharpness"]
    x, y = data.values.T
    assert (one.n_runs, one.n_pairs, one.excluded, one.primary) == (48, 6, 0, True)
    assert one.spearman_over_runs.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert one.kendall_over_runs.value == pytest.approx(stats.kendalltau(x, y).statistic)
    assert one.p_value == permuted(x, y, data.pairs, 3, 9999).p_value == one.spearman_within_pairs.test.p_value
    assert one.p_adjusted is None
    assert one.shown
    assert one.spearman_within_pairs.interval.low < one.spearman_within_pairs.value
    others = {name: found.measures[name].p_value for name in ("norm", "trace")}
    assert {name: found.measures[name].p_adjusted for name in others} == holm(others)
    assert found.tests == 2
    assert one.detectable == detectable_correlation(48, 6)
    assert found.measures["norm"].detectable == detectable_correlation(48, 6, tests=2)


def test_partial_associations_given_each_set():
    rng = np.random.default_rng(8)
    labels, z, _ = study(rng, 6, 8, 0.0)
    x, y = (z + 0.5 * rng.normal(size=z.size) for _ in range(2))
    runs = as_runs(labels, y, sharpness=x, norm=z, copy=3 * x, constant=np.ones(48))
    given = [["norm"], ["norm", "sharpness"], ["copy"], ["constant"]]
    one = associate(runs, "forgetting", ["sharpness"], primary="sharpness", given=given, seed=0).measures["sharpness"]
    by_norm, by_itself, by_copy, by_constant = one.partial
    assert one.shown
    assert abs(by_norm.within_pairs.value) < 0.3 < one.spearman_within_pairs.value
    assert by_norm.within_pairs.interval.low < 0 < by_norm.within_pairs.interval.high
    assert by_norm.within_pairs.test.p_value > 0.05
    ranks = [within_ranks(v, labels) for v in (x, y, z)]
    residuals = [r - ranks[2] * (r @ ranks[2]) / (ranks[2] @ ranks[2]) for r in ranks[:2]]
    assert by_norm.within_pairs.value == pytest.approx(np.corrcoef(residuals)[0, 1])
    assert by_itself.within_pairs is by_copy.within_pairs is by_constant.within_pairs is None
    assert "itself" in by_itself.reason
    assert "combination" in by_copy.reason
    assert "same in all runs" in by_constant.reason


def test_level_of_the_partial_test_given_a_common_cause():
    rng, n, rejected = np.random.default_rng(9), 500, np.zeros(2)
    for k in range(n):
        labels, z, _ = study(rng, 4, 6, 0.0)
        x, y = (z + rng.normal(size=z.size) for _ in range(2))
        a, b, c = (within_ranks(v, labels) for v in (x, y, z))
        e, f = (r - c * (r @ c) / (c @ c) for r in (a, b))
        orders = orders_within(labels, seed=k, draws=199)
        rejected[0] += arrange(partial_statistic(e, f, c[:, None]), orders).test().p_value <= 0.05
        rejected[1] += arrange(spearman_statistic(a, b), orders).test().p_value <= 0.05
    assert 0.025 <= rejected[0] / n <= 0.08
    assert rejected[1] / n > 0.2


def same(first, second):
    """Everything but the seeded intervals."""
    for name in first.measures:
        a, b = first.measures[name], second.measures[name]
        assert a.spearman_within_pairs.value == pytest.approx(b.spearman_within_pairs.value)
        assert a.kendall_within_pairs.value == pytest.approx(b.kendall_within_pairs.value)
        assert a.spearman_over_runs.value == pytest.approx(b.spearman_over_runs.value)
        assert a.p_value == pytest.approx(b.p_value)


def test_names_scales_and_order_do_not_matter():
    runs = some_runs(3, 4)
    names = ["sharpness", "norm"]
    found = associate(runs, "forgetting", names, primary="norm", seed=0)
    renamed = [Run(run.pair[::-1], {}, run.measures, run.outcomes) for run in runs]
    scaled = [
        Run(
            r.pair, {}, {n: math.exp(3 * v) for n, v in r.measures.items()}, {"forgetting": r.number("forgetting") ** 3}
        )
        for r in runs
    ]
    same(found, associate(renamed, "forgetting", names, primary="norm", seed=0))
    same(found, associate(scaled, "forgetting", names, primary="norm", seed=0))
    same(found, associate(runs[::-1], "forgetting", names, primary="norm", seed=0))


def test_seeds_reproduce_and_inputs_stay():
    runs = some_runs()
    before = [(run.pair, dict(run.measures), dict(run.outcomes)) for run in runs]
    given = [["norm"]]
    found = associate(runs, "forgetting", ["sharpness"], primary="sharpness", given=given, seed=1)
    assert found == associate(runs, "forgetting", ["sharpness"], primary="sharpness", given=given, seed=1)
    other = associate(runs, "forgetting", ["sharpness"], primary="sharpness", given=given, seed=2)
    assert found.measures["sharpness"].spearman_within_pairs != other.measures["sharpness"].spearman_within_pairs
    assert before == [(run.pair, dict(run.measures), dict(run.outcomes)) for run in runs]
    assert given == [["norm"]]
    assert json.loads(json.dumps(asdict(found)))["measures"]["sharpness"]["n_runs"] == 48


def test_numbers_that_are_not_finite_are_left_out_and_counted():
    runs = some_runs()
    broken = [
        Run(run.pair, {}, {**run.measures, "sharpness": bad}, run.outcomes)
        for run, bad in zip(runs, (math.nan, math.inf, None), strict=False)
    ]
    broken.append(Run(runs[3].pair, {}, {}, runs[3].outcomes))
    found = associate(broken + runs[4:], "forgetting", ["sharpness", "norm"], primary="sharpness", seed=0)
    assert (found.measures["sharpness"].n_runs, found.measures["sharpness"].excluded) == (44, 4)
    assert (found.measures["norm"].n_runs, found.measures["norm"].excluded) == (47, 1)
    none = [Run("a", {}, {"sharpness": math.nan}, {"forgetting": 1.0})] * 9
    one = associate(none, "forgetting", ["sharpness"], primary="sharpness", seed=0).measures["sharpness"]
    assert one.refusal == "0 usable runs of 0 task pairs leave nothing to compare within pairs"


def test_constants_are_refused_and_leave_the_family():
    runs = [
        Run(run.pair, {}, {**run.measures, "rank": 8.0, "by_pair": float(run.pair[-1])}, run.outcomes)
        for run in some_runs()
    ]
    names = ["sharpness", "norm", "rank", "by_pair"]
    found = associate(runs, "forgetting", names, primary="sharpness", seed=0)
    for name in ("rank", "by_pair"):
        assert found.measures[name].refusal == f"{name} is the same in all runs of every task pair"
        assert found.measures[name].p_value is found.measures[name].p_adjusted is None
    assert found.tests == 1
    assert found.measures["norm"].p_adjusted == found.measures["norm"].p_value


@pytest.mark.parametrize(
    ("pairs", "runs", "why"),
    [
        (1, 4, "p-value below 0.083"),
        (2, 3, "p-value below 0.056"),
        (2, 4, "missed"),
        (4, 1, "nothing to compare"),
        (1, 8, "missed"),
    ],
)
def test_studies_that_are_too_small_draw_no_conclusion(pairs, runs, why):
    labels = np.repeat(np.arange(pairs), runs)
    x = np.arange(labels.size) * 1.0
    found = associate(as_runs(labels, x**2, sharpness=x), "forgetting", ["sharpness"], primary="sharpness", seed=0)
    one = found.measures["sharpness"]
    assert why in one.refusal
    assert not one.shown
    assert one.spearman_within_pairs is None or one.spearman_within_pairs.interval is None


def test_the_least_p_value_is_held_against_the_first_holm_step():
    labels, x, y = study(np.random.default_rng(10), 1, 9, 0.0)
    y = (y > np.sort(y)[-2]).astype(float)
    noise = {f"m{k}": np.random.default_rng(k).normal(size=9) for k in range(3)}
    found = associate(as_runs(labels, y, x=x, **noise), "forgetting", ["x", *noise], primary="x", seed=0).measures
    assert "0.05 is needed" in found["x"].refusal
    assert "0.017 is needed" in found["m0"].refusal


def test_misuse_is_refused():
    runs = some_runs()
    with pytest.raises(ValueError, match="no run has a measure or outcome called 'sharpnes'"):
        associate(runs, "forgetting", ["sharpnes"], primary="sharpnes", seed=0)
    with pytest.raises(ValueError, match="primary"):
        associate(runs, "forgetting", ["sharpness"], primary="norm", seed=0)
    with pytest.raises(ValueError, match="distinct"):
        associate(runs, "forgetting", ["norm", "norm"], primary="norm", seed=0)
    with pytest.raises(ValueError, match="at least one run"):
        columns([], ["norm"])
    with pytest.raises(ValueError, match="not both: norm"):
        Run("a", {}, {"norm": 1.0}, {"norm": 2.0})
