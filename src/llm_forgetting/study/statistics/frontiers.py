"""What an intervention keeps of task 1 where task 2 was learnt as far, read off the runs' own learning-forgetting frontiers.

Runs that were scored during the training on task 2 have, at every amount of learning that they passed, a forgetting. So an
arm and the baseline are compared within one task pair and one setting at the same learning, whatever either learnt in the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import ROUNDING
from llm_forgetting.forgetting.frontier import Frontier
from llm_forgetting.forgetting.scores import Measure
from llm_forgetting.study.statistics.clusters import MeanOverPairs, mean_over_pairs
from llm_forgetting.study.statistics.permutation import PermutationTest, sign_flip
from llm_forgetting.study.statistics.runs import Floats, Run, numbered, partners

SHARE = 0.5
"""Of what the baseline learnt: as far as the area under an arm's frontier goes."""
STEPS = tuple(n / 10 for n in range(11))
"""Shares of what the baseline learnt, at which a mean frontier is drawn."""


@dataclass(frozen=True, eq=False)
class RunFrontier:
    """Frontier of one run's training on the last task, and what was learnt and forgotten in the end.

    moved: the end is not on the frontier, for a method moved the model when the training was over.
    """

    path: Frontier
    end: tuple[float, float]
    moved: bool

    def matched(self, most: float) -> tuple[float, float]:
        """Learning at which this run can be compared with one that learnt `most` > 0, and what it had forgotten by then.

        The smaller of `most` and what this run learnt at the most; of a moved run, of which only the end counts, its end, and
        `most` where it learnt more: the comparison is then at less learning than this run has.
        """
        if self.moved:
            return min(self.end[0], most), self.end[1]
        learning = min(float(self.path.reached), most)
        return learning, float(self.path.forgetting_at(learning))


@dataclass(frozen=True)
class FrontierEffect:
    """An arm less the baseline in forgetting of the first task where both had learnt as much of the last one.

    Each run with its partner of the same task pair and setting; below 0 the arm keeps more.

    Args:
        arm: The arm.
        baseline: What it is compared with.
        measure: `loss` (nats) or `accuracy` (a share).
        difference: Over units; its interval speaks of other task pairs of this kind.
        runs_test: Signs flipped per run, against the hypothesis that the arm makes no difference in any of these runs: it
            speaks of these task pairs alone.
        learnt: Learning at which they are compared, as a share of the most that the baseline learnt.
        area: The same difference, of the mean forgetting on the way up to that learning; None for an arm of which only the
            end counts, and where no run learnt anything.
        unmatched: Runs of either arm without a partner or frontier, or whose baseline learnt nothing.
        adjusted: p of `runs_test`, adjusted for all arms that are compared; set by who compares them.
    """

    arm: str
    baseline: str
    measure: Measure
    difference: MeanOverPairs
    runs_test: PermutationTest
    learnt: MeanOverPairs
    area: MeanOverPairs | None
    unmatched: int
    adjusted: float | None = None

    @property
    def shown(self) -> int:
        """-1 where the arm is shown to keep more, 1 where less, else 0: in these runs, and in other pairs of this kind."""
        interval, p = self.difference.interval, self.runs_test.p_value if self.adjusted is None else self.adjusted
        if interval is None or p >= 0.05 or interval.low <= 0 <= interval.high:
            return 0
        return -1 if self.difference.value < 0 else 1


@dataclass(frozen=True, eq=False)
class FrontierStudy:
    """The runs of a study with their frontiers by measure, and how they are compared.

    Args:
        runs: With the arm among their factors.
        frontiers: Of each run, by measure; empty for a run without.
        baseline: The arm that others are compared with.
        seed: Seeds the flipping of signs.
    """

    runs: Sequence[Run]
    frontiers: Sequence[Mapping[str, RunFrontier]]
    baseline: str
    seed: int

    def compare(self, arm: str, measure: Measure) -> FrontierEffect:
        """The effect of `arm` on forgetting at matched learning.

        Raises ValueError where no run of the arm has a partner, or where two runs of an arm are of the same pair and setting.
        """
        pairs = self._pairs(arm, measure)
        if not pairs:
            raise ValueError(
                f"no run of {arm!r} with a frontier has a partner of {self.baseline!r} that learnt anything"
            )
        rows, areas = [], []
        for run, own, base in pairs:
            most = float(base.path.reached)
            learning, forgotten = own.matched(most)
            rows.append((forgotten - float(base.path.forgetting_at(learning)), learning / most))
            if not own.moved and learning > ROUNDING:
                areas.append((run, float(own.path.area(learning)) - float(base.path.area(learning))))
        differences, learnt = np.array(rows).T
        matched = [run for run, _, _ in pairs]
        total = sum(run.factors.get("arm") in (arm, self.baseline) for run in self.runs)
        return FrontierEffect(
            arm=arm,
            baseline=self.baseline,
            measure=measure,
            difference=self._mean(matched, differences),
            runs_test=sign_flip(differences, seed=self.seed),
            learnt=self._mean(matched, learnt),
            area=self._mean([run for run, _ in areas], np.array([area for _, area in areas])) if areas else None,
            unmatched=total - 2 * len(pairs),
        )

    def area(self, arm: str, measure: Measure) -> MeanOverPairs | None:
        """Area under an arm's frontier: mean forgetting on the way to `SHARE` of what the baseline learnt in the same setting.

        Over the runs that learnt so much (`excluded` counts the others); None where none did, or where only the end counts.
        """
        pairs = [pair for pair in self._pairs(arm, measure) if not pair[1].moved]
        areas = [(run, float(own.path.area(SHARE * float(base.path.reached)))) for run, own, base in pairs]
        known = [(run, area) for run, area in areas if np.isfinite(area)]
        if not known:
            return None
        return self._mean(
            [run for run, _ in known], np.array([area for _, area in known]), excluded=len(pairs) - len(known)
        )

    def mean_frontier(self, arm: str, measure: Measure) -> "MeanFrontier":
        """The mean of an arm's frontiers, for a picture."""
        pairs = self._pairs(arm, measure)
        goals = [float(base.path.reached) for _, _, base in pairs]
        lines = np.array(
            [[own.path.forgetting_at(s * goal) for s in STEPS] for (_, own, _), goal in zip(pairs, goals, strict=True)]
        )
        there = [n for n in range(len(STEPS)) if lines.size and np.isfinite(lines[:, n]).mean() >= 0.5]
        ends = [(own.end[0] / goal, own.end[1]) for (_, own, _), goal in zip(pairs, goals, strict=True)]
        return MeanFrontier(
            learning=tuple(STEPS[n] for n in there),
            forgetting=tuple(float(np.nanmean(lines[:, n])) for n in there),
            end=tuple(np.mean(ends, axis=0).tolist()) if ends else None,
            moved=any(own.moved for _, own, _ in pairs),
            runs=len(pairs),
        )

    def _mean(self, runs: Sequence[Run], values: Floats, excluded: int = 0) -> MeanOverPairs:
        pairs, _ = numbered([run.pair for run in runs])
        first_tasks, _ = numbered([run.first_task or run.pair for run in runs])
        return mean_over_pairs(values, pairs, seed=self.seed, excluded=excluded, first_tasks=first_tasks)

    def _pairs(self, arm: str, measure: Measure) -> list[tuple[Run, RunFrontier, RunFrontier]]:
        """Runs of the arm with their frontier and that of the baseline's run of the same pair and setting, if it learnt."""
        known = [measure in frontiers for frontiers in self.frontiers]
        names = sorted({name for run in self.runs for name in run.factors if name != "arm"})
        pairs = partners(self.runs, known, factor="arm", arm=arm, baseline=self.baseline, matched_on=names)
        found = [(self.runs[n], self.frontiers[n][measure], self.frontiers[base][measure]) for n, base in pairs]
        return [pair for pair in found if float(pair[2].path.reached) > ROUNDING]


@dataclass(frozen=True)
class MeanFrontier:
    """Mean forgetting of an arm's `runs` at `learning`, shares of what the baseline learnt: where at least half of them come.

    end: mean learning and forgetting in the end; moved: that is off the frontier, for a method moves the model there.
    """

    learning: tuple[float, ...]
    forgetting: tuple[float, ...]
    end: tuple[float, float] | None
    moved: bool
    runs: int
