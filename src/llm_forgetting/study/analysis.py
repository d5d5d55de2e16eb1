"""What a study says: the statistics of its records, and the answers to its questions in plain words. No torch."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_forgetting.study.measures import NATS, title
from llm_forgetting.study.plan import Analysis
from llm_forgetting.study.statistics.association import Associations, associate
from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import change_over_runs
from llm_forgetting.study.statistics.intraclass import intraclass_correlation
from llm_forgetting.study.statistics.prediction import predict_unseen_pairs
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.sentences import (
    said_of_arm,
    said_of_calibration,
    said_of_change,
    said_of_flatness,
    said_of_prediction,
    said_of_relation,
)
from llm_forgetting.study.statistics.trade_off import compare_arms, compare_at_matched_learning

Record = Mapping[str, Any]
Result = dict[str, Any]
RETENTION = "retention_loss"
OTHERS = (RETENTION, "observed")


def runs_of(records: Sequence[Record]) -> list[Run]:
    """The records as runs, the arm among the factors."""
    return [
        Run(
            pair=record["pair"],
            factors={**record["factors"], "arm": record["arm"]},
            measures=_numbers(record["measures"]),
            outcomes=_numbers(record["outcomes"]),
            stderrs=_numbers(record["stderrs"]),
        )
        for record in records
    ]


def _numbers(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in found.items()}


def analyse(records: Sequence[Record], analysis: Analysis, arms: Sequence[str]) -> Result:
    """All that the report shows, as plain JSON values; `answers` are the sentences, by question."""
    runs = runs_of(records)
    free = [run for run in runs if run.factors["arm"] not in analysis.controls]
    present = [name for name in analysis.measures if any(run.measures.get(name) is not None for run in free)]
    content: Result = {
        "runs": len(runs),
        "pairs": len({run.pair for run in runs}),
        "arms": {arm: sum(run.factors["arm"] == arm for run in runs) for arm in arms},
        "titles": {name: title(name) for name in _shown(present, analysis)},
        "units": {name: "nats" for name in _shown(present, analysis) if name in NATS},
        "absent": [name for name in analysis.measures if name not in present],
        "answers": {},
    }
    if analysis.primary not in present:
        content["answers"]["flatness"] = (
            f"No conclusion: none of {len(free)} runs has {title(analysis.primary)}, the primary measure."
        )
        return content
    given = [names for names in analysis.given if all(_known(free, name) for name in names)]
    settings: Any = {"primary": analysis.primary, "given": given, "seed": analysis.seed}
    forgetting = associate(free, analysis.outcome, present, **settings)
    retention = associate(free, RETENTION, [analysis.primary], **settings)
    answers = content["answers"]
    primary = forgetting.measures[analysis.primary]
    answers["flatness"] = said_of_flatness(_named(primary), larger="sharper", outcome_is="forgetting")
    content["associations"] = _table(forgetting)
    content["intraclass"] = dataclasses.asdict(intraclass_correlation(free, analysis.outcome))
    change = _if_possible(lambda: change_over_runs(free, "mean_rise", "mean_rise_after", seed=analysis.seed))
    if change is not None:
        content["change"] = dataclasses.asdict(change)
        answers["change"] = said_of_change(change, name=f"the {title('mean_rise')} (task 1's loss)")
    answers["relation"] = said_of_relation(_named(retention.measures[analysis.primary]))
    content["effects"] = _effects(runs, analysis, arms)
    answers["arms"] = [found["said"] for found in content["effects"] if found["outcome"] == analysis.outcome]
    content["calibration"] = _calibration(free, analysis)
    if content["calibration"] is not None:
        answers["forecast"] = content["calibration"].pop("said")
    content["predictions"] = [_prediction(free, name, analysis) for name in present]
    answers["prediction"] = next(
        (found.pop("said") for found in content["predictions"] if found["measure"] == analysis.primary), ""
    )
    for found in content["predictions"]:
        found.pop("said", None)
    content["points"] = [_point(record, analysis, present) for record in records]
    return content


def _shown(present: Sequence[str], analysis: Analysis) -> list[str]:
    given = itertools.chain(*analysis.given)
    return sorted({*present, *given, *OTHERS, analysis.outcome, analysis.forecast, analysis.learning})


def _known(runs: Sequence[Run], name: str) -> bool:
    return any(run.measures.get(name, run.outcomes.get(name)) is not None for run in runs)


def _named(found: Any) -> Any:
    """An association under its titles."""
    return dataclasses.replace(
        found,
        measure=_with_article(found.measure),
        outcome=title(found.outcome),
        partial=tuple(
            dataclasses.replace(one, given=tuple(title(name) for name in one.given)) for one in found.partial
        ),
    )


def _with_article(name: str) -> str:
    """A title within a sentence: the largest eigenvalue, |D|."""
    shown = title(name)
    return f"the {shown}" if shown[0].islower() and shown.partition(" ")[0].isalpha() else shown


def _table(found: Associations) -> Result:
    return {
        "outcome": found.outcome,
        "primary": found.primary,
        "tests": found.tests,
        "measures": {name: {**dataclasses.asdict(a), "shown": a.shown} for name, a in found.measures.items()},
    }


def _effects(runs: Sequence[Run], analysis: Analysis, arms: Sequence[str]) -> list[Result]:
    """Every other arm against the baseline: what it does to the outcome, to the primary measure and to learning.

    The primary measure is compared by its ratio where it is positive in every run: sharpness differs in scale.
    """
    matched_on = sorted({name for run in runs for name in run.factors if name != "arm"})
    found = []
    for arm in (arm for arm in arms if arm != analysis.baseline):
        settings: Any = {"factor": "arm", "arm": arm, "baseline": analysis.baseline, "seed": analysis.seed}
        for name in (analysis.outcome, analysis.primary, analysis.learning):

            def compare(name: str = name, settings: Any = settings) -> Any:
                ratio = name == analysis.primary and all(run.number(name) > 0 for run in runs if _known([run], name))
                return compare_arms(runs, name, matched_on=matched_on, ratio=ratio, **settings)

            def compare_matched(name: str = name, settings: Any = settings) -> Any:
                return compare_at_matched_learning(runs, name, learning=analysis.learning, **settings)

            effect = _if_possible(compare)
            if effect is None:
                continue
            matched = _if_possible(compare_matched) if name == analysis.outcome else None
            told = dataclasses.replace(effect, outcome=title(name))
            alike = None if matched is None else dataclasses.replace(matched, learning=title(matched.learning))
            found.append(
                {
                    **dataclasses.asdict(effect),
                    "control": arm in analysis.controls,
                    "matched": None if matched is None else dataclasses.asdict(matched),
                    "said": said_of_arm(told, alike),
                }
            )
    return found


def _calibration(runs: Sequence[Run], analysis: Analysis) -> Result | None:
    """The forecast against what happened to the same items."""
    found = _if_possible(lambda: calibrate(runs, analysis.forecast, "observed", seed=analysis.seed))
    if found is None:
        return None
    told = dataclasses.replace(found, forecast=_with_article(found.forecast), outcome=title(found.outcome))
    return {**dataclasses.asdict(found), "said": said_of_calibration(told)}


def _prediction(runs: Sequence[Run], name: str, analysis: Analysis) -> Result:
    baseline = "update_norm" if name != "update_norm" and _known(runs, "update_norm") else None
    found = predict_unseen_pairs(runs, analysis.outcome, name, baseline=baseline, seed=analysis.seed)
    told = dataclasses.replace(
        found,
        measure=_with_article(name),
        outcome=title(found.outcome),
        baseline=None if baseline is None else title(baseline),
    )
    return {**dataclasses.asdict(found), "said": said_of_prediction(told)}


def _if_possible(compute: Callable[[], Any]) -> Any:
    """What `compute` gives, or None where these runs do not have the numbers for it."""
    try:
        return compute()
    except ValueError:
        return None


def _point(record: Record, analysis: Analysis, present: Sequence[str]) -> Result:
    """What the figures draw of one run."""
    wanted = {*present, analysis.outcome, analysis.learning, analysis.forecast, "observed", RETENTION}
    numbers = {**record["measures"], **record["outcomes"]}
    return {
        "cell": record["cell"],
        "pair": record["pair"],
        "arm": record["arm"],
        "factors": dict(record["factors"]),
        "numbers": {name: numbers.get(name) for name in sorted(wanted)},
    }
