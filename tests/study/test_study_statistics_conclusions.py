"""The sentences of a study: what they claim, what they refuse, and that they always name runs and pairs."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.report.tables.run import p_text
from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.calibration import calibrate
from llm_forgetting.study.statistics.clusters import MeanOverPairs, change_over_runs, mean_over_pairs
from llm_forgetting.study.statistics.conclusions import (
    describe_arm,
    describe_calibration,
    describe_change,
    describe_flatness,
    describe_prediction,
    describe_relation,
)
from llm_forgetting.study.statistics.prediction import predict_unseen_pairs
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_arms, compare_at_matched_learning


def runs_of(pairs=6, per_pair=8, effect=1.0, rise=1.0):
    rng, found = np.random.default_rng(0), []
    for pair in range(pairs):
        of_pair = rng.normal(size=3)
        for k in range(per_pair):
            sharpness = of_pair[0] + rng.normal()
            learning = of_pair[1] + rng.normal()
            forgetting = of_pair[2] + effect * sharpness + 0.5 * rng.normal()
            after = sharpness + rise + 0.3 * rng.normal()
            factors = {"optimiser": "sam" if k % 2 else "adamw", "seed": k // 2}
            measures = {"sharpness": sharpness, "sharpness_after": after, "norm": rng.normal()}
            outcomes = {"forgetting": forgetting, "retention": -forgetting, "learning": learning}
            found.append(Run(f"pair {pair}", factors, measures, outcomes))
    return found


def association(runs, outcome="forgetting", measure="sharpness", primary="sharpness"):
    names = ["sharpness", "norm"]
    return associate(runs, outcome, names, primary=primary, given=[["norm"]], seed=0).measures[measure]


@pytest.mark.parametrize(
    ("outcome", "larger", "claim"),
    [
        ("forgetting", "sharper", "a flatter landscape (by sharpness) had less forgetting (forgetting)"),
        ("forgetting", "flatter", "a flatter landscape (by sharpness) had more forgetting (forgetting)"),
        ("retention", "sharper", "a flatter landscape (by sharpness) had more retention (retention)"),
        ("retention", "flatter", "a flatter landscape (by sharpness) had less retention (retention)"),
        ("forgetting", None, "runs with a larger sharpness had more forgetting (forgetting)"),
        ("retention", None, "runs with a larger sharpness had less retention (retention)"),
    ],
)
def test_flatness_has_its_direction(outcome, larger, claim):
    said = describe_flatness(association(runs_of(), outcome), larger=larger, outcome_is=outcome)
    assert claim in said
    assert "48 runs of 6 task pairs" in said
    assert "95% interval" in said
    assert "named beforehand" in said
    assert said.endswith("a correlation in runs of one study, not a cause.")


def test_what_is_not_shown_is_not_called_absent():
    said = describe_flatness(association(runs_of(effect=0.0)), larger="sharper", outcome_is="forgetting")
    assert said.startswith("It is not shown that sharpness goes with forgetting within task pairs: Spearman ")
    assert "a correlation below 0.41 is not seen reliably in a study of this size" in said
    assert "48 runs of 6 task pairs" in said
    adjusted = describe_relation(association(runs_of(), measure="norm"))
    assert adjusted.startswith("No relation between norm and forgetting is shown")
    assert "Holm-adjusted" in adjusted


def test_the_relation_is_told_with_both_partial_and_plain_numbers():
    said = describe_relation(association(runs_of(), "retention"))
    assert said.startswith("Within task pairs, retention was lower where sharpness was higher: Spearman -0.")
    assert "; given norm -0." in said
    assert "; over all runs -0." in said


def test_the_relation_is_a_second_test_of_the_primary_measure():
    assert "(primary measure, second outcome)" in describe_relation(association(runs_of(), "retention"))


def test_a_claim_that_its_interval_does_not_carry_says_so():
    found = association(runs_of())
    doubtful = replace(found.spearman_within_pairs, interval=Interval(-0.1, 0.9, method="a made-up one"))
    torn = replace(found, spearman_within_pairs=doubtful)
    for said, claim in (
        (describe_relation, "was higher where sharpness was higher"),
        (lambda found: describe_flatness(found, larger="sharper", outcome_is="forgetting"), "(forgetting)"),
    ):
        assert claim in said(found)
        assert "interval:" not in said(found)
        assert f"{claim}, by the test but not by the interval" in said(torn)


def test_too_few_runs_say_why():
    for said in (
        describe_relation(association(runs_of(2, 2))),
        describe_flatness(association(runs_of(2, 2)), larger="sharper", outcome_is="forgetting"),
    ):
        assert said.startswith(
            "Nothing is concluded on sharpness and forgetting from 4 runs of 2 task pairs: no arrang"
        )
    one = describe_relation(association(runs_of(1, 1)))
    assert "1 run of 1 task pair:" in one


def test_change_of_the_landscape():
    def said(runs):
        return describe_change(change_over_runs(runs, "sharpness", "sharpness_after", seed=0), name="sharpness")

    assert said(runs_of()).startswith("Sharpness rose with the new task: mean change +")
    assert said(runs_of(rise=-1.0)).startswith("Sharpness fell with the new task: mean change -")
    assert "not shown" in said(runs_of(rise=0.0))
    few = said(runs_of(4))
    assert few.startswith("Nothing is concluded on how sharpness changes with the new task: fewer than 6 task pairs")
    assert few.endswith("32 runs of 4 task pairs.")


def test_interventions():
    how = {"factor": "optimiser", "arm": "sam", "baseline": "adamw", "seed": 0}

    def said(runs):
        matched = compare_at_matched_learning(runs, "forgetting", learning="learning", **how)
        return describe_arm(compare_arms(runs, "forgetting", **how), matched)

    shifted = [
        Run(
            r.pair,
            r.factors,
            {},
            {**r.outcomes, "forgetting": r.number("forgetting") - 9 * (r.factors["optimiser"] == "sam")},
        )
        for r in runs_of(per_pair=16)
    ]
    assert said(shifted).startswith("With sam instead of adamw, forgetting was lower: mean difference -")
    assert "at matched learning the difference is -" in said(shifted)
    assert "48 matched runs of 6 task pairs" in said(shifted)
    assert said(runs_of()).startswith("It is not shown that sam instead of adamw changes forgetting")
    few = said(runs_of(4))
    assert few.startswith("Nothing is concluded on sam instead of adamw and forgetting")
    assert "no comparison at matched learning: both arms learnt alike in" in few


def test_calibration_and_prediction():
    runs = runs_of()
    said = describe_calibration(calibrate(runs, "sharpness", "forgetting", seed=0))
    assert said.startswith("Sharpness was nearer to forgetting than the mean of all runs (R2 0.")
    assert "where 1 and 0 would be calibrated" in said
    constant = [Run(r.pair, {}, {"forecast": 1.0}, r.outcomes) for r in runs]
    assert "cannot be told" in describe_calibration(calibrate(constant, "forecast", "forgetting", seed=0))
    worse = [Run(r.pair, {}, {"forecast": 100.0 + r.number("sharpness")}, r.outcomes) for r in runs]
    said = describe_calibration(calibrate(worse, "forecast", "forgetting", seed=0))
    assert said.startswith("Forecast was worse than the mean of all runs at forecasting forgetting: slope")
    assert "R2" not in said
    good = predict_unseen_pairs(runs, "forgetting", "sharpness", baseline="norm", seed=0)
    assert "gain over norm +" in describe_prediction(good)
    bad = describe_prediction(predict_unseen_pairs(runs, "forgetting", "norm", seed=0))
    assert bad.startswith("Norm is not shown to predict forgetting of unseen task pairs")
    assert "at least three" in describe_prediction(predict_unseen_pairs(runs_of(2), "forgetting", "norm", seed=0))


def test_no_sentence_holds_a_number_that_is_not_one():
    broken = [
        Run(r.pair, r.factors, {**r.measures, "sharpness": math.nan if k % 3 else r.measures["sharpness"]}, r.outcomes)
        for k, r in enumerate(runs_of())
    ]
    said = describe_relation(association(broken))
    assert "nan" not in said
    assert "16 runs of 6 task pairs" in said


@pytest.mark.parametrize(("rise", "shown"), [(4.05e-17, False), (1e-5, True)])
def test_rounding_is_told_as_nothing_and_small_numbers_as_they_are(rise, shown):
    said = describe_change(
        MeanOverPairs(
            value=rise,
            interval=Interval(-rise, 2 * rise, method="t"),
            stderr=rise,
            test=None,
            reason="too few pairs",
            share_positive=0.5,
            detectable=rise,
            n_runs=8,
            n_pairs=2,
        ),
        name="sharpness",
    )
    assert ("mean change +0.000010 (95% interval -0.000010 to 0.000020)" in said) is shown
    assert ("mean change +0.00 (95% interval 0.00 to 0.00)" in said) is not shown


def test_runs_that_differ_by_rounding_only_say_so():
    values = np.array([1, -1, 2, -1, 1, -2, 1, -1, 1, 2, -1, 1]) * 4.05e-17
    said = describe_change(mean_over_pairs(values, np.repeat(np.arange(6), 2), seed=0), name="sharpness")
    assert "the runs differ by no more than rounding" in said
    assert "e-" not in said


def test_a_claim_says_whether_it_holds_at_equal_learning():
    found = association(runs_of())
    (partial,) = found.partial
    within = partial.within_pairs
    lost = replace(within, test=replace(within.test, p_value=0.2))
    opposite = replace(within, value=-within.value)
    for coefficient, said in (
        (within, "had less forgetting (forgetting), also at equal norm: Spearman"),
        (lost, "had less forgetting (forgetting), but this is not shown at equal norm: Spearman"),
        (opposite, "had less forgetting (forgetting), but this is not shown at equal norm: Spearman"),
    ):
        given = replace(found, partial=(replace(partial, within_pairs=coefficient),))
        assert said in describe_flatness(given, larger="sharper", outcome_is="forgetting")
    both = (replace(partial, given=("a",)), replace(partial, given=("b", "c"), within_pairs=lost))
    said = describe_flatness(replace(found, partial=both), larger="sharper", outcome_is="forgetting")
    assert "(forgetting), also at equal a, but this is not shown at equal b and c: " in said
    assert "; given b and c +" in said
    assert "p = 0.20;" in said


@pytest.mark.parametrize(
    ("p", "said"), [(0.468, "= 0.47"), (0.0283, "= 0.028"), (1.0, "= 1.0"), (0.001, "= 0.0010"), (0.00099, "< 0.001")]
)
def test_p_values_have_two_digits(p, said):
    assert p_text(p) == said


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (-0.00335, -0.162, 0.158, "+0.00 (95% interval -0.16 to 0.16)"),
        (28.1, 0.0, 70.3, "+28 (95% interval 0 to 70)"),
        (-0.0123, -0.0149, -0.0097, "-0.0123 (95% interval -0.0149 to -0.0097)"),
    ],
)
def test_a_number_and_its_interval_have_the_same_decimals(value, low, high, said):
    mean = mean_over_pairs(np.arange(12.0), np.arange(12) // 2, seed=0)
    mean = replace(mean, value=value, interval=Interval(low, high, method="by hand"))
    assert f"mean change {said}, sign-flip p = 0.031" in describe_change(mean, name="sharpness")


def test_forecasts_and_predictions_over_few_first_tasks_say_so():
    """Six pairs of three first tasks: numbers, no interval, and why."""
    runs = [
        Run(r.pair, r.factors, r.measures, r.outcomes, first_task=f"{int(r.pair[-1]) // 2}") for r in runs_of()
    ]  # fmt: skip
    said = describe_calibration(calibrate(runs, "sharpness", "forgetting", seed=0))
    assert (
        "(no interval), where 1 and 0 would be calibrated (fewer than 6 first tasks: no interval, no p-value); " in said
    )
    assert said.endswith("48 runs of 6 task pairs and 3 first tasks.")
    said = describe_prediction(predict_unseen_pairs(runs, "forgetting", "sharpness", seed=0))
    assert said.startswith(
        "Nothing is concluded on whether sharpness predicts forgetting of unseen first tasks better than the "
    )
    assert ": fewer than 6 first tasks: no interval, no p-value (signs flipped over 3 would give " in said
    assert said.endswith("48 runs of 6 task pairs and 3 first tasks.")
