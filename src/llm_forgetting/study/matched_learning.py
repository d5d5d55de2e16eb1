"""Arms of a study at matched learning: from the records' frontiers to what the report shows and says. No torch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llm_forgetting.files import Json
from llm_forgetting.forgetting.frontier import Frontier
from llm_forgetting.forgetting.multiplicity import holm
from llm_forgetting.forgetting.scores import MEASURES, Measure
from llm_forgetting.study.measures import MADE_AT_FIRST, FrontierRecord
from llm_forgetting.study.records import CellRecord
from llm_forgetting.study.statistics.association import Associations, associate
from llm_forgetting.study.statistics.conclusions import describe_frontiers
from llm_forgetting.study.statistics.frontiers import FrontierEffect, FrontierStudy, RunFrontier
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_arms

Content = dict[str, Json]
ARMS, FORGETTING = "arms", "forgetting at matched learning"


def matched_learning(
    records: Sequence[CellRecord], runs: Sequence[Run], arms: Sequence[str], baseline: str, *, seed: int
) -> list[Content]:
    """Per measure every arm against the baseline at matched learning, areas and mean frontiers; empty without frontiers.

    p-values of all arms of a measure are adjusted together (Holm).
    """
    frontiers = [{name: _frontier(own) for name, own in (record.frontiers or {}).items()} for record in records]
    study, found = FrontierStudy(runs, frontiers, baseline, seed), []
    for measure in MEASURES:
        effects = _effects(study, measure, [arm for arm in arms if arm != baseline])
        if effects:
            curves = {arm: study.mean_frontier(arm, measure) for arm in arms}
            areas = {arm: study.area(arm, measure) for arm in arms}
            content: Content = {
                "measure": measure,
                "baseline": baseline,
                "effects": [{**dataclasses.asdict(effect), "shown": effect.shown} for effect in effects],
                "areas": {arm: None if area is None else dataclasses.asdict(area) for arm, area in areas.items()},
                "curves": {arm: dataclasses.asdict(curve) for arm, curve in curves.items()},
                "said": [*describe_frontiers(effects), *_unlearnt(baseline, curves[baseline].end)],
            }
            found.append(content)
    return found


def _unlearnt(baseline: str, end: tuple[float, float] | None) -> list[str]:
    """What must be known of a comparison on items that the baseline did not learn in the end."""
    if end is None or end[0] > 0:
        return []
    return [
        f"With {baseline} the last task's items that were scored on the way were in the end no better known than before its "
        "training, so arms are compared at an early point of it; evaluation.during_split train scores trained items."
    ]


def _frontier(record: FrontierRecord) -> RunFrontier:
    path = Frontier(np.array(record.learning), np.array(record.forgetting))
    end = (record.learning[-1], record.forgetting[-1]) if record.end is None else record.end
    return RunFrontier(path, end, record.end is not None)


def _effects(study: FrontierStudy, measure: Measure, arms: Sequence[str]) -> list[FrontierEffect]:
    """Of the arms that have runs to be compared."""
    effects = []
    for arm in arms:
        try:
            effects.append(study.compare(arm, measure))
        except ValueError:
            continue
    adjusted = holm({effect.arm: effect.runs_test.p_value for effect in effects})
    return [dataclasses.replace(effect, adjusted=adjusted[effect.arm]) for effect in effects]


def across_arms(
    runs: Sequence[Run], found: Content, measures: Sequence[str], primary: str, *, seed: int
) -> Associations | None:
    """Whether arms that change a measure more change forgetting at matched learning more: rank correlations over arms.

    A point is an arm: the mean over task pairs of its difference from the baseline. Runs are no points here, for an arm is the
    same method in all pairs. Of measures that arms can change after the first checkpoint; None where there are none.

    Args:
        runs: All of them.
        found: What `matched_learning` found in one measure of scores.
        measures: Of the analysis.
        primary: The measure that was named beforehand.
        seed: Seeds permutations.
    """
    later = [name for name in measures if name not in MADE_AT_FIRST]
    matched_on = sorted({name for run in runs for name in run.factors if name != "arm"})
    points = []
    for effect in found["effects"]:
        changes: dict[str, float | None] = {}
        for name in later:
            try:
                settings = {"factor": "arm", "arm": effect["arm"], "baseline": found["baseline"], "seed": seed}
                changes[name] = compare_arms(runs, name, matched_on=matched_on, **settings).difference.value
            except ValueError:
                continue
        points.append(Run(ARMS, measures=changes, outcomes={FORGETTING: effect["difference"]["value"]}))
    known = [name for name in later if any(name in point.measures for point in points)]
    if primary not in known:
        return None
    return associate(points, FORGETTING, known, primary=primary, seed=seed)
