"""What is exchanged in a study's tests, and that their levels and coverages hold where runs share checkpoints and settings."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.clusters import fit_over_pairs, mean_over_pairs
from llm_forgetting.study.statistics.exchangeability import orders_within
from llm_forgetting.study.statistics.permutation import Arrangements, arrange, spearman_statistic
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_at_matched_learning

SHAPE = (3, 2, 2, 2, 2)  # first tasks, pairs of each, seeds, learning rates, arms
RUNS = np.arange(math.prod(SHAPE)).reshape(SHAPE)
FIRST_TASKS, PAIR, SEED, RATE, ARM = (values.ravel() for values in np.indices(SHAPE))
PAIRS = 2 * FIRST_TASKS + PAIR
CHECKPOINTS = RUNS[:, :1].repeat(2, axis=1).ravel()
ALIKE = {
    "first_tasks": FIRST_TASKS,
    "checkpoints": CHECKPOINTS,
    "settings": np.stack([SEED, RATE, ARM], axis=1),
}


def draw(rng, correlation, *, at_first=False, shape=SHAPE):
    """Numbers of all runs, alike by `correlation` where runs of a pair share a setting, and of pairs a checkpoint."""
    pairs = 1 if at_first else shape[1]
    size = np.array([shape[0], pairs, *shape[2:]])
    of_settings = sum(rng.normal(size=np.where(np.isin(range(5), (0, 1, axis)), size, 1)) for axis in (2, 3, 4))
    of_checkpoint, own = rng.normal(size=np.where(np.arange(5) == 1, 1, size)), rng.normal(size=size)
    rest = math.sqrt(correlation) * of_checkpoint + math.sqrt(1 - correlation) * own
    values = math.sqrt(correlation / 3) * of_settings + math.sqrt(1 - correlation) * rest
    return np.broadcast_to(values + rng.normal(size=(shape[0], pairs, 1, 1, 1)), shape).ravel()


def centred_ranks(values, pairs=PAIRS):
    ranks = stats.rankdata(values)
    return ranks - (np.bincount(pairs, weights=ranks) / np.bincount(pairs))[pairs]


def exchanged():
    """Every arrangement of the design: each first task exchanges its seeds, rates and arms, or does not."""
    flips = list(itertools.product((1, -1), repeat=3))
    return [
        np.stack([runs[:, ::a, ::b, ::c] for runs, (a, b, c) in zip(RUNS, chosen, strict=True)]).ravel()
        for chosen in itertools.product(flips, repeat=3)
    ]


# What is exchanged


def test_settings_exchange_their_values_and_nothing_else():
    orders = orders_within(PAIRS, seed=0, **ALIKE)
    assert orders.exact
    assert sorted(map(tuple, orders.rows)) == sorted(map(tuple, exchanged()))


def test_the_test_is_the_enumeration_by_hand():
    rng = np.random.default_rng(0)
    a, b = centred_ranks(draw(rng, 0.5, at_first=True)), centred_ranks(draw(rng, 0.5))
    sizes = np.array([abs(a @ b[order]) for order in exchanged()])
    test = arrange(spearman_statistic(a, b), orders_within(PAIRS, seed=0, **ALIKE)).test()
    assert (test.arrangements, test.exact) == (512, True)
    assert test.p_value == np.mean(sizes >= abs(a @ b) - 1e-9)
    assert test.smallest == np.mean(sizes >= sizes.max() - 1e-9)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_the_level_is_exact_over_all_arrangements(share):
    """Each arrangement of one outcome is as likely: the share that the test rejects is 25 of 512, whatever is alike."""
    rng = np.random.default_rng(1)
    a, b = centred_ranks(draw(rng, share, at_first=True)), centred_ranks(draw(rng, share))
    orders = orders_within(PAIRS, seed=0, **ALIKE)
    rejected = [arrange(spearman_statistic(a, b[order]), orders).test().p_value <= 0.05 for order in orders.rows]
    assert np.mean(rejected) == 25 / 512


def test_a_missing_run_leaves_what_still_fits():
    """Without the last run of first task 0 no exchange of its values maps its runs to its runs; the others keep theirs."""
    kept = RUNS.ravel() != RUNS[0, 1, 1, 1, 1]
    alike = {name: values[kept] for name, values in ALIKE.items()}
    orders = orders_within(PAIRS[kept], seed=0, **alike)
    assert len(orders.rows) == 64
    assert (orders.rows[:, FIRST_TASKS[kept] == 0] == np.arange(15)).all()


def test_arms_that_share_a_checkpoint_are_exchanged_with_each_other_only():
    """Replay shares adamw's checkpoint, sam has its own: two seeds and two arms, 2 x 2 arrangements."""
    seeds, arms = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    settings, checkpoints = np.stack([seeds, arms], axis=1), np.array([0, 0, 1, 2, 2, 3])
    orders = orders_within(np.zeros(6, dtype=int), seed=0, checkpoints=checkpoints, settings=settings)
    expected = [[0, 1, 2, 3, 4, 5], [1, 0, 2, 4, 3, 5], [3, 4, 5, 0, 1, 2], [4, 3, 5, 1, 0, 2]]
    assert sorted(orders.rows.tolist()) == expected


def test_settings_of_one_run_each_are_exchanged_freely():
    """A seed and a rate of its own for each of four runs: nothing is shared, 4! arrangements."""
    settings = np.stack([np.arange(4), np.arange(4)[::-1]], axis=1)
    assert len(orders_within(np.zeros(4, dtype=int), seed=0, settings=settings).rows) == 24
    nested = np.stack([[0, 0, 1, 1], [5, 5, 7, 7]], axis=1)  # rate and batch change together: one setting of two runs
    assert len(orders_within(np.zeros(4, dtype=int), seed=0, settings=nested).rows) == 4


def test_drawn_arrangements_are_arrangements():
    shape = (2, 1, 5, 3, 2)
    first, _, seed, rate, arm = (values.ravel() for values in np.indices(shape))
    settings = np.stack([seed, rate, arm], axis=1)
    orders = orders_within(first, seed=0, draws=200, settings=settings)
    assert not orders.exact
    for rows in orders.rows[:50]:
        for column in (seed, rate, arm):  # what agreed still agrees
            assert all(np.unique(column[rows][(first == f) & (column == v)]).size == 1 for f in (0, 1) for v in (0, 1))


# Levels and coverages


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "too_many"), [(0.0, 0.0), (0.8, 0.09)])
def test_levels_hold_where_runs_share_checkpoints_and_settings(correlation, too_many):
    """Runs permuted one by one, as if they shared nothing, reject too often."""
    rng, n, rejected = np.random.default_rng(2), 300, np.zeros(3)
    structured = orders_within(PAIRS, seed=0, **ALIKE)
    one_by_one = orders_within(PAIRS, seed=0, draws=399)
    for _ in range(n):
        y, x, later = draw(rng, correlation), draw(rng, correlation, at_first=True), draw(rng, correlation)
        a, b, c = (centred_ranks(values) for values in (x, y, later))
        for k, (ranks, orders) in enumerate(((a, structured), (c, structured), (a, one_by_one))):
            rejected[k] += arrange(spearman_statistic(ranks, b), orders).test().p_value <= 0.05
    first, later, naive = rejected / n
    assert 0.025 <= first <= 0.075
    assert 0.025 <= later <= 0.075
    assert naive >= too_many


def test_the_interval_excludes_0_where_the_test_rejects():
    rng, orders = np.random.default_rng(3), orders_within(PAIRS, seed=0, **ALIKE)
    for strength in (0.0, 0.3, 0.6) * 5:
        x = draw(rng, 0.3)
        a, b = centred_ranks(x), centred_ranks(strength * x + draw(rng, 0.3))
        arranged = arrange(spearman_statistic(a, b), orders)
        interval = arranged.interval("")
        assert (interval.low > 0 or interval.high < 0) == (arranged.test().p_value <= 0.05)
        assert interval.low <= arranged.observed <= interval.high


def test_the_interval_by_hand():
    """Of 40 sizes 0.02 to 0.80 two may be as extreme: the third largest, 0.76, is the most that is not rejected."""
    drawn = np.arange(1, 41) / 50
    interval = Arrangements(0.5, drawn, exact=True).interval("by hand")
    assert (interval.low, interval.high) == pytest.approx(tuple(np.tanh(np.arctanh(0.5) + np.arctanh([-0.76, 0.76]))))
    assert Arrangements(0.5, drawn[:19], exact=True).interval("none of 19 is rejected") is None
    assert Arrangements(0.5, np.ones(40) / 2, exact=True).interval("ties") is None


def test_signs_are_flipped_by_first_task_of_whatever_size():
    """Six first tasks of one to six pairs: 64 patterns of their means, one by one."""
    firsts = np.repeat(np.arange(6), np.arange(1, 7))
    values = np.random.default_rng(4).normal(0.4, 1.0, firsts.size)
    means = [values[firsts == f].mean() for f in range(6)]
    sums = [abs(np.dot(signs, means)) for signs in itertools.product((1, -1), repeat=6)]
    mean = mean_over_pairs(values, np.arange(firsts.size), seed=0, first_tasks=firsts)
    assert mean.test.p_value == np.mean(np.array(sums) >= abs(sum(means)) - 1e-9)
    assert (mean.value, mean.n_units, mean.n_pairs, mean.unit) == (pytest.approx(np.mean(means)), 6, 21, "first task")
    few = mean_over_pairs(values[firsts > 0], np.arange(20), seed=0, first_tasks=firsts[firsts > 0])
    assert (few.test, few.interval) == (None, None)
    assert few.reason.startswith("fewer than 6 first tasks")
    (fitted,) = fit_over_pairs(lambda rows: [values[rows].mean()], firsts[firsts > 0], unit="first task")
    assert fitted.reason.startswith("fewer than 6 first tasks")


@pytest.mark.slow
def test_means_over_first_tasks_cover_and_those_over_pairs_do_not():
    rng, n, counts = np.random.default_rng(5), 300, np.zeros(4)
    shape = (8, 2, 2, 2, 2)
    firsts, pairs = np.repeat(np.arange(8), 16), np.repeat(np.arange(16), 8)
    for _ in range(n):
        common = np.repeat(2 * rng.normal(size=8), 16)  # the runs of a first task are alike
        y = draw(rng, 0.5, shape=shape) + common
        ours = mean_over_pairs(y, pairs, seed=0, first_tasks=firsts)
        naive = mean_over_pairs(y, pairs, seed=0)
        for k, mean in enumerate((ours, naive)):
            counts[2 * k : 2 * k + 2] += (mean.interval.low <= 0 <= mean.interval.high, mean.test.p_value <= 0.05)
    coverage, level, naive_coverage, naive_level = counts / n
    assert 0.925 <= coverage <= 0.975
    assert 0.025 <= level <= 0.075
    assert naive_coverage < 0.9
    assert naive_level > 0.1


def arms_at(first_tasks, pairs):
    """forgetting = first task + 0.8 learning + 0.3 for sam; the first task f has `pairs[f]` pairs."""
    rng = np.random.default_rng(6)
    return [
        Run(
            f"{first} > {pair}",
            {"optimiser": arm, "seed": seed},
            {},
            {
                "learning": (learning := rng.normal()),
                "forgetting": first + 0.8 * learning + 0.3 * (arm == "sam") * pair,
            },
            first_task=f"{first}",
        )
        for first in range(first_tasks)
        for pair in range(pairs[first])
        for arm in ("adamw", "sam")
        for seed in range(8)
    ]


def test_matched_learning_counts_first_tasks_once():
    """Without noise the effect of a pair is 0.3 times its number: of two pairs 0.15 on average, of one 0."""
    how = {"learning": "learning", "factor": "optimiser", "arm": "sam", "baseline": "adamw", "seed": 0}
    matched = compare_at_matched_learning(arms_at(6, (1, 1, 1, 2, 2, 2)), "forgetting", **how)
    assert matched.adjusted.value == pytest.approx(0.15 / 2)
    assert (matched.learning_difference.n_units, matched.learning_difference.n_pairs) == (6, 9)
    few = compare_at_matched_learning(arms_at(3, (2, 2, 2)), "forgetting", **how)
    assert few.refusal == "both arms learnt alike in 3 first tasks, and 6 are needed"


def test_a_study_of_two_settings_of_two_values_in_one_pair_says_that_it_cannot_tell():
    rng = np.random.default_rng(7)
    runs = [
        Run("a > b", {"seed": s, "rate": r, "arm": a}, {"x": rng.normal()}, {"forgetting": rng.normal()})
        for s in range(2) for r in range(2) for a in range(2)
    ]  # fmt: skip
    one = associate(runs, "forgetting", ["x"], primary="x", seed=0).measures["x"]
    assert one.refusal.startswith("no arrangement of these runs gives a p-value below 0.1")
