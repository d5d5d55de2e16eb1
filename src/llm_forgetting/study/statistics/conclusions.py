"""Conclusions of a study in plain words: numbers, intervals, runs and pairs, and no more than the data carry.

Every sentence names the number of runs and of task pairs. An association is never called a cause, and a missing one is
never called absent: what is said is how large it would have had to be.
"""

import math
from collections.abc import Sequence
from typing import Literal

from llm_forgetting.arrays import settled
from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.report.tables.run import p_text
from llm_forgetting.study.statistics.association import Association, Coefficient, PartialAssociation
from llm_forgetting.study.statistics.calibration import Calibration
from llm_forgetting.study.statistics.clusters import MeanOverPairs
from llm_forgetting.study.statistics.frontiers import FrontierEffect
from llm_forgetting.study.statistics.power import SIGNIFICANCE
from llm_forgetting.study.statistics.prediction import PairPrediction
from llm_forgetting.study.statistics.runs import TASK_PAIR
from llm_forgetting.study.statistics.trade_off import ArmEffect, MatchedEffect

Larger = Literal["sharper", "flatter"]

MOST_DESCRIBED = 3
"""Arms that have a sentence each; more have a table."""
_NOT_A_CAUSE = "a correlation in runs of one study, not a cause"


def describe_flatness(
    association: Association, *, larger: Larger | None, outcome_is: Literal["forgetting", "retention"]
) -> str:
    """Does a flatter landscape go with less forgetting, or with more retention?

    larger: what a larger value of the measure means, None for one that is no property of a landscape; outcome_is: what a
    larger value of the outcome means. A claim says whether it holds at equal values of what is given, too.
    """
    within, size = association.spearman_within_pairs, _association_size(association)
    if association.refusal is not None or within is None:
        return f"Nothing is concluded on {association.measure} and {association.outcome} from {size}: {association.refusal}."
    numbers = f"{_describe_coefficients(association, within)}{_describe_partials(association)}; {size}"
    if not association.shown:
        return (
            f"It is not shown that {association.measure} goes with {association.outcome} within task pairs: {numbers}; a "
            f"correlation below {association.detectable:.2f} is not seen reliably in a study of this size."
        )
    holds = f"{_unless(within.interval)}{_at_equal(association, within)}: {numbers}; {_NOT_A_CAUSE}."
    if larger is None:
        has = f"{'more' if within.value > 0 else 'less'} {outcome_is}"
        return f"Within task pairs, runs with a larger {association.measure} had {has} ({association.outcome}){holds}"
    sharper_has_more = (within.value > 0) == (larger == "sharper")
    flatter_has = ("less" if sharper_has_more else "more") + f" {outcome_is}"
    lead = f"Within task pairs, runs with a flatter landscape (by {association.measure}) had {flatter_has}"
    return f"{lead} ({association.outcome}){holds}"


def describe_relation(association: Association) -> str:
    """What is the relation between a measure and an outcome (sharpness and retention, say)? Also given other numbers.

    The outcome is not the study's first one, so that the p-value of the primary measure is one of a second test.
    """
    within, size = association.spearman_within_pairs, _association_size(association)
    if association.refusal is not None or within is None:
        return f"Nothing is concluded on {association.measure} and {association.outcome} from {size}: {association.refusal}."
    direction = "higher" if within.value > 0 else "lower"
    lead = f"Within task pairs, {association.outcome} was {direction} where {association.measure} was higher"
    lead += _unless(within.interval)
    if not association.shown:
        lead = f"No relation between {association.measure} and {association.outcome} is shown within task pairs"
    over = association.spearman_over_runs
    together = (
        ""
        if over is None
        else f"; over all runs {_figure(over.value, '+.2f')}" + _describe_interval(over.interval, " (", ")")
    )
    numbers = _describe_coefficients(association, within, "primary measure, second outcome")
    return f"{lead}: {numbers}{_describe_partials(association)}{together}; {size}; {_NOT_A_CAUSE}."


def describe_frontiers(effects: Sequence[FrontierEffect]) -> list[str]:
    """Which arms keep more of the first task where the last was learnt as far? Of up to three arms a sentence each as well."""
    baseline, count = effects[0].baseline, len(effects)
    named = {shown: [effect.arm for effect in effects if effect.shown == shown] for shown in (-1, 1, 0)}
    said = {-1: "keep more of the first task", 1: "keep less of it", 0: "neither is shown"}
    parts = [
        f"{f'for {len(arms)}' if shown == 0 else f'{len(arms)} of {count} arms'} {said[shown]} ({', '.join(arms)})"
        for shown, arms in named.items()
        if arms
    ]
    if len(named[0]) == count:
        parts = [f"no arm is shown to keep more of the first task, or less ({', '.join(named[0])})"]
    lead = f"Compared with {baseline} where the last task was learnt as far, {'; '.join(parts)}: "
    lead += _mean_size(effects[0].difference, "runs of each arm")
    return [f"{lead}.", *(_describe_on_frontier(effect) for effect in effects if count <= MOST_DESCRIBED)]


def describe_across(association: Association) -> str:
    """Do arms that change a measure more also change forgetting more, where the last task was learnt as far?"""
    within, size = association.spearman_within_pairs, _counted(association.n_runs, "arm")
    what = f"{association.measure} and {association.outcome}"
    if association.refusal is not None or within is None:
        return f"Nothing is concluded over {size} on changes of {what}: {association.refusal}."
    numbers = f"{_describe_coefficients(association, within)}; {size}"
    if not association.shown:
        return (
            f"It is not shown that arms with a larger change of {association.measure} have more {association.outcome}: "
            f"{numbers}; a correlation below {association.detectable:.2f} is not seen reliably."
        )
    has = f"{'more' if within.value > 0 else 'less'} {association.outcome}"
    return f"Arms with a larger change of {association.measure} have {has}: {numbers}; no cause is shown."


def _describe_on_frontier(effect: FrontierEffect) -> str:
    difference, adjusted = effect.difference, effect.runs_test.p_value if effect.adjusted is None else effect.adjusted
    unit, value, interval = " nats" if effect.measure == "loss" else "", difference.value, difference.interval
    if effect.shown:
        word, size = ("more", interval) if value > 0 else ("less", None if interval is None else -interval)
        found = f"{_figure(abs(value), '.2f')}{unit} {word}"
        claim = f"{effect.arm} forgot {found} than {effect.baseline} at matched learning"
    else:
        size, claim = (
            interval,
            f"It is not shown that {effect.arm} forgets more or less than {effect.baseline} at matched learning",
        )
        claim += f": {_figure(value, '+.2f')}{unit}"
    learnt = f"compared at {100 * effect.learnt.value:.0f}% of what {effect.baseline} learnt"
    ends = _describe_interval(size, " (", ")")
    return f"{claim}{ends}, p {p_text(adjusted)} (adjusted); {learnt}; {_mean_size(difference)}."


def describe_change(change: MeanOverPairs, *, name: str, over: str = "the new task") -> str:
    """How does a number of the landscape change with a new task?"""
    size = _mean_size(change)
    numbers = f"mean change {_describe_mean(change)}, it rose in {change.share_positive:.0%} of runs; {size}"
    if change.test is None:
        return f"Nothing is concluded on how {name} changes with {over}: {change.reason}; {numbers}."
    if not _is_shown(change):
        return f"It is not shown that {name} changes with {over}: {numbers}; {_describe_detectable(change)}."
    return (
        f"{_capital(name)} {'rose' if change.value > 0 else 'fell'} with {over}{_unless(change.interval)}: {numbers}."
    )


def describe_arm(effect: ArmEffect, matched: MatchedEffect | None = None) -> str:
    """What does an intervention do to forgetting, as it is and at matched learning?"""
    difference, names = effect.difference, f"{effect.arm} instead of {effect.baseline}"
    by = _describe_ratio(difference) if effect.ratio else f"mean difference {_describe_mean(difference)}"
    numbers = f"{by}; {_mean_size(difference, 'matched runs')}"
    if difference.test is None:
        lead = f"Nothing is concluded on {names} and {effect.outcome}: {difference.reason}; {numbers}"
    elif _is_shown(difference):
        direction = f"{'higher' if difference.value > 0 else 'lower'}{_unless(difference.interval)}"
        lead = f"With {names}, {effect.outcome} was {direction}: {numbers}"
    else:
        lead = f"It is not shown that {names} changes {effect.outcome}: {numbers}; {_describe_detectable(difference)}"
    return lead + ("." if matched is None else f"; {_describe_matched(matched)}.")


def describe_calibration(calibration: Calibration) -> str:
    """Are forecasts of forgetting right in size?"""
    size = _mean_size(calibration)
    errors = (
        f"mean absolute error {_describe_estimate(calibration.mean_absolute_error)}, right in sign in "
        f"{calibration.sign_right.value:.0%} of runs"
    )
    if calibration.slope is None or calibration.intercept is None or calibration.r_squared is None:
        return f"The calibration of {calibration.forecast} cannot be told: {calibration.refusal}; {errors}; {size}."
    ranks = calibration.rank_correlation
    if ranks is not None:
        errors += (
            f"; Spearman over all runs {_figure(ranks.value, '+.2f')}{_describe_interval(ranks.interval, ' (', ')')}"
        )
    lead = f"was nearer to {calibration.outcome} than the mean of all runs (R2 {calibration.r_squared:.2f})"
    if calibration.r_squared <= 0:
        lead = f"was worse than the mean of all runs at forecasting {calibration.outcome}"
    line = f"slope {_describe_estimate(calibration.slope)}, intercept {_describe_estimate(calibration.intercept)}"
    would = f"where 1 and 0 would be calibrated{_because(calibration.slope)}"
    return f"{_capital(calibration.forecast)} {lead}: {line}, {would}; {errors}; {size}."


def describe_prediction(prediction: PairPrediction) -> str:
    """Does a measure predict forgetting for a task pair it has not seen?"""
    gain = prediction.gain_over_mean
    size = _size(prediction.n_runs, prediction.n_pairs) if gain is None else _mean_size(gain)
    if gain is None or prediction.error is None or prediction.mean_error is None:
        return f"Nothing is said on predicting {prediction.outcome} by {prediction.measure} from {size}: {prediction.refusal}."
    style = _style(gain.value, gain.interval)
    numbers = (
        f"mean absolute error {_figure(prediction.error, style)} against {_figure(prediction.mean_error, style)}, gain "
        f"{_describe_mean(gain)}"
    )
    if prediction.baseline is not None and prediction.gain_over_baseline is not None:
        numbers += f"; gain over {prediction.baseline} {_describe_mean(prediction.gain_over_baseline)}"
    if gain.test is None:
        return (
            f"Nothing is concluded on whether {prediction.measure} predicts {prediction.outcome} of unseen {prediction.unit}s "
            f"better than the mean of the others: {gain.reason}; {numbers}; {size}."
        )
    claim = "predicted" if gain.value > 0 and _is_shown(gain) else "is not shown to predict"
    return (
        f"{_capital(prediction.measure)} {claim} {prediction.outcome} of unseen {prediction.unit}s better than the mean of the "
        f"others: {numbers}; {size}."
    )


def _describe_matched(matched: MatchedEffect) -> str:
    used = (
        f"{matched.runs_used} of {matched.n_runs} runs in {matched.pairs_overlapping} of {matched.n_pairs} task pairs"
    )
    if matched.adjusted is None or matched.test is None:
        return f"no comparison at matched {matched.learning}: {matched.refusal} ({used} overlap)"
    return (
        f"at matched {matched.learning} the difference is {_describe_estimate(matched.adjusted, '+')}, "
        f"p {p_text(matched.test.p_value)} ({used}; unmatched, {matched.learning} differs by "
        f"{_figure(matched.learning_difference.value, '+' + _style(matched.learning_difference.value, None))})"
    )


def _at_equal(association: Association, within: Coefficient) -> str:
    """Which of the numbers given leave the claim as it is, and which do not."""

    def holds(partial: PartialAssociation) -> bool:
        given = partial.within_pairs
        shown = given is not None and given.test is not None and given.test.p_value <= SIGNIFICANCE
        return shown and given is not None and given.value * within.value > 0

    held, lost = (
        [
            f"at equal {' and '.join(each.given)}"
            for each in association.partial
            if each.within_pairs and holds(each) == kept
        ]
        for kept in (True, False)
    )
    also = f", also {' and '.join(held)}" if held else ""
    return also + (f", but this is not shown {' or '.join(lost)}" if lost else "")


def _unless(interval: Interval | None) -> str:
    """What to add to a claim that its test carries and its interval does not."""
    return (
        ", by the test but not by the interval" if interval is not None and interval.low <= 0 <= interval.high else ""
    )


def _describe_coefficients(association: Association, within: Coefficient, how_primary: str = "named beforehand") -> str:
    p = association.p_value if association.primary else association.p_adjusted
    how = how_primary if association.primary else "Holm-adjusted"
    numbers = f"Spearman {_figure(within.value, '+.2f')}{_describe_interval(within.interval, ' (', ')')}"
    tau = association.kendall_within_pairs
    return (
        numbers
        + ("" if tau is None else f", Kendall {_figure(tau.value, '+.2f')}")
        + ("" if p is None else f", permutation p {p_text(p)} ({how})")
    )


def _describe_mean(mean: MeanOverPairs) -> str:
    test = "" if mean.test is None else f", sign-flip p {p_text(mean.test.p_value)}"
    style = _style(mean.value, mean.interval)
    return f"{_figure(mean.value, '+' + style)}{_describe_interval(mean.interval, ' (', ')', style)}{test}"


def _describe_ratio(mean: MeanOverPairs) -> str:
    """A mean of logarithms, as the ratio that it is."""
    ends = mean.interval
    interval = None if ends is None else Interval(math.exp(ends.low), math.exp(ends.high), method=ends.method)
    test = "" if mean.test is None else f", sign-flip p {p_text(mean.test.p_value)}"
    return f"mean ratio {math.exp(mean.value):.2f}{_describe_interval(interval, ' (', ')')}{test}"


def _describe_estimate(estimate: Estimate, sign: Literal["", "+"] = "") -> str:
    if estimate.value is None:
        return "unknown"
    style = _style(estimate.value, estimate.interval)
    return _figure(estimate.value, sign + style) + _describe_interval(estimate.interval, " (", ")", style)


def _describe_interval(interval: Interval | None, before: str, after: str, style: str = ".2f") -> str:
    if interval is None:
        return f"{before}no interval{after}"
    ends = f"{_figure(interval.low, style)} to {_figure(interval.high, style)}"
    return f"{before}{100 * interval.level:.0f}% interval {ends}{after}"


def _style(value: float, interval: Interval | None) -> str:
    """As many decimals for a number and its interval as show two digits of half its width, or of the number without one."""
    size = settled(abs(value) if interval is None else (interval.high - interval.low) / 2)
    decimals = 1 - math.floor(math.log10(size)) if size and math.isfinite(size) else 2
    return f".{max(0, decimals)}f"


def _figure(value: float, style: str) -> str:
    """A number in the style `.2f` or `+.2f`; what is of rounding's size is 0."""
    sign = "+" if style.startswith("+") else ""
    return format(settled(value), f"{sign}z{style.removeprefix('+')}")


def _describe_detectable(mean: MeanOverPairs) -> str:
    detectable = settled(mean.detectable or 0.0)
    if not detectable:
        return "the runs differ by no more than rounding"
    return f"a mean below about {detectable:.2g} in size is not seen reliably"


def _is_shown(mean: MeanOverPairs) -> bool:
    return mean.test is not None and mean.test.p_value <= SIGNIFICANCE


def _size(n_runs: int, n_pairs: int, runs: str = "runs") -> str:
    pairs = "task pair" if n_pairs == 1 else "task pairs"
    return f"{n_runs} {runs if n_runs != 1 else runs.removesuffix('s')} of {n_pairs} {pairs}"


def _because(estimate: Estimate) -> str:
    """Why there is no interval, where it is known."""
    return f" ({estimate.reason})" if estimate.interval is None and estimate.reason else ""


def _mean_size(mean: MeanOverPairs | Calibration, runs: str = "runs") -> str:
    size = _size(mean.n_runs, mean.n_pairs, runs)
    return size if mean.unit == TASK_PAIR else f"{size} and {_counted(mean.n_units, mean.unit)}"


def _association_size(association: Association) -> str:
    """The runs and pairs; where pairs share a first task also how many of those, and of their checkpoints, there are."""
    size = _size(association.n_runs, association.n_pairs)
    if association.unit == TASK_PAIR:
        return size
    checkpoints = _counted(association.n_points, "first checkpoint")
    return f"{size}, with {checkpoints} of {_counted(association.n_units, association.unit)}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _describe_partials(association: Association) -> str:
    return "".join(
        f"; given {' and '.join(partial.given)} {_figure(partial.within_pairs.value, '+.2f')}"
        + _describe_interval(partial.within_pairs.interval, " (", ")")
        + ("" if partial.within_pairs.test is None else f", p {p_text(partial.within_pairs.test.p_value)}")
        for partial in association.partial
        if partial.within_pairs is not None
    )


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
