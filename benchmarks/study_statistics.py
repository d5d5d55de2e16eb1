"""Level, power and coverage of the statistics of a study, on simulated studies with a known answer.

    python benchmarks/study_statistics.py                       the numbers of the docstrings, four minutes on one core
    python benchmarks/study_statistics.py --replications 100    a quick look
    python benchmarks/study_statistics.py --only shared         one part; the other numbers stay

Every number of a study is sqrt(icc) times an effect of its task pair plus sqrt(1 - icc) times one of its run, icc = 0.5, both
standard normal ("skewed": exponential of it). Written to benchmarks/results/study_statistics.json; the part `shared` also as
tables, study_statistics.md: levels and coverages where runs share first checkpoints and settings, beside a naive peer's.
"""

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import study_sharing
from scipy import stats

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.study.statistics import association, resampling
from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import mean_over_pairs
from llm_forgetting.study.statistics.exchangeability import orders_within
from llm_forgetting.study.statistics.intraclass import intraclass_correlation
from llm_forgetting.study.statistics.permutation import arrange, kendall_statistic, spearman_statistic
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
        study_sharing.shared,
    )
    for part in (part for part in parts if only in (None, part.__name__)):
        for name, value in part(replications):
            record[name] = round(float(value), 3)
            print(f"{record[name]:6.3f}  {name}", flush=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    study_sharing.write_tables(record)


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
                arrange(spearman_statistic(a, b), orders).test().p_value <= 0.05,
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
        if k < replications // 2 and within:
            ranks = [association._within_ranks(each, labels) for each in signs]
            statistic = spearman_statistic(*ranks) if name == "Spearman" else kendall_statistic(*signs, labels)
            intervals.append(arrange(statistic, orders_within(labels, seed=k, draws=499)).interval(""))
        elif k < replications // 2:
            weights = resampling.whole_units(labels, seed=k, resamples=299)
            intervals.append(resampling.correlation_interval(coefficients, weights, df=size[0] - 1, method=""))
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


if __name__ == "__main__":
    main()
