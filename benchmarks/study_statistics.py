"""Level, power and coverage of the statistics of a study, on simulated studies with a known answer.

    python benchmarks/study_statistics.py                       the numbers of the docstrings, four minutes on one core
    python benchmarks/study_statistics.py --replications 100    a quick look
    python benchmarks/study_statistics.py --only shared_checkpoints     one part; the other numbers stay

Every number of a study is sqrt(icc) times an effect of its task pair plus sqrt(1 - icc) times one of its run, icc = 0.5, both
standard normal ("skewed": exponential of it). Written to benchmarks/results/study_statistics.json.
"""

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.study.statistics import association, resampling
from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import mean_over_pairs
from llm_forgetting.study.statistics.intraclass import intraclass_correlation
from llm_forgetting.study.statistics.permutation import orders_within, permutation_test, spearman_statistic
from llm_forgetting.study.statistics.rank_correlation import comparisons, kendall, spearman
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_at_matched_learning

RESULTS = Path(__file__).resolve().parent / "results/study_statistics.json"
ICC = 0.5
Generator = np.random.Generator
COEFFICIENTS = {"Spearman": spearman, "Kendall": kendall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--only", help="the name of one part")
    options = parser.parse_args()
    replications, only = options.replications, options.only
    warnings.filterwarnings("ignore")
    record: dict[str, float | int] = json.loads(RESULTS.read_text(encoding="utf-8")) if only else {}
    record |= {} if only else {"replications": replications}
    parts = (
        tests_within,
        intervals_within,
        intervals_over,
        partial_level,
        means,
        matched,
        calibrations,
        intraclass,
        shared_checkpoints,
    )
    for part in (part for part in parts if only in (None, part.__name__)):
        for name, value in part(replications):
            record[name] = round(float(value), 3)
            print(f"{record[name]:6.3f}  {name}", flush=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def two_columns(rng: Generator, pairs: int, runs: int, within: float, between: float = 0.0) -> tuple[np.ndarray, ...]:
    """Numbers of the task pairs (n,), and two correlated columns (n,)."""
    of_pair = rng.multivariate_normal([0, 0], [[1, between], [between, 1]], pairs)
    of_run = rng.multivariate_normal([0, 0], [[1, within], [within, 1]], pairs * runs)
    labels = np.repeat(np.arange(pairs), runs)
    values = math.sqrt(ICC) * of_pair[labels] + math.sqrt(1 - ICC) * of_run
    return labels, values[:, 0], values[:, 1]


def covered(intervals: list[Interval | None], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals if i is not None]))


def tests_within(replications: int) -> Iterator[tuple[str, float]]:
    """Shares of studies in which the permutation test within pairs, and Spearman's over all runs, reject at 5%."""
    for pairs, runs, within, between in ((4, 8, 0, 0), (4, 8, 0, 0.9), (4, 8, 0.5, 0), (6, 8, 0.5, 0), (4, 12, 0.5, 0)):
        rng, rejected = np.random.default_rng(1), np.zeros(2)
        for k in range(replications):
            labels, x, y = two_columns(rng, pairs, runs, within, between)
            a, b = (association._within_ranks(comparisons(v), labels) for v in (x, y))
            orders = orders_within(labels, seed=k, draws=499)
            rejected += [
                permutation_test(a, b, spearman_statistic(a, b), orders).p_value <= 0.05,
                stats.spearmanr(x, y).pvalue <= 0.05,
            ]
        name = f"{pairs} pairs x {runs} runs, correlation {within} within and {between} between pairs"
        yield f"rejected, within pairs: {name}", rejected[0] / replications
        yield f"rejected, naive Spearman: {name}", rejected[1] / replications


def intervals_within(replications: int) -> Iterator[tuple[str, float]]:
    for size in ((4, 8), (6, 8), (12, 8), (6, 4), (4, 3), (1, 9), (1, 30)):
        for within in (0.0, 0.5, 0.8):
            for name in COEFFICIENTS:
                yield from _correlation(name, size, (within, 0.3), within=True, replications=replications)


def intervals_over(replications: int) -> Iterator[tuple[str, float]]:
    for size in ((4, 8), (6, 8), (12, 8)):
        for correlations in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.8, 0.5)):
            for name in COEFFICIENTS:
                yield from _correlation(name, size, correlations, within=False, replications=replications)


def _correlation(
    name: str, size: tuple[int, int], correlations: tuple[float, float], *, within: bool, replications: int
) -> Iterator[tuple[str, float]]:
    """Coverage of the mean of the coefficient over studies of this size, and the share of studies with an interval."""
    rng, intervals, values = np.random.default_rng(2), [], []
    for k in range(4000):
        labels, x, y = two_columns(rng, *size, *correlations)
        blocks = labels if within else np.zeros_like(labels)
        signs = comparisons(x), comparisons(y)

        def coefficients(weights: np.ndarray, signs: tuple = signs, blocks: np.ndarray = blocks) -> np.ndarray:
            return COEFFICIENTS[name](*signs, weights, blocks)

        values.append(float(coefficients(np.ones((1, x.size)))[0]))
        if k < replications // 2:
            draw = resampling.runs_within_pairs if within else resampling.whole_pairs
            weights = draw(labels, seed=k, resamples=299)
            df = x.size - size[0] - 1 if within else size[0] - 1
            intervals.append(resampling.correlation_interval(coefficients, weights, df=df, method=""))
    label = (
        f"{name} {'within' if within else 'over'} pairs: {size[0]} pairs x {size[1]} runs, correlations {correlations}"
    )
    yield f"coverage, {label}", covered(intervals, float(np.mean(values)))
    yield f"answered, {label}", np.mean([interval is not None for interval in intervals])


def partial_level(replications: int) -> Iterator[tuple[str, float]]:
    """Both x and y follow a third column; the test given it must reject in 5%, that without it may reject more."""
    rng, rejected, intervals = np.random.default_rng(3), np.zeros(2), []
    for k in range(replications // 4):
        labels, z, _ = two_columns(rng, 6, 8, 0.0)
        x, y = (z + rng.normal(size=z.size) for _ in range(2))
        runs = [Run(f"{p}", {}, {"x": a, "z": c}, {"y": b}) for p, a, b, c in zip(labels, x, y, z, strict=True)]
        found = associate(runs, "y", ["x"], primary="x", given=[["z"]], seed=k).measures["x"]
        given = found.partial[0].within_pairs
        rejected += [given.test.p_value <= 0.05, found.p_value <= 0.05]
        intervals.append(given.interval)
    yield "rejected, partial within pairs given the common cause: 6 pairs x 8 runs", rejected[0] / (replications // 4)
    yield "rejected, not given the common cause: 6 pairs x 8 runs", rejected[1] / (replications // 4)
    yield "coverage of 0, partial within pairs given the common cause: 6 pairs x 8 runs", covered(intervals, 0.0)


def means(replications: int) -> Iterator[tuple[str, float]]:
    for skewed in (False, True):
        for pairs in (6, 8, 12):
            rng, intervals, rejected = np.random.default_rng(4), [], 0
            truth = math.exp(0.5) if skewed else 0.0
            for k in range(replications):
                labels, x, _ = two_columns(rng, pairs, 8, 0.0)
                mean = mean_over_pairs(np.exp(x) if skewed else x, labels, seed=k)
                intervals.append(mean.interval)
                rejected += mean_over_pairs(x, labels, seed=k).test.p_value <= 0.05
            name = f"{pairs} pairs x 8 runs, {'skewed' if skewed else 'normal'}"
            yield f"coverage, mean over pairs: {name}", covered(intervals, truth)
            if not skewed:
                yield f"rejected, sign-flip over pairs: {name}", rejected / replications


def matched(replications: int) -> Iterator[tuple[str, float]]:
    """The arm learns 0.5 less; forgetting is 0.8 learning + effect + noise. Without adjustment: effect - 0.4."""
    for pairs in (6, 12):
        for effect in (0.0, 0.5):
            rng, intervals, rejected = np.random.default_rng(5), [], 0
            for k in range(replications // 2):
                runs = trade_off_runs(rng, pairs, effect)
                found = compare_at_matched_learning(
                    runs, "forgetting", learning="learning", factor="optimiser", arm="sam", baseline="adamw", seed=k
                )
                if found.adjusted is not None:
                    intervals.append(found.adjusted.interval)
                    rejected += found.test.p_value <= 0.05
            name = f"{pairs} pairs x 2 arms x 8 runs, effect {effect}"
            yield f"coverage, effect at matched learning: {name}", covered(intervals, effect)
            yield f"rejected, effect at matched learning: {name}", rejected / len(intervals)
            yield f"answered, effect at matched learning: {name}", len(intervals) / (replications // 2)


def trade_off_runs(rng: Generator, pairs: int, effect: float) -> list[Run]:
    runs = []
    for pair in range(pairs):
        of_pair, slope = rng.normal(size=2), 0.8
        for arm in ("adamw", "sam"):
            of_arm = 0.3 * rng.normal()
            for seed in range(8):
                learning = of_pair[0] + rng.normal() - 0.5 * (arm == "sam")
                forgetting = of_pair[1] + slope * learning + of_arm + effect * (arm == "sam") + 0.5 * rng.normal()
                factors = {"optimiser": arm, "seed": seed}
                runs.append(Run(f"{pair}", factors, {}, {"forgetting": forgetting, "learning": learning}))
    return runs


def calibrations(replications: int) -> Iterator[tuple[str, float]]:
    for pairs in (6, 12):
        rng, found = np.random.default_rng(6), []
        for k in range(replications // 4):
            labels, f, noise = two_columns(rng, pairs, 8, 0.0)
            columns = zip(labels, f, 0.2 + 0.6 * f + noise, strict=True)
            runs = [Run(f"{p}", {}, {"forecast": a}, {"forgetting": b}) for p, a, b in columns]
            found.append(calibrate(runs, "forecast", "forgetting", seed=k))
        yield f"coverage, slope of calibration: {pairs} pairs x 8 runs", covered([c.slope.interval for c in found], 0.6)
        intercepts = [c.intercept.interval for c in found]
        yield f"coverage, intercept of calibration: {pairs} pairs x 8 runs", covered(intercepts, 0.2)


def intraclass(replications: int) -> Iterator[tuple[str, float]]:
    for pairs, runs in ((4, 8), (6, 8), (12, 8)):
        rng, intervals = np.random.default_rng(7), []
        for _ in range(replications):
            labels, x, _ = two_columns(rng, pairs, runs, 0.0)
            study = [Run(f"{p}", {}, {"x": a}) for p, a in zip(labels, x, strict=True)]
            intervals.append(intraclass_correlation(study, "x").interval)
        yield f"coverage, intra-class correlation: {pairs} pairs x {runs} runs", covered(intervals, ICC)


def shared_checkpoints(replications: int) -> Iterator[tuple[str, float]]:
    """Three (for means: six) first tasks of two pairs and eight checkpoints, which both pairs share.

    The outcomes of two runs of one checkpoint correlate; no measure has an effect. A measure is made at the checkpoint, or
    later, where it is as alike as the outcomes are. "by run": permuted as if runs did not share their checkpoints.
    """
    pairs, n = np.repeat(np.arange(6), 8), 2 * replications
    points = np.tile(np.arange(8), 6) + 8 * (pairs // 2)
    designs = {"": orders_within(pairs, seed=0, draws=999, checkpoints=points)}
    designs[", by run"] = orders_within(pairs, seed=0, draws=999)
    within = resampling.runs_within_pairs(pairs, seed=0, resamples=299, checkpoints=points)
    over = resampling.whole_pairs(np.repeat(np.arange(6), 16), seed=0, resamples=299)
    for alike in (0.0, 0.3, 0.5, 0.8):
        rng, rejected, intervals = np.random.default_rng(8), dict[str, int](), dict[str, list[Interval | None]]()

        def tested(name: str, p: float, rejected: dict[str, int] = rejected) -> None:
            rejected[name] = rejected.get(name, 0) + (p <= 0.05)

        def kept(name: str, interval: Interval | None, intervals: dict = intervals) -> None:
            intervals.setdefault(name, []).append(interval)

        for k in range(n):
            y, later, z = (_alike(rng, 3, alike) for _ in range(3))
            x, learnt = (rng.normal(size=24)[points] for _ in range(2))
            ranks = [association._within_ranks(comparisons(v), pairs) for v in (x, y, later)]
            for how, orders in designs.items():
                for made, a in (("first checkpoint", ranks[0]), ("later", ranks[2])):
                    test = permutation_test(a, ranks[1], spearman_statistic(a, ranks[1]), orders)
                    tested(f"permutation, measure made at {made}{how}", test.p_value)
            signs = [comparisons(v) for v in (x + learnt, z + learnt, learnt)]
            if k < n // 4:
                test = association._partial_test(*signs[:2], signs[2:], designs[""])
                tested("partial permutation given a common cause of the checkpoint", test.p_value if test else 1.0)
                signs = [comparisons(v) for v in (x, y)]
                kept("Spearman within pairs", _interval(signs, pairs, within, 20))
            wide, first = _alike(rng, 6, alike), np.repeat(np.arange(6), 16)
            checkpoint = rng.normal(size=48)[np.tile(np.arange(8), 12) + 8 * (np.repeat(np.arange(12), 8) // 2)]
            if k < n // 4:
                signs = [comparisons(v) for v in (checkpoint, wide)]
                kept("Spearman over all runs, six first tasks", _interval(signs, np.zeros(96, dtype=int), over, 5))
            for name, values, labels, firsts in (
                ("mean over first tasks, made at the first checkpoint", checkpoint, np.repeat(np.arange(12), 8), first),
                ("mean over pairs, made later, three first tasks", y, pairs, None),
                ("mean over pairs, made later, six first tasks", wide, np.repeat(np.arange(12), 8), None),
                ("mean over first tasks, made later, six first tasks", wide, np.repeat(np.arange(12), 8), first),
            ):
                mean = mean_over_pairs(values, labels, seed=0, first_tasks=firsts)
                tested(f"sign-flip, {name}", mean.test.p_value if mean.test else 1.0)
                kept(name, mean.interval)
        for name, count in rejected.items():
            yield f"rejected, shared checkpoints alike by {alike}: {name}", count / (n // 4 if "partial" in name else n)
        for name, found in intervals.items():
            yield f"coverage, shared checkpoints alike by {alike}: {name}", covered(found, 0.0)


def _alike(rng: Generator, first_tasks: int, correlation: float) -> np.ndarray:
    """Numbers of runs by first task, pair and checkpoint, flattened, alike for the runs of one checkpoint."""
    common, own = rng.normal(size=(first_tasks, 1, 8)), rng.normal(size=(first_tasks, 2, 8))
    return np.asarray(math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own).ravel()


def _interval(signs: list[np.ndarray], blocks: np.ndarray, weights: np.ndarray, df: int) -> Interval | None:
    return resampling.correlation_interval(lambda w: spearman(*signs, w, blocks), weights, df=df, method="")


if __name__ == "__main__":
    main()
