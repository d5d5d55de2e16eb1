"""Analysis of a study: the statistics of its records, and the conclusions in plain words. No torch."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llm_forgetting.files import Json
from llm_forgetting.study.matched_learning import across_arms, matched_learning
from llm_forgetting.study.measures import MADE_AT_FIRST, NATS, title
from llm_forgetting.study.plan import Analysis
from llm_forgetting.study.records import CellRecord
from llm_forgetting.study.statistics.association import Association, Associations, associate
from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import change_over_runs
from llm_forgetting.study.statistics.conclusions import (
    Larger,
    describe_across,
    describe_arm,
    describe_calibration,
    describe_change,
    describe_flatness,
    describe_prediction,
    describe_relation,
)
from llm_forgetting.study.statistics.intraclass import intraclass_correlation
from llm_forgetting.study.statistics.prediction import predict_unseen_pairs
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import (
    ArmEffect,
    MatchedEffect,
    compare_arms,
    compare_at_matched_learning,
)

Content = dict[str, Json]
Result = TypeVar("Result")
RETENTION = "retention_loss"
OTHERS = (RETENTION, "observed")


def runs_of(records: Sequence[CellRecord]) -> list[Run]:
    """The records as runs, the arm among the factors."""
    checkpoints = first_checkpoints(records)
    return [
        Run(
            pair=record.pair,
            factors={**record.factors, "arm": record.arm},
            measures=record.measures,
            outcomes=record.outcomes,
            stderrs=record.stderrs,
            first_task=_first_task(record),
            first_checkpoint=checkpoint,
        )
        for record, checkpoint in zip(records, checkpoints, strict=True)
    ]


def first_checkpoints(records: Sequence[CellRecord]) -> list[str]:
    """A name for every record's first checkpoint, equal where it is shared.

    Runs share it that agree in first task, factors and arm, and those of one first task in which all numbers made there are
    equal (arms that act later).
    """
    names: dict[str, str] = {}
    by_numbers: dict[str, str] = {}
    for record in records:
        place = _place(record)
        if place not in names:
            numbers = {**record.measures, **record.outcomes}
            made = [numbers.get(name) for name in sorted(MADE_AT_FIRST)]
            known = any(number is not None for number in made)
            names[place] = by_numbers.setdefault(f"{_first_task(record)} {made}", place) if known else place
    return [names[_place(record)] for record in records]


def _place(record: CellRecord) -> str:
    return f"{_first_task(record)} {sorted(record.factors.items(), key=str)} {record.arm}"


def _first_task(record: CellRecord) -> str:
    return record.tasks[0] if record.tasks else record.pair


def analyse(records: Sequence[CellRecord], analysis: Analysis, arms: Sequence[str]) -> Content:
    """Content of study.json: all that the report shows; `answers` are the conclusions, by question."""
    runs = runs_of(records)
    free = [run for run in runs if run.factors["arm"] not in analysis.controls]
    present = [name for name in analysis.measures if any(run.measures.get(name) is not None for run in free)]
    content: Content = {
        "runs": len(runs),
        "pairs": len({run.pair for run in runs}),
        "arms": {arm: sum(run.factors["arm"] == arm for run in runs) for arm in arms},
        "titles": {name: title(name) for name in _shown(present, analysis)},
        "units": {name: "nats" for name in _shown(present, analysis) if name in NATS},
        "absent": [name for name in analysis.measures if name not in present],
        "answers": {},
    }
    if (
        analysis.primary not in MADE_AT_FIRST
    ):  # it is known after the last task, and so no property of the landscape before
        name = title(analysis.primary)
        content["questions"] = {
            "flatness": f"Does {name} go with forgetting?",
            "relation": f"What is the relation between {name} and retention?",
            "prediction": f"Does {name} predict forgetting of unseen task pairs?",
        }
    if analysis.primary not in present:
        content["answers"]["flatness"] = (
            f"No conclusion: none of {len(free)} runs has {title(analysis.primary)}, the primary measure."
        )
        _put_arms(content, records, arms, present, analysis)
        content["points"] = [_point(record, analysis, present) for record in records]
        return content
    given = [names for names in analysis.given if all(_known(free, name) for name in names)]
    settings: Any = {"primary": analysis.primary, "given": given, "seed": analysis.seed}
    forgetting = associate(free, analysis.outcome, present, **settings)
    retention = associate(free, RETENTION, [analysis.primary], **settings)
    answers = content["answers"]
    primary = forgetting.measures[analysis.primary]
    learnt = tuple(each for each in primary.partial if set(each.given) <= MADE_AT_FIRST)
    headline = _named(dataclasses.replace(primary, partial=learnt))
    larger: Larger | None = "sharper" if analysis.primary in MADE_AT_FIRST else None
    answers["flatness"] = describe_flatness(headline, larger=larger, outcome_is="forgetting")
    content["associations"] = _table(forgetting)
    content["intraclass"] = dataclasses.asdict(intraclass_correlation(free, analysis.outcome))
    change = _if_possible(lambda: change_over_runs(free, "mean_rise", "mean_rise_after", seed=analysis.seed))
    if change is not None:
        content["change"] = dataclasses.asdict(change)
        answers["change"] = describe_change(change, name=f"the {title('mean_rise')} (task 1's loss)")
    answers["relation"] = describe_relation(_named(retention.measures[analysis.primary]))
    _put_arms(content, records, arms, present, analysis)
    content["calibration"] = _calibration(free, analysis)
    if content["calibration"] is not None:
        answers["forecast"] = content["calibration"].pop("said")
    content["predictions"] = [_prediction(free, name, analysis) for name in present]
    answers["prediction"] = next(
        (prediction["said"] for prediction in content["predictions"] if prediction["measure"] == analysis.primary), ""
    )
    for prediction in content["predictions"]:
        del prediction["said"]
    content["points"] = [_point(record, analysis, present) for record in records]
    return content


def _put_arms(
    content: Content, records: Sequence[CellRecord], arms: Sequence[str], present: Sequence[str], analysis: Analysis
) -> None:
    """What arms change, in the end and at matched learning: of any study with a baseline, whatever was measured."""
    answers, runs = content["answers"], runs_of(records)
    content["effects"] = _effects(runs, analysis, arms)
    if frontiers := matched_learning(records, runs, arms, analysis.baseline or arms[0], seed=analysis.seed):
        content["frontiers"] = frontiers
        answers["methods"] = _at_matched_learning(runs, frontiers, present, analysis)
    answers["arms"] = [
        effect["said"]
        for effect in content["effects"]
        if effect["outcome"] == analysis.outcome or (effect["outcome"] == analysis.primary and not effect["control"])
    ]


def _at_matched_learning(
    runs: Sequence[Run], frontiers: Sequence[Content], present: Sequence[str], analysis: Analysis
) -> list[str]:
    """What is said of losses; the correlations across arms are put into `frontiers`, whose sentences are taken out."""
    sentences: list[str] = []
    for found in frontiers:
        said = found.pop("said")
        across = across_arms(runs, found, present, analysis.primary, seed=analysis.seed)
        found["across"] = None if across is None else _table(across)
        if found["measure"] == "loss":
            sentences += said
            sentences += [] if across is None else [describe_across(_titled(across.measures[analysis.primary]))]
    return sentences


def _shown(present: Sequence[str], analysis: Analysis) -> list[str]:
    given = itertools.chain(*analysis.given)
    return sorted({*present, *given, *OTHERS, analysis.outcome, analysis.forecast, analysis.learning})


def _known(runs: Sequence[Run], name: str) -> bool:
    return any(run.measures.get(name, run.outcomes.get(name)) is not None for run in runs)


def _named(association: Association) -> Association:
    """The association under its titles."""
    partial = (dataclasses.replace(each, given=tuple(map(title, each.given))) for each in association.partial)
    return dataclasses.replace(
        association,
        measure=_with_article(association.measure),
        outcome=title(association.outcome),
        partial=tuple(partial),
    )


def _titled(association: Association) -> Association:
    """An association whose outcome is no number of the records, under the measure's title."""
    return dataclasses.replace(association, measure=_with_article(association.measure))


def _with_article(name: str) -> str:
    """A title within a sentence: the largest eigenvalue, |D|."""
    shown = title(name)
    return f"the {shown}" if shown[0].islower() and shown.partition(" ")[0].isalpha() else shown


def _table(associations: Associations) -> Content:
    return {
        "outcome": associations.outcome,
        "primary": associations.primary,
        "tests": associations.tests,
        "measures": {name: {**dataclasses.asdict(a), "shown": a.shown} for name, a in associations.measures.items()},
    }


def _effects(runs: Sequence[Run], analysis: Analysis, arms: Sequence[str]) -> list[Content]:
    """Every other arm against the baseline: what it does to the outcome, to the primary measure and to learning.

    The primary measure is compared by its ratio where it is positive in every run: sharpness differs in scale.
    """
    matched_on = sorted({name for run in runs for name in run.factors if name != "arm"})
    effects = []
    for arm in (arm for arm in arms if arm != analysis.baseline):
        settings: Any = {"factor": "arm", "arm": arm, "baseline": analysis.baseline, "seed": analysis.seed}
        for name in (analysis.outcome, analysis.primary, analysis.learning):

            def compare(name: str = name, settings: Any = settings) -> ArmEffect:
                ratio = name == analysis.primary and all(run.number(name) > 0 for run in runs if _known([run], name))
                return compare_arms(runs, name, matched_on=matched_on, ratio=ratio, **settings)

            def compare_matched(name: str = name, settings: Any = settings) -> MatchedEffect:
                return compare_at_matched_learning(runs, name, learning=analysis.learning, **settings)

            effect = _if_possible(compare)
            if effect is not None:
                matched = _if_possible(compare_matched) if name == analysis.outcome else None
                effects.append(_effect(effect, matched, control=arm in analysis.controls))
    return effects


def _effect(effect: ArmEffect, matched: MatchedEffect | None, *, control: bool) -> Content:
    titled = None if matched is None else dataclasses.replace(matched, learning=title(matched.learning))
    return {
        **dataclasses.asdict(effect),
        "control": control,
        "matched": None if matched is None else dataclasses.asdict(matched),
        "said": describe_arm(dataclasses.replace(effect, outcome=title(effect.outcome)), titled),
    }


def _calibration(runs: Sequence[Run], analysis: Analysis) -> Content | None:
    """The forecast against what happened to the same items."""
    calibration = _if_possible(lambda: calibrate(runs, analysis.forecast, "observed", seed=analysis.seed))
    if calibration is None:
        return None
    forecast, outcome = _with_article(calibration.forecast), title(calibration.outcome)
    titled = dataclasses.replace(calibration, forecast=forecast, outcome=outcome)
    return {**dataclasses.asdict(calibration), "said": describe_calibration(titled)}


def _prediction(runs: Sequence[Run], name: str, analysis: Analysis) -> Content:
    baseline = "update_norm" if name != "update_norm" and _known(runs, "update_norm") else None
    prediction = predict_unseen_pairs(runs, analysis.outcome, name, baseline=baseline, seed=analysis.seed)
    titled = dataclasses.replace(
        prediction,
        measure=_with_article(name),
        outcome=title(prediction.outcome),
        baseline=None if baseline is None else title(baseline),
    )
    return {**dataclasses.asdict(prediction), "said": describe_prediction(titled)}


def _if_possible(compute: Callable[[], Result]) -> Result | None:
    """The result of `compute`, or None where these runs do not have the numbers for it."""
    try:
        return compute()
    except ValueError:
        return None


def _point(record: CellRecord, analysis: Analysis, present: Sequence[str]) -> Content:
    """What the figures draw of one run."""
    names = {*present, analysis.outcome, analysis.learning, analysis.forecast, "observed", RETENTION}
    numbers: Mapping[str, float | None] = {**record.measures, **record.outcomes}
    return {
        "cell": record.cell,
        "pair": record.pair,
        "arm": record.arm,
        "factors": record.factors,
        "numbers": {name: numbers.get(name) for name in sorted(names)},
    }
