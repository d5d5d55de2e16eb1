"""Interventions, calibration, prediction and likeness of runs that come in task pairs."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import MINIMUM_PAIRS, change_over_runs, fit_over_pairs, mean_over_pairs
from llm_forgetting.study.statistics.intraclass import intraclass_correlation
from llm_forgetting.study.statistics.prediction import predict_unseen_pairs
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_arms, compare_at_matched_learning


def in_pairs(rng, pairs, runs, icc=0.5):
    labels = np.repeat(np.arange(pairs), runs)
    return labels, math.sqrt(icc) * rng.normal(size=pairs)[labels] + math.sqrt(1 - icc) * rng.normal(size=labels.size)


def trade_off(rng, pairs=6, *, effect=0.0, less_learning=0.5, noise=0.5, runs=8):
    """forgetting = pair + 0.8 learning + effect of the arm + noise; the arm learns less."""
    found = []
    for pair in range(pairs):
        of_pair = rng.normal(size=2)
        for arm in ("adamw", "sam"):
            for seed in range(runs):
                learning = of_pair[0] + rng.normal() - less_learning * (arm == "sam")
                forgetting = of_pair[1] + 0.8 * learning + effect * (arm == "sam") + noise * rng.normal()
                outcomes = {"forgetting": forgetting, "learning": learning}
                found.append(Run(f"pair {pair}", {"optimiser": arm, "seed": seed}, {}, outcomes))
    return found


def arms(runs, seed=0):
    return compare_arms(runs, "forgetting", factor="optimiser", arm="sam", baseline="adamw", seed=seed)


def at_matched_learning(runs, seed=0):
    how = {"learning": "learning", "factor": "optimiser", "arm": "sam", "baseline": "adamw"}
    return compare_at_matched_learning(runs, "forgetting", **how, seed=seed)


def test_an_arm_that_halves_a_number_halves_it_whatever_its_scale():
    rng, runs = np.random.default_rng(3), []
    for pair in range(6):
        for seed in range(4):
            sharpness = float(np.exp(rng.normal(2.0, 1.0))) * (100 if (pair, seed) == (5, 0) else 1)
            for arm, factor in (("adamw", 1.0), ("sam", 0.5 * float(np.exp(rng.normal(0.0, 0.1))))):
                runs.append(
                    Run(f"pair {pair}", {"optimiser": arm, "seed": seed}, {"sharpness": sharpness * factor}, {})
                )
    how = {"factor": "optimiser", "arm": "sam", "baseline": "adamw", "seed": 0}
    plain = compare_arms(runs, "sharpness", **how).difference
    ratio = compare_arms(runs, "sharpness", ratio=True, **how)
    assert ratio.ratio
    assert plain.interval.high > 0  # one large run hides in the mean what every pair shows
    assert np.exp(ratio.difference.interval.low) < 0.5 < np.exp(ratio.difference.interval.high) < 0.6
    negative = [*runs, Run("pair 0", {"optimiser": "sam", "seed": 9}, {"sharpness": -1.0}, {})]
    negative.append(Run("pair 0", {"optimiser": "adamw", "seed": 9}, {"sharpness": 1.0}, {}))
    with pytest.raises(ValueError, match="ratios need positive numbers: sharpness is -1"):
        compare_arms(negative, "sharpness", ratio=True, **how)


# Means and fits over pairs


def test_mean_over_pairs_is_a_t_test_of_the_pair_means():
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    values = np.random.default_rng(0).normal(1.0, 1.0, 21)
    means = np.array([values[labels == p].mean() for p in range(6)])
    found = mean_over_pairs(values, labels, seed=0)
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    assert found.value == pytest.approx(means.mean())
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    assert found.test.smallest == 2 / 64
    assert found.share_positive == (values > 0).mean()
    assert found.detectable == pytest.approx((2.5706 + 0.9195) * found.stderr, rel=1e-4)


def test_below_six_pairs_there_is_no_interval():
    found = mean_over_pairs(np.arange(50.0), np.repeat(np.arange(5), 10), seed=0)
    assert (found.n_pairs, found.interval, found.test, found.detectable) == (5, None, None, None)
    assert "fewer than 6 task pairs" in found.reason
    assert 2 / 2**MINIMUM_PAIRS <= 0.05 < 2 / 2 ** (MINIMUM_PAIRS - 1)
    assert mean_over_pairs(np.ones(3), np.zeros(3, dtype=int), seed=0).stderr is None
    with pytest.raises(ValueError, match="no run"):
        mean_over_pairs(np.array([]), np.array([], dtype=int), seed=0)


def test_means_over_pairs_cover_and_hold_their_level():
    rng, n, covered, rejected, naive = np.random.default_rng(1), 600, 0, 0, 0
    for k in range(n):
        labels, x = in_pairs(rng, 6, 8)
        found = mean_over_pairs(x, labels, seed=k)
        covered += found.interval.low <= 0 <= found.interval.high
        rejected += found.test.p_value <= 0.05
        naive += stats.ttest_1samp(x, 0).pvalue <= 0.05
    assert 0.93 <= covered / n <= 0.97
    assert rejected / n <= 0.055
    assert naive / n > 0.25


def test_a_jackknifed_mean_is_the_t_interval_of_equal_pairs():
    labels, x = in_pairs(np.random.default_rng(2), 7, 4)
    (found,) = fit_over_pairs(lambda rows: [x[rows].mean()], labels)
    expected = mean_over_pairs(x, labels, seed=0)
    assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr))
    assert found.interval.low == pytest.approx(expected.interval.low)


def test_a_fit_that_hangs_on_one_pair_has_no_interval():
    labels = np.repeat(np.arange(6), 2)
    (found,) = fit_over_pairs(lambda rows: [1.0 if 0 in rows else math.nan], labels)
    assert (found.value, found.interval) == (1.0, None)
    assert "without every task pair" in found.reason


def test_change_over_runs_is_paired():
    rng = np.random.default_rng(3)
    before = rng.normal(0, 10, 48)
    after = before + 0.5 + 0.1 * rng.normal(size=48)
    runs = [Run(f"{k % 6}", {}, {"before": b, "after": a}) for k, (b, a) in enumerate(zip(before, after, strict=True))]
    found = change_over_runs([*runs, Run("0", {}, {"before": 1.0})], "before", "after", seed=0)
    assert 0.45 < found.interval.low < 0.5 < found.interval.high < 0.55
    assert (found.n_runs, found.n_pairs, found.excluded, found.share_positive) == (48, 6, 1, 1.0)


# Interventions


def test_arms_are_compared_in_runs_that_agree():
    runs = [
        Run(f"{p}", {"optimiser": arm, "seed": s}, {}, {"forgetting": p + 10 * s + (arm == "sam") * (p - 1)})
        for p in range(6)
        for s in range(2)
        for arm in ("adamw", "sam")
    ]
    extra = [Run("0", {"optimiser": "sam", "seed": 7}, {}, {"forgetting": 99.0}), Run("0", {"optimiser": "sgd"})]
    broken = Run("0", {"optimiser": "adamw", "seed": 8}, {}, {"forgetting": math.inf})
    found = arms([*runs, *extra, broken])
    assert found.difference.value == pytest.approx(1.5)
    assert (found.difference.n_runs, found.difference.n_pairs, found.unmatched) == (12, 6, 2)
    assert found.matched_on == ("seed",)
    with pytest.raises(ValueError, match="match on more factors"):
        arms([*runs, runs[0]])
    with pytest.raises(ValueError, match="partner"):
        arms([run for run in runs if run.factors["optimiser"] == "sam"])


def test_an_arm_that_only_learns_less_forgets_less_but_not_at_matched_learning():
    runs = trade_off(np.random.default_rng(4), 8, less_learning=1.0, noise=0.2)
    plain, matched = arms(runs), at_matched_learning(runs)
    assert plain.difference.interval.high < 0
    assert matched.adjusted.interval.low < 0 < matched.adjusted.interval.high
    assert abs(matched.adjusted.value) < 0.15
    assert matched.slope.interval.low < 0.8 < matched.slope.interval.high
    assert matched.learning_difference.value == pytest.approx(-1.0, abs=0.4)
    assert matched.pairs_overlapping <= matched.n_pairs == 8
    assert matched.runs_used < matched.n_runs == 128


def test_matched_learning_without_noise_is_exact():
    found = at_matched_learning(trade_off(np.random.default_rng(5), 7, effect=0.3, noise=0.0))
    assert found.adjusted.value == pytest.approx(0.3)
    assert found.slope.value == pytest.approx(0.8)
    assert found.test.p_value == 2 / 2**7


@pytest.mark.slow
def test_the_effect_at_matched_learning_covers_and_holds_its_level():
    rng, n, covered, rejected = np.random.default_rng(6), 200, 0, 0
    for k in range(n):
        found = at_matched_learning(trade_off(rng, 8, runs=6, less_learning=0.3), seed=k)
        assert found.adjusted is not None
        covered += found.adjusted.interval.low <= 0 <= found.adjusted.interval.high
        rejected += found.test.p_value <= 0.05
    assert 0.92 <= covered / n <= 0.985
    assert 0.015 <= rejected / n <= 0.085


def test_learning_that_does_not_overlap_is_refused():
    apart = at_matched_learning(trade_off(np.random.default_rng(7), 6, less_learning=20.0))
    assert apart.refusal == "both arms learnt alike in 0 task pairs, and 6 are needed"
    assert (apart.adjusted, apart.runs_used, apart.n_runs) == (None, 0, 96)
    few = at_matched_learning(trade_off(np.random.default_rng(7), 4))
    assert few.refusal == "both arms learnt alike in 4 task pairs, and 6 are needed"
    flat = [Run(r.pair, r.factors, {}, {**r.outcomes, "learning": 1.0}) for r in trade_off(np.random.default_rng(7))]
    assert "does not vary" in at_matched_learning(flat).refusal
    with pytest.raises(ValueError, match="no task pair"):
        at_matched_learning([run for run in flat if run.factors["optimiser"] == "sam"])


def test_interventions_leave_their_input_and_are_reproducible():
    runs = trade_off(np.random.default_rng(8))
    before = [dict(run.outcomes) for run in runs]
    assert arms(runs) == arms(runs)
    assert at_matched_learning(runs) == at_matched_learning(runs)
    assert before == [dict(run.outcomes) for run in runs]
    for result in (arms(runs), at_matched_learning(runs)):
        json.dumps(asdict(result))


# Forecasts


def forecasts(rng, slope=0.6, intercept=0.2, noise=1.0, pairs=8):
    labels, f = in_pairs(rng, pairs, 8)
    y = intercept + slope * f + noise * in_pairs(rng, pairs, 8)[1]
    rows = zip(labels, f, y, strict=True)
    return [Run(f"{p}", {}, {"forecast": a, "noise": rng.normal()}, {"forgetting": b}) for p, a, b in rows]


def test_a_forecast_without_error_is_calibrated():
    found = calibrate(forecasts(np.random.default_rng(9), 1.0, 0.0, 0.0), "forecast", "forgetting", seed=0)
    assert (found.slope.value, found.intercept.value) == pytest.approx((1.0, 0.0))
    assert found.slope.interval.high - found.slope.interval.low < 1e-9
    assert found.rank_correlation.value == 1.0
    assert found.r_squared == pytest.approx(1.0)
    assert found.sign_right.value == 1.0
    assert found.mean_absolute_error.value == pytest.approx(0.0)


def test_calibration_by_hand():
    """f = 0 1 2 -1, y = 1 1 4 -2: errors -1 0 -2 1, slope 9/5, intercept 1/10, mean y 1, r2 = 1 - 6/18."""
    numbers = zip((0.0, 1.0, 2.0, -1.0), (1.0, 1.0, 4.0, -2.0), strict=True)
    runs = [Run("a", {}, {"forecast": f}, {"forgetting": y}) for f, y in numbers]
    found = calibrate([*runs, Run("a", {}, {"forecast": math.nan})], "forecast", "forgetting", seed=0)
    assert found.slope.value == pytest.approx(1.8)
    assert found.intercept.value == pytest.approx(0.1)
    assert (found.mean_error.value, found.mean_absolute_error.value, found.sign_right.value) == (-0.5, 1.0, 0.75)
    assert found.r_squared == pytest.approx(1 - 6 / 18)
    assert (found.n_runs, found.n_pairs, found.excluded, found.slope.interval) == (4, 1, 1, None)


def test_the_line_of_calibration_is_scipys_and_its_interval_covers():
    runs = forecasts(np.random.default_rng(10))
    f, y = (np.array([run.number(name) for run in runs]) for name in ("forecast", "forgetting"))
    line = stats.linregress(f, y)
    found = calibrate(runs, "forecast", "forgetting", seed=0)
    assert (found.slope.value, found.intercept.value) == pytest.approx((line.slope, line.intercept))
    assert found.slope.interval.low < 0.6 < found.slope.interval.high
    assert 0 <= found.sign_right.interval.low <= found.sign_right.value <= found.sign_right.interval.high <= 1
    assert found.rank_correlation.value == pytest.approx(stats.spearmanr(f, y).statistic)


def test_calibration_of_constants_is_refused():
    runs = [Run(f"{k}", {}, {"forecast": 1.0}, {"forgetting": float(k)}) for k in range(8)]
    found = calibrate(runs, "forecast", "forgetting", seed=0)
    assert (found.slope, found.r_squared) == (None, None)
    assert found.mean_absolute_error.value == pytest.approx(np.abs(np.arange(8) - 1).mean())
    with pytest.raises(ValueError, match="finite"):
        calibrate([Run("a", {}, {"forecast": math.nan}, {"forgetting": 1.0})], "forecast", "forgetting", seed=0)


def test_unseen_pairs_are_predicted_by_what_matters_alone():
    runs = forecasts(np.random.default_rng(11), noise=0.3, slope=1.0)
    good = predict_unseen_pairs(runs, "forgetting", "forecast", baseline="noise", seed=0)
    assert good.skill > 0.6
    assert good.gain_over_mean.interval.low > 0
    assert good.gain_over_baseline.interval.low > 0
    bad = predict_unseen_pairs(runs, "forgetting", "noise", seed=0)
    assert bad.skill < 0.1
    assert bad.gain_over_mean.interval.low < 0
    assert bad.gain_over_baseline is bad.baseline_error is None
    assert good.baseline_error == pytest.approx(bad.error)


def test_prediction_by_hand():
    """Pairs a, b, c at x = 0, 1, 2 with y = 0, 2, 2: a left out is predicted 2, b 1, c 4; means 2, 1, 1."""
    points = zip("abc", (0.0, 1.0, 2.0), (0.0, 2.0, 2.0), strict=True)
    runs = [Run(p, {}, {"x": x}, {"forgetting": y}) for p, x, y in points]
    found = predict_unseen_pairs(runs, "forgetting", "x", seed=0)
    assert found.error == pytest.approx((2 + 1 + 2) / 3)
    assert found.mean_error == pytest.approx((2 + 1 + 1) / 3)
    assert found.skill == pytest.approx(1 - 9 / 6)
    assert found.gain_over_mean.value == pytest.approx(-1 / 3)
    assert "three" in predict_unseen_pairs(runs[:2], "forgetting", "x", seed=0).refusal
    same = [Run(run.pair, {}, {"x": 1.0}, run.outcomes) for run in runs]
    assert "constant" in predict_unseen_pairs(same, "forgetting", "x", seed=0).refusal


# Likeness within pairs

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_intraclass_correlation_of_the_published_table():
    """Shrout & Fleiss 1979, table 2: ICC(1, 1) = .17; pingouin 0.7.0: 0.165742, interval -0.13 to 0.72."""
    runs = [Run(f"{k}", {}, {"x": value}) for k, row in enumerate(SHROUT_FLEISS) for value in row]
    found = intraclass_correlation(runs, "x")
    assert found.value == pytest.approx(0.165742, abs=1e-6)
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.13, 0.72), abs=5e-3)
    assert found.design_effect == pytest.approx(1 + 3 * 0.165742, abs=1e-5)
    assert found.effective_runs == pytest.approx(24 / found.design_effect)
    assert found.reliability is None


def test_intraclass_intervals_cover():
    rng, n, covered = np.random.default_rng(12), 500, 0
    for _ in range(n):
        labels, x = in_pairs(rng, 6, 8)
        runs = [Run(f"{p}", {}, {"x": value}) for p, value in zip(labels, x, strict=True)]
        interval = intraclass_correlation(runs, "x").interval
        covered += interval.low <= 0.5 <= interval.high
    assert 0.925 <= covered / n <= 0.975


def test_reliability_is_the_share_that_is_not_noise():
    """Within pairs the mean square is 0.5; stderrs of 0.5 explain half of it."""
    runs = [Run(p, {}, {"x": x}, {}, {"x": 0.5}) for p, x in (("a", 0.0), ("a", 1.0), ("b", 5.0), ("b", 6.0))]
    assert intraclass_correlation(runs, "x").reliability == pytest.approx(0.5)
    assert intraclass_correlation([*runs, Run("b", {}, {"x": 6.0})], "x").reliability is None


def test_intraclass_refusals():
    one = [Run("a", {}, {"x": 1.0}), Run("a", {}, {"x": 2.0})]
    assert "two task pairs" in intraclass_correlation(one, "x").refusal
    assert "two task pairs" in intraclass_correlation([one[0], Run("b", {}, {"x": 2.0})], "x").refusal
    same = [Run(p, {}, {"x": x}) for p, x in (("a", 1.0), ("a", 1.0), ("b", 2.0), ("b", 2.0))]
    assert "does not vary" in intraclass_correlation(same, "x").refusal
