import functools
import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, xlogy

from llm_forgetting.arrays import standard_error
from llm_forgetting.forgetting.clusters import cluster_stderr
from llm_forgetting.forgetting.intervals import (
    MINIMUM_ITEMS,
    Interval,
    bonett_price_paired,
    mcnemar_exact,
    paired_proportion_change,
    proportion,
    wilson,
)
from llm_forgetting.forgetting.mean_intervals import bootstrap_t, estimate_mean, paired_mean_change, skewness_corrected
from llm_forgetting.forgetting.power import detectable_drop

# Coverage and power go over all counts, many times.
mcnemar = functools.cache(mcnemar_exact)
bonett_price = functools.cache(bonett_price_paired)
log_factorial = functools.cache(lambda n: float(gammaln(n + 1)))


def _limits(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def _scores(both: int, only_before: int, only_after: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, True, False, False], [both, only_before, only_after, neither])
    after = np.repeat([True, False, True, False], [both, only_before, only_after, neither])
    return before, after


def newcombe_paired(both: int, only_before: int, only_after: int, neither: int) -> Interval:
    """Newcombe's score interval with corrected phi for `after - before`, paired, at 95%: what decision 1 does not take.

    With Wilson limits (l, u) of both accuracies p, and phi the correlation of the 2 x 2 table whose positive numerator
    is reduced by n / 2 but not below 0 (phi = 0 if a margin is empty):
        low = D - sqrt((p_a - l_a)^2 - 2 phi (p_a - l_a)(u_b - p_b) + (u_b - p_b)^2),   D = p_a - p_b
        high = D + sqrt((u_a - p_a)^2 - 2 phi (u_a - p_a)(p_b - l_b) + (p_b - l_b)^2)
    Method 10 of Newcombe 1998, Statistics in Medicine 17:2635.
    """
    n = both + only_before + only_after + neither
    after, before = (both + only_after) / n, (both + only_before) / n
    score_after, score_before = wilson(both + only_after, n), wilson(both + only_before, n)
    margins = (both + only_before) * (only_after + neither) * (both + only_after) * (only_before + neither)
    numerator = both * neither - only_before * only_after
    corrected = max(numerator - n / 2, 0.0) if numerator > 0 else numerator
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def distance(of_after: float, of_before: float) -> float:
        return math.sqrt(max(of_after**2 - 2 * phi * of_after * of_before + of_before**2, 0.0))

    return Interval(
        after - before - distance(after - score_after.low, score_before.high - before),
        after - before + distance(score_after.high - after, before - score_before.low),
        method="Newcombe 1998, method 10",
    )


# One accuracy


@pytest.mark.parametrize(("correct", "n"), [(0, 40), (13, 40), (40, 40), (22, 100)])
def test_wilson_is_the_root_of_the_score_equation(correct, n):
    low, high = _limits(wilson(correct, n))
    z2 = stats.norm.ppf(0.975) ** 2
    for limit in (low, high):
        assert (correct / n - limit) ** 2 == pytest.approx(z2 * limit * (1 - limit) / n, abs=1e-12)
    assert low <= correct / n <= high
    assert high - low > 0.05


@pytest.mark.parametrize(
    ("correct", "n", "stderr"), [(22, 100, 0.041633), (25, 135, 0.033557), (13, 40, 0.075), (15, 40, 0.077522)]
)
def test_proportion_reproduces_the_harness_stderr(correct, n, stderr):
    result = proportion(np.arange(n) < correct)
    assert (result.correct, result.n, result.value) == (correct, n, correct / n)
    assert result.stderr == pytest.approx(stderr, abs=1e-6)
    assert _limits(result.interval) == _limits(wilson(correct, n))


def test_below_the_minimum_there_are_counts_only():
    few = np.arange(MINIMUM_ITEMS - 1) % 2 == 0
    assert proportion(few).interval is None
    assert paired_proportion_change(few, ~few).interval is None
    assert paired_mean_change(few, np.arange(few.size), seed=0).interval is None
    assert estimate_mean(np.arange(few.size), seed=0).interval is None
    assert paired_proportion_change(few, ~few).only_before == 20
    enough = np.append(few, True)
    assert proportion(enough).interval is not None
    assert paired_proportion_change(enough, ~enough).interval is not None
    assert estimate_mean(enough, seed=0).interval is not None


# Paired proportions


def test_newcombe_reproduces_the_published_table():
    """Newcombe 1998, table (36, 12, 2, 0), method 10: 0.0569 to 0.3404 for the first minus the second proportion."""
    first_minus_second = newcombe_paired(both=36, only_before=2, only_after=12, neither=0)
    assert _limits(first_minus_second) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert _limits(newcombe_paired(36, 12, 2, 0)) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_newcombe_without_association_adds_the_squared_wilson_distances():
    """phi is 0 for an empty margin; then the limits are those of two independent Wilson intervals."""
    score = wilson(40, 50)
    low, high = _limits(newcombe_paired(both=40, only_before=0, only_after=10, neither=0))
    assert low == pytest.approx(0.2 - math.hypot(1 - wilson(50, 50).low, score.high - 0.8))
    assert high == pytest.approx(0.2 + math.hypot(0.0, 0.8 - score.low))


def test_newcombe_corrects_a_positive_association():
    """By hand for (20, 12, 2, 16): numerator 20 * 16 - 12 * 2 - 25 = 271, margins 32 * 18 * 22 * 28."""
    phi = 271 / math.sqrt(32 * 18 * 22 * 28)
    before, after = wilson(32, 50), wilson(22, 50)
    rise, fall = 0.44 - after.low, before.high - 0.64
    low = -0.2 - math.sqrt(rise**2 - 2 * phi * rise * fall + fall**2)
    assert newcombe_paired(20, 12, 2, 16).low == pytest.approx(low, abs=1e-12)


def test_bonett_price_by_hand():
    """n = 40, 25 lost, none gained: p = 1/42, q = 26/42."""
    variance = (27 / 42 - (25 / 42) ** 2) / 42
    low, high = _limits(bonett_price_paired(only_before=25, only_after=0, n=40))
    assert (low, high) == pytest.approx((-25 / 42 - 1.959964 * variance**0.5, -25 / 42 + 1.959964 * variance**0.5))
    assert bonett_price_paired(40, 0, 40).low == -1.0


@pytest.mark.parametrize("swap", [newcombe_paired, lambda a, b, c, d: bonett_price_paired(b, c, a + b + c + d)])
def test_paired_intervals_turn_with_the_direction(swap):
    forward, backward = swap(20, 15, 4, 11), swap(20, 4, 15, 11)
    assert _limits(-forward) == pytest.approx(_limits(backward))
    assert forward.high < 0 < backward.low


@pytest.mark.parametrize(
    ("only_before", "only_after"), [(0, 0), (1, 0), (5, 0), (6, 0), (12, 2), (3, 9), (7, 7), (30, 14)]
)
def test_mcnemar_equals_a_sum_of_binomials(only_before, only_after):
    m, least = only_before + only_after, min(only_before, only_after)
    tail = sum(Fraction(math.comb(m, k), 2**m) for k in range(least + 1))
    assert mcnemar_exact(only_before, only_after) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_paired_proportion_change_counts_and_signs():
    before, after = _scores(both=10, only_before=20, only_after=5, neither=15)
    change = paired_proportion_change(before, after)
    assert (change.both, change.only_before, change.only_after, change.neither) == (10, 20, 5, 15)
    assert change.value == pytest.approx(-0.3)
    assert change.stderr == pytest.approx(math.sqrt((25 / 50 - 0.09) / 49))
    assert change.p_value == mcnemar_exact(20, 5)
    assert _limits(change.interval) == _limits(bonett_price_paired(20, 5, 50))
    assert change.clustered_stderr is None


def _coverage(n: int, losses: float, gains: float, interval) -> float:
    """Exact coverage of the change gains - losses over all (only_before, only_after), multinomial."""
    total, truth = 0.0, gains - losses
    for b in range(n + 1 if losses else 1):
        for c in range(n + 1 - b if gains else 1):
            rest = n - b - c
            log_p = log_factorial(n) - log_factorial(b) - log_factorial(c) - log_factorial(rest)
            log_p += xlogy(b, losses) + xlogy(c, gains) + xlogy(rest, 1 - losses - gains)
            if log_p > -25:
                found = interval(b, c, n)
                total += math.exp(log_p) * (found.low - 1e-9 <= truth <= found.high + 1e-9)
    return total


@pytest.mark.parametrize("n", [40, 60, 100])
def test_the_accuracy_interval_covers(n):
    """Exact coverage, nominal 0.95; few discordant pairs and pairs that all go one way included."""
    cells = [(share, way) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7) for way in (0.5, 0.7, 0.9, 1.0)]
    coverages = [_coverage(n, share * way, share * (1 - way), bonett_price) for share, way in cells]
    assert min(coverages) >= 0.93
    assert sum(coverages) / len(coverages) < 0.985


def test_newcombe_undercovers_where_all_discordant_pairs_are_losses():
    """Why Newcombe's interval is not the default: n = 40, 10% lost, none gained, 45% right both times."""
    n, lost, kept = 40, 0.10, 0.45
    coverage = 0.0
    for b in range(16):
        for a in range(n + 1 - b):
            d = n - a - b
            log_p = log_factorial(n) - log_factorial(a) - log_factorial(b) - log_factorial(d)
            p = math.exp(log_p + xlogy(a, kept) + xlogy(b, lost) + xlogy(d, 1 - kept - lost))
            if p > 1e-9:
                interval = newcombe_paired(a, b, 0, d)
                coverage += p * (interval.low <= -lost <= interval.high)
    assert coverage == pytest.approx(0.915, abs=0.002)
    assert _coverage(n, lost, 0.0, bonett_price_paired) > 0.93


# Means


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(lambda rng, shape: rng.exponential(1.0, shape), 1.0), (lambda rng, shape: rng.gamma(0.5, 1.0, shape), 0.5)],
    ids=["exponential", "gamma"],
)
def test_bootstrap_t_covers_skewed_losses_better_than_bca(draw, truth):
    samples = draw(np.random.default_rng(3), (1000, MINIMUM_ITEMS))
    intervals = [bootstrap_t(sample, seed=k, resamples=999) for k, sample in enumerate(samples)]
    studentised = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    bca = stats.bootstrap((samples,), np.mean, axis=1, n_resamples=999, batch=50, rng=np.random.default_rng(4))
    covered = (bca.confidence_interval.low <= truth) & (truth <= bca.confidence_interval.high)
    assert 0.93 <= studentised <= 0.975
    assert studentised > covered.mean()


def test_the_skewness_correction_is_the_root_of_halls_cubic():
    x = np.random.default_rng(1).exponential(1.0, 50) * (np.random.default_rng(2).uniform(size=50) < 0.2)
    n, s = 50, x.std(ddof=1)
    a = stats.skew(x) * (x.std() / s) ** 3 / 3
    for limit, sign in zip(_limits(skewness_corrected(x)), (1, -1), strict=True):
        T = (x.mean() - limit) / s
        assert math.sqrt(n) * (T + a * T**2 + a**2 * T**3 / 3 + a / (2 * n)) == pytest.approx(
            sign * stats.t.ppf(0.975, 49)
        )
    symmetric = np.concatenate([x, -x])
    t = stats.ttest_1samp(symmetric, 0.0).confidence_interval(0.95)
    assert _limits(skewness_corrected(symmetric)) == pytest.approx((t.low, t.high))


def test_where_few_items_carry_the_change_the_correction_covers_better():
    """1,000 samples of 40 items, of which one in ten changes, by an exponential amount."""
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, (1000, 40)) * (rng.uniform(size=(1000, 40)) < 0.1)
    corrected = [_limits(skewness_corrected(sample)) for sample in samples]
    assert np.mean([low <= 0.1 <= high for low, high in corrected]) >= 0.9
    studentised = [_limits(bootstrap_t(sample, seed=0, resamples=199)) for sample in samples[:300]]
    assert np.mean([low <= 0.1 <= high for low, high in studentised]) <= 0.87


def test_the_interval_of_a_mean_is_the_wider_at_each_end():
    x = np.random.default_rng(0).exponential(1.0, 60) * (np.arange(60) % 10 == 0)
    mean = estimate_mean(x, seed=3).interval
    both = _limits(bootstrap_t(x, seed=3)), _limits(skewness_corrected(x))
    assert _limits(mean) == (min(low for low, _ in both), max(high for _, high in both))
    assert "Hall" in mean.method
    assert estimate_mean(np.full(50, 0.3), seed=0).interval == bootstrap_t(np.full(50, 0.3), seed=0)


def test_bootstrap_t_agrees_with_student_on_normal_values():
    x = np.random.default_rng(0).normal(2.0, 1.0, 400)
    t = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert _limits(bootstrap_t(x, seed=1)) == pytest.approx((t.low, t.high), abs=0.01)


def test_bootstrap_t_reaches_farther_on_the_long_side():
    x = np.random.default_rng(0).exponential(1.0, 50)
    interval = bootstrap_t(x, seed=1)
    assert interval.high - x.mean() > 1.2 * (x.mean() - interval.low)


def test_bootstrap_t_is_reproducible_and_batches_do_not_matter(monkeypatch):
    x = np.random.default_rng(0).exponential(1.0, 50)
    assert bootstrap_t(x, seed=1) == bootstrap_t(x, seed=1)
    assert bootstrap_t(x, seed=1) != bootstrap_t(x, seed=2)
    whole = bootstrap_t(x, seed=1)
    monkeypatch.setattr("llm_forgetting.forgetting.mean_intervals._LARGEST_BATCH", 50 * 700)
    assert _limits(bootstrap_t(x, seed=1)) == pytest.approx(_limits(whole), abs=1e-12)


def test_degenerate_values_say_so():
    same = bootstrap_t(np.full(50, 0.3), seed=0)
    assert _limits(same) == pytest.approx((0.3, 0.3))
    assert same.method == "none: all values are equal"
    one = np.append(np.zeros(49), 1.0)
    spike = bootstrap_t(one, seed=0)
    t = stats.ttest_1samp(one, 0.0).confidence_interval(0.95)
    assert _limits(spike) == pytest.approx((t.low, t.high))
    assert spike.method.startswith("Student t")


def test_constant_resamples_of_values_that_round_do_not_explode():
    values = np.append(np.full(49, 0.1) * 3, 1.7)
    assert bootstrap_t(values, seed=0).method.startswith("Student t")


def test_paired_mean_change_is_paired():
    rng = np.random.default_rng(5)
    before = rng.normal(0.0, 10.0, 60)
    after = before + rng.normal(0.5, 0.1, 60)
    change = paired_mean_change(before, after, seed=0)
    t = stats.ttest_rel(after, before)
    assert change.value == pytest.approx(np.mean(after - before))
    assert change.stderr == pytest.approx(change.value / t.statistic)
    low, high = _limits(change.interval)
    assert 0.45 < low < 0.5 < high < 0.55


def test_cluster_stderr_by_hand():
    """Cluster sums of the residuals of (1, 2, 3, 6), mean 3: -3 and 3; sqrt(2 / 1 * 18) / 4 = 1.5."""
    assert cluster_stderr([1.0, 2.0, 3.0, 6.0], ["a", "a", "b", "b"]) == pytest.approx(1.5)
    assert cluster_stderr([1.0, 2.0, 3.0, 6.0], ["a"] * 4) is None
    assert cluster_stderr([1.0, 2.0, 3.0, 6.0], None) is None
    with pytest.raises(ValueError, match="one label per item"):
        cluster_stderr([1.0, 2.0], ["a"])


@pytest.mark.parametrize("per_subject", [8, 20])
def test_of_several_subjects_the_interval_is_the_t_interval_of_their_means(per_subject):
    rng = np.random.default_rng(0)
    d = rng.normal(size=(5, 1)) + rng.normal(size=(5, per_subject))
    labels = np.repeat(list("abcde"), per_subject).tolist()
    expected = stats.ttest_1samp(d.mean(axis=1), 0.0)
    change = paired_mean_change(np.zeros(d.size), d.ravel(), seed=0, clusters=labels)
    limits = expected.confidence_interval(0.95)
    assert _limits(change.interval) == pytest.approx((limits.low, limits.high))
    assert change.stderr == change.clustered_stderr
    lost = np.repeat([0.9, 0.8, 0.1, 0.0, 0.0], per_subject) > rng.uniform(size=d.size)
    change = paired_proportion_change(np.ones(d.size), ~lost, clusters=labels)
    expected = stats.ttest_1samp(-lost.reshape(5, -1).mean(axis=1), 0.0)
    assert change.p_value == pytest.approx(expected.pvalue)
    limits = expected.confidence_interval(0.95)
    assert _limits(change.interval) == pytest.approx((max(limits.low, -1), limits.high))
    assert change.p_value > 0.05 > mcnemar_exact(change.only_before, change.only_after)


def test_few_subjects_that_agree_by_chance_do_not_make_the_error_small():
    d = np.tile([0.0, 1.0, 0.0, 1.0], 12)
    mean = estimate_mean(d, seed=0, clusters=np.repeat(["a", "b", "c"], 16).tolist())
    assert cluster_stderr(d, np.repeat(["a", "b", "c"], 16).tolist()) == 0
    assert mean.stderr == pytest.approx(standard_error(d))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "items_alone"), [(40, (0.65, 0.82)), (200, (0.3, 0.5))])
def test_the_interval_over_subjects_covers(n, items_alone):
    """5 subjects, correlation 0.3 of items of one subject; a bootstrap over items covers 0.74 and 0.40."""
    rng = np.random.default_rng(0)
    labels = np.repeat(list("abcde"), n // 5).tolist()
    covered = []
    for k in range(600):
        d = math.sqrt(0.3) * np.repeat(rng.normal(size=5), n // 5) + math.sqrt(0.7) * rng.normal(size=n)
        intervals = estimate_mean(d, seed=k, clusters=labels).interval, bootstrap_t(d, seed=k, resamples=199)
        covered.append([interval.low <= 0 <= interval.high for interval in intervals])
    pooled, alone = np.mean(covered, axis=0)
    assert pooled >= 0.93
    assert items_alone[0] < alone < items_alone[1]


def test_clusters_of_one_item_give_the_plain_stderr():
    x, y = np.random.default_rng(0).normal(size=(2, 45))
    change = paired_mean_change(x, y, seed=0, clusters=range(45))
    assert change.clustered_stderr == pytest.approx(change.stderr)
    assert change.interval == paired_mean_change(x, y, seed=0).interval
    labels = ["a", "b", "c"] * 15
    pooled = paired_proportion_change(x > 0, y > 0, clusters=labels)
    assert pooled.clustered_stderr == pytest.approx(cluster_stderr((y > 0).astype(float) - (x > 0), labels))


def test_one_item_has_no_stderr():
    assert standard_error([2.0]) is None
    assert proportion([True]).stderr is None
    assert paired_mean_change([1.0], [2.0], seed=0).stderr is None


# What could have been seen


def test_detectable_drop():
    """Near the normal approximation c sqrt(discordant / n), c = 2.80, where n is large."""
    assert detectable_drop(10_000, 0.10) == pytest.approx(2.8016 * math.sqrt(0.10 / 10_000), rel=0.02)
    assert detectable_drop(400, 0.10) > detectable_drop(10_000, 0.10) * 5
    assert detectable_drop(3) == detectable_drop(5) == 1.0
    assert detectable_drop(6) < 1.0


@pytest.mark.parametrize(("n", "discordant"), [(7, 0.5), (40, 0.0), (40, 0.3), (100, 0.1), (100, 0.3), (100, 1.0)])
@pytest.mark.slow
def test_exact_mcnemar_has_the_stated_power(n, discordant):
    drop = detectable_drop(n, discordant)
    discordant = max(discordant, drop)
    losses, power = (1 + drop / discordant) / 2, 0.0
    for m in range(n + 1):
        rejected = [b for b in range(m + 1) if mcnemar(b, m - b) <= 0.05]
        if rejected:
            power += stats.binom.pmf(m, n, discordant) * stats.binom.pmf(rejected, m, losses).sum()
    assert power == pytest.approx(0.80, abs=1e-6)


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    good = np.ones(50)
    wrong = np.append(np.ones(49), bad)
    for before, after in ((good, wrong), (wrong, good)):
        with pytest.raises(ValueError, match="must be finite, got 1 NaN or infinite of 50"):
            paired_mean_change(before, after, seed=0)
        with pytest.raises(ValueError, match="only 0 and 1"):
            paired_proportion_change(before, after)
    with pytest.raises(ValueError, match="must be finite"):
        estimate_mean(wrong, seed=0)


def test_unequal_or_empty_input_is_refused():
    with pytest.raises(ValueError, match="same items"):
        paired_mean_change([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="same items"):
        paired_proportion_change([True, False], [True])
    with pytest.raises(ValueError, match="not empty"):
        proportion([])
    with pytest.raises(ValueError, match="negative"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 4)


def test_inputs_are_not_mutated_and_results_are_plain_json():
    before, after = np.random.default_rng(0).exponential(size=(2, 50))
    kept = before.copy(), after.copy()
    change = paired_mean_change(before, after, seed=0, clusters=[k % 3 for k in range(50)])
    assert np.array_equal(before, kept[0])
    assert np.array_equal(after, kept[1])
    for result in (change, paired_proportion_change(before > 1, after > 1), proportion(before > 1)):
        assert json.loads(json.dumps(asdict(result)))["interval"]["level"] == 0.95
