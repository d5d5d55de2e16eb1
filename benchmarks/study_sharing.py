"""Levels and coverages of a study's statistics where runs share first checkpoints and settings; see study_statistics.py."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.study.statistics import association, resampling
from llm_forgetting.study.statistics.calibration import fit_line
from llm_forgetting.study.statistics.clusters import fit_over_pairs, mean_over_pairs
from llm_forgetting.study.statistics.exchangeability import Orders, orders_within
from llm_forgetting.study.statistics.permutation import arrange, spearman_statistic
from llm_forgetting.study.statistics.rank_correlation import comparisons, spearman
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_at_matched_learning

TABLES = Path(__file__).resolve().parent / "results/study_statistics.md"
Generator = np.random.Generator

SETTINGS = (2, 2, 2)  # seeds, learning rates, arms of every task pair
CORRELATIONS = (0.0, 0.3, 0.5, 0.8)
ALIKE = {
    "checkpoint": "runs of one first checkpoint",
    "setting": "runs of a pair that share seed, rate and arm, a third less for each they do not share",
    "both": "both, half each",
}
LEVELS: dict[str, tuple[str, str]] = {
    "rho_first": ("permutation, measure made at the first checkpoint", "run by run"),
    "rho_later": ("permutation, measure made later", "run by run"),
    "partial": ("partial permutation given a common cause at the first checkpoint", "run by run"),
    "mean_6": ("sign flips, six first tasks (1/32 = 0.031 is all that six can give)", "over pairs"),
    "mean_8": ("sign flips, eight first tasks", "over pairs"),
    "matched_8": ("sign flips at matched learning, eight first tasks", "over pairs"),
}
COVERAGES: dict[str, tuple[str, str]] = {
    "rho_first": ("Spearman within pairs, measure made at the first checkpoint", "Fisher z of the runs"),
    "rho_later": ("Spearman within pairs, measure made later", "Fisher z of the runs"),
    "rho_half": ("Spearman within pairs, correlation 0.5", "Fisher z of the runs"),
    "partial": ("partial Spearman within pairs", "Fisher z of the runs"),
    "over_8": ("Spearman over all runs, eight first tasks", "Fisher z of the runs"),
    "mean_6": ("mean (an arm's effect, a change), six first tasks", "over pairs"),
    "mean_8": ("mean, eight first tasks", "over pairs"),
    "matched_8": ("effect at matched learning, eight first tasks", "over pairs"),
    "slope_8": ("slope of a calibration, eight first tasks", "over pairs"),
}


class Design:
    """First tasks of two pairs each, all settings in every pair: who shares what, and numbers that are alike accordingly."""

    def __init__(self, first_tasks: int) -> None:
        self.shape = (first_tasks, 2, *SETTINGS)
        self.first_tasks, pair, *settings = (values.ravel() for values in np.indices(self.shape))
        self.pairs = 2 * self.first_tasks + pair
        self.settings = np.stack(settings, axis=1)
        self.checkpoints = np.arange(math.prod(self.shape)).reshape(self.shape)[:, :1].repeat(2, axis=1).ravel()

    def orders(self, *, alike: bool) -> Orders:
        shared = {"first_tasks": self.first_tasks, "checkpoints": self.checkpoints, "settings": self.settings}
        return orders_within(self.pairs, seed=0, draws=999, **(shared if alike else {}))

    def draw(self, rng: Generator, kind: str, correlation: float, *, at_first: bool = False) -> np.ndarray:
        """Numbers of the runs (n,) with an effect of their pair; at_first: made at the first checkpoint."""
        size = np.array(self.shape) if not at_first else np.array([self.shape[0], 1, *SETTINGS])

        def effect(*axes: int) -> np.ndarray:
            return np.asarray(rng.normal(size=np.where(np.isin(np.arange(5), axes), size, 1)))

        parts = {"checkpoint": (1, 0), "setting": (0, 1), "both": (0.5, 0.5)}[kind]
        of_checkpoint, of_setting = (part * correlation for part in parts)
        own = 1 - of_setting - of_checkpoint
        values = math.sqrt(of_checkpoint) * effect(0, 2, 3, 4) + math.sqrt(own) * effect(*range(5))
        values = values + math.sqrt(of_setting / 3) * sum(effect(0, 1, axis) for axis in (2, 3, 4))
        return np.broadcast_to(values, self.shape).ravel()

    def ranks(self, values: np.ndarray) -> np.ndarray:
        return association._within_ranks(comparisons(values), self.pairs)


class Tally:
    """Rejections and coverages by name, ours and the naive peer's."""

    def __init__(self) -> None:
        self.p_values: dict[tuple[str, str], list[float]] = {}
        self.intervals: dict[tuple[str, str], list[tuple[float, float, float]]] = {}

    def tested(self, name: str, ours: float | None, naive: float | None) -> None:
        for who, p in (("ours", ours), ("naive", naive)):
            if p is not None:
                self.p_values.setdefault((name, who), []).append(p)

    def kept(self, name: str, value: float, ours: Interval | None, naive: Interval | None) -> None:
        for who, interval in (("ours", ours), ("naive", naive)):
            if interval is not None:
                self.intervals.setdefault((name, who), []).append((value, interval.low, interval.high))

    def level(self, name: str, who: str) -> float:
        return float(np.mean(np.array(self.p_values[name, who]) <= 0.05))

    def coverage(self, name: str, who: str, truth: float | None) -> float:
        value, low, high = np.array(self.intervals[name, who]).T
        truth = float(value.mean()) if truth is None else truth
        return float(np.mean((low <= truth) & (truth <= high)))


def shared(replications: int) -> Iterator[tuple[str, float]]:
    """Level and coverage, by how much runs are alike that share a checkpoint or settings."""
    three, six, eight = (Design(n) for n in (3, 6, 8))
    orders = three.orders(alike=True), three.orders(alike=False)
    over = resampling.whole_units(eight.first_tasks, seed=0, resamples=299)
    for kind in ALIKE:
        for correlation in CORRELATIONS:
            rng, tally = np.random.default_rng(8), Tally()
            for k in range(2 * replications):
                _within(three, orders, rng, (kind, correlation), tally)
                if k < replications:
                    _means(six, "6", rng, (kind, correlation), tally)
                    _means(eight, "8", rng, (kind, correlation), tally)
                if k < replications // 4:
                    _wide(eight, over, rng, (kind, correlation), tally)
            for what, names in (("level", LEVELS), ("coverage", COVERAGES)):
                for name, (title, naive) in names.items():
                    for who in ("ours", "naive"):
                        truth = None if name == "rho_half" else 0.6 if name == "slope_8" else 0.0
                        number = tally.level(name, who) if what == "level" else tally.coverage(name, who, truth)
                        how = f", {naive}" if who == "naive" else ""
                        yield f"{what}, {kind}, {correlation}: {title}{how}", number


def _within(
    design: Design, orders: tuple[Orders, Orders], rng: Generator, how: tuple[str, float], tally: Tally
) -> None:
    n = len(design.pairs)
    y, later = design.draw(rng, *how), design.draw(rng, *how)
    x, learnt = (design.draw(rng, *how, at_first=True) for _ in range(2))
    half = 0.5 * x + math.sqrt(0.75) * y
    for name, a, b in (("rho_first", x, y), ("rho_later", later, y), ("rho_half", x, half)):
        ours, naive = (arrange(spearman_statistic(design.ranks(a), design.ranks(b)), each) for each in orders)
        tally.tested(name, ours.test().p_value, naive.test().p_value)
        tally.kept(name, ours.observed, ours.interval(""), _fisher(ours.observed, n - len(set(design.pairs)) + 1))
    signs = [comparisons(values) for values in (x + learnt, y + learnt, learnt)]
    ours, naive = (association.partial_arrangements(*signs[:2], signs[2:], each) for each in orders)
    tally.tested("partial", ours.test().p_value, naive.test().p_value)
    tally.kept("partial", ours.observed, ours.interval(""), _fisher(ours.observed, n - len(set(design.pairs))))


def _means(design: Design, size: str, rng: Generator, how: tuple[str, float], tally: Tally) -> None:
    values = design.draw(rng, *how)
    ours = mean_over_pairs(values, design.pairs, seed=0, first_tasks=design.first_tasks)
    naive = mean_over_pairs(values, design.pairs, seed=0)
    tally.tested(f"mean_{size}", ours.test.p_value, naive.test.p_value)
    tally.kept(f"mean_{size}", ours.value, ours.interval, naive.interval)


def _wide(design: Design, over: np.ndarray, rng: Generator, how: tuple[str, float], tally: Tally) -> None:
    x, y = (design.draw(rng, *how, at_first=at_first) for at_first in (True, False))
    signs, together = [comparisons(values) for values in (x, y)], np.zeros_like(design.pairs)
    rho = float(spearman(*signs, np.ones((1, x.size)), together)[0])
    interval = resampling.correlation_interval(lambda w: spearman(*signs, w, together), over, df=7, method="")
    tally.kept("over_8", rho, interval, _fisher(rho, x.size))
    learning, noise, forecast = (design.draw(rng, *how) for _ in range(3))
    columns = (design.pairs, design.first_tasks, design.settings.tolist(), noise, learning)
    for who in ("ours", "naive"):
        runs = [
            Run(
                f"{pair}",
                {"arm": arm, "seed": 2 * seed + rate},
                {},
                {"learning": g, "forgetting": e + 0.8 * g},
                first_task=f"{first}" if who == "ours" else None,
            )
            for pair, first, (seed, rate, arm), e, g in zip(*columns, strict=True)
        ]
        units = design.first_tasks if who == "ours" else design.pairs
        slope, _ = fit_over_pairs(lambda rows: fit_line(forecast[rows], (noise + 0.6 * forecast)[rows]), units)
        arms = {"learning": "learning", "factor": "arm", "arm": 1, "baseline": 0}
        matched = compare_at_matched_learning(runs, "forgetting", **arms, seed=0)
        mine = who == "ours"
        tally.kept("slope_8", slope.value, slope.interval if mine else None, None if mine else slope.interval)
        if matched.adjusted is not None:
            p, ends = matched.test.p_value, matched.adjusted.interval
            tally.tested("matched_8", p if mine else None, None if mine else p)
            tally.kept("matched_8", matched.adjusted.value, ends if mine else None, None if mine else ends)


def _fisher(r: float, n: int) -> Interval:
    z, half_width = math.atanh(min(max(r, -0.999), 0.999)), 1.96 / math.sqrt(n - 3)
    return Interval(math.tanh(z - half_width), math.tanh(z + half_width), method="")


def write_tables(record: dict[str, float | int]) -> None:
    """Levels and coverages as markdown."""
    lines = [
        "# Levels and coverages of a study's statistics",
        "",
        "`python benchmarks/study_statistics.py --only shared`",
    ]
    lines += [
        "",
        "Shares of studies without an effect in which a test rejects at 5%, and of 95% intervals that hold the truth.",
    ]
    lines += ["The naive peer takes runs or task pairs as independent.", ""]
    for what, names in (("level", LEVELS), ("coverage", COVERAGES)):
        for kind, alike in ALIKE.items():
            head = [f"{c}: {who}" for c in CORRELATIONS for who in ("ours", "naive")]
            lines += [f"## {what.capitalize()}; alike by 0 to 0.8 are {alike}", ""]
            lines += [f"| what | naive | {' | '.join(head)} |", f"| --- | --- |{' --- |' * len(head)}"]
            for title, naive in names.values():
                keys = [f"{what}, {kind}, {c}: {title}{how}" for c in CORRELATIONS for how in ("", f", {naive}")]
                lines.append(f"| {title} | {naive} | {' | '.join(f'{record[key]:.3f}' for key in keys)} |")
            lines.append("")
    TABLES.write_text("\n".join(lines), encoding="utf-8")
