"""Pairs that share a first task are one unit: they share its checkpoints, and what is made later is alike."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from runs import ROOT
from scipy import stats

from llm_forgetting.cli.main import main
from llm_forgetting.study.analysis import analyse, first_checkpoints, runs_of
from llm_forgetting.study.measures import AT_FIRST, LATER, MEASURES, OUTCOMES
from llm_forgetting.study.plan import Analysis, Plan, read_plan
from llm_forgetting.study.records import CellRecord, read_records
from llm_forgetting.study.statistics.association import associate
from llm_forgetting.study.statistics.clusters import change_over_runs, mean_over_pairs
from llm_forgetting.study.statistics.conclusions import describe_arm, describe_flatness
from llm_forgetting.study.statistics.exchangeability import orders_within
from llm_forgetting.study.statistics.power import detectable_correlation
from llm_forgetting.study.statistics.prediction import predict_unseen_pairs
from llm_forgetting.study.statistics.runs import Run
from llm_forgetting.study.statistics.trade_off import compare_arms
from llm_forgetting.study.study import too_few_first_tasks

PUBLISHED = ROOT / "docs/results/flatness/records.json.gz"


def shared(x, y, first_tasks=3, pairs=2, *, known=True):
    """Runs whose pairs share the first checkpoints: x (first_tasks, points), y (first_tasks, pairs, points)."""
    return [
        Run(
            f"{first} > {pair}",
            {"seed": point},
            {"sharpness": x[first][point]},
            {"forgetting": y[first][pair][point]},
            first_task=f"{first}" if known else None,
            first_checkpoint=f"{first} {point}" if known else None,
        )
        for first in range(first_tasks)
        for pair in range(pairs)
        for point in range(len(x[first]))
    ]


def draw(rng, correlation, first_tasks=3, pairs=2, points=8):
    common = rng.normal(size=(first_tasks, 1, points))
    own = rng.normal(size=(first_tasks, pairs, points))
    y = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    return rng.normal(size=(first_tasks, points)), y + rng.normal(size=(first_tasks, pairs, 1))


def found(runs, seed=0):
    return associate(runs, "forgetting", ["sharpness"], primary="sharpness", seed=seed).measures["sharpness"]


def test_checkpoints_are_permuted_with_all_their_runs_exactly():
    """Two first tasks of two pairs and three checkpoints: 3! x 3! arrangements, worked out on ranks one by one."""
    rng = np.random.default_rng(0)
    x, y = draw(rng, 0.5, 2, 2, 3)
    a = stats.rankdata(np.broadcast_to(x[:, None, :], y.shape)).reshape(y.shape)
    b = stats.rankdata(y).reshape(y.shape)
    a, b = (ranks - ranks.mean(axis=2, keepdims=True) for ranks in (a, b))
    totals = [
        abs(sum((a[f] * b[f][:, list(order)]).sum() for f, order in enumerate(orders)))
        for orders in itertools.product(itertools.permutations(range(3)), repeat=2)
    ]
    test = found(shared(x, y, 2)).spearman_within_pairs.test
    assert (test.arrangements, test.exact) == (36, True)
    assert test.p_value == np.mean(np.array(totals) >= abs((a * b).sum()) - 1e-9)
    assert test.smallest == np.mean(np.array(totals) >= max(totals) - 1e-9)
    apart = found(shared(x, y, 2, known=False)).spearman_within_pairs.test
    assert apart.arrangements == 6**4


def test_a_checkpoint_with_other_pairs_is_not_exchanged():
    pairs, checkpoints = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    orders = orders_within(pairs, seed=0, first_tasks=np.zeros(5, dtype=int), checkpoints=checkpoints)
    assert sorted(map(tuple, orders.rows)) == [(0, 1, 2, 3, 4), (1, 0, 2, 4, 3)]


def test_refusals_count_checkpoints_and_first_tasks():
    """Six pairs that repeat one first task's eight checkpoints say no more of a measure made there than one pair does."""
    rng = np.random.default_rng(2)
    x, y = draw(rng, 0.5)
    one = found(shared(x, y))
    assert (one.unit, one.n_units, one.n_points) == ("first task", 3, 24)
    assert one.detectable == detectable_correlation(24, 3)
    assert one.spearman_over_runs.interval is None  # three first tasks, and four are needed
    x, y = draw(rng, 0.5, 1, 6, 8)
    repeated = found(shared(x, y, 1, 6))
    assert repeated.refusal == "a correlation of 0.8 would be missed more than one time in five"
    assert found(shared(x, y, 1, 6, known=False)).refusal is None
    x, y = draw(rng, 0.5, 3, 2, 1)
    assert found(shared(x, y)).refusal == "3 first checkpoints of 3 first tasks leave nothing to compare within pairs"


def arms(first_tasks, pairs):
    return [
        Run(
            f"{first} > {pair}",
            {"optimiser": arm},
            {"sharpness": 2.0 + first + (arm == "sam")},
            {"forgetting": float(pair)},
            first_task=f"{first}",
            first_checkpoint=f"{first} {arm}",
        )
        for first in range(first_tasks)
        for pair in range(pairs)
        for arm in ("adamw", "sam")
    ]


def test_six_pairs_of_three_first_tasks_are_three_units():
    """Signs of three equal differences agree in 2 of 2^3 patterns, those of six in 2 of 2^6."""
    how = {"factor": "optimiser", "arm": "sam", "baseline": "adamw", "matched_on": (), "seed": 0}
    few = compare_arms(arms(3, 2), "sharpness", **how).difference
    assert (few.unit, few.n_units, few.n_pairs, few.test, few.interval) == ("first task", 3, 6, None, None)
    reason = "fewer than 6 first tasks: no interval, no p-value (signs flipped over 3 would give 0.25)"
    assert few.reason == reason
    assert reason in describe_arm(compare_arms(arms(3, 2), "sharpness", **how))
    assert compare_arms(arms(6, 1), "sharpness", **how).difference.test.p_value == 2 / 64
    later = compare_arms(arms(3, 2), "forgetting", **how).difference
    assert (later.unit, later.n_units, later.reason) == ("first task", 3, reason.replace("0.25", "1.0"))
    of_each = compare_arms(arms(6, 1), "forgetting", **how).difference
    assert (of_each.unit, of_each.n_units) == ("task pair", 6)


def test_a_mean_over_first_tasks_counts_each_once():
    values, firsts = np.array([1.0, 1, 1, 5]), np.array([0, 0, 0, 1])
    assert mean_over_pairs(values, np.arange(4), seed=0, first_tasks=firsts).value == 3.0
    rise = [Run(r.pair, {}, r.measures, {"after": 9.0}, {}, r.first_task) for r in arms(3, 2)]
    assert change_over_runs(rise, "sharpness", "after", seed=0).n_units == 3


def test_prediction_leaves_out_the_first_task():
    """First tasks a, b, c at x = 0, 1, 2 with y = 0, 2, 2, twice each: as with one pair each, predicted 2, 1, 4."""
    points = zip("aabbcc", (0.0, 0, 1, 1, 2, 2), (0.0, 0, 2, 2, 2, 2), strict=True)
    runs = [
        Run(f"{first} > {n}", {}, {"x": x}, {"forgetting": y}, {}, first, first)
        for n, (first, x, y) in enumerate(points)
    ]
    prediction = predict_unseen_pairs(runs, "forgetting", "x", seed=0)
    assert prediction.unit == "first task"
    assert prediction.error == pytest.approx((2 + 1 + 2) / 3)


def test_every_row_says_where_its_number_is_made_as_the_published_records_show():
    """Runs of one first task, factors and arm have one number, but for rounding, of what is made at the first checkpoint."""
    records = read_records(PUBLISHED).records
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(f"{record.tasks[0]} {record.factors} {record.arm}", []).append(record)
    for name, (_, place, _) in {**MEASURES, **OUTCOMES}.items():
        assert place in (AT_FIRST, LATER)
        numbers = [[{**r.measures, **r.outcomes}.get(name) for r in group] for group in groups.values()]
        known = [group for group in numbers if None not in group]
        if known:
            same = all(group == pytest.approx([group[0]] * len(group), rel=1e-5) for group in known)
            assert same == (place == AT_FIRST), name


def record(cell, tasks, arm, seed, sharpness):
    return CellRecord(
        cell=cell, pair=" > ".join(tasks), tasks=tasks, factors={"seed": seed}, arm=arm,
        measures={"mean_rise": sharpness}, outcomes={}, stderrs={}, versions={},
    )  # fmt: skip


def test_arms_that_act_later_share_the_first_checkpoint():
    """Equal place, or equal numbers made there: the second row is measured again with another last digit."""
    records = [
        record("1", ("a", "b"), "adamw", 0, 1.0),
        record("2", ("a", "c"), "adamw", 0, 1.0000001),
        record("3", ("a", "b"), "replay", 0, 1.0),
        record("4", ("a", "b"), "sam", 0, 0.5),
        record("5", ("b", "a"), "adamw", 0, 1.0),
        record("6", ("a", "b"), "adamw", 1, 2.0),
    ]
    names = first_checkpoints(records)
    assert len(set(names)) == 4
    assert names[0] == names[1] == names[2]
    assert [run.first_task for run in runs_of(records)] == ["a", "a", "a", "a", "b", "a"]


def test_the_headline_is_given_how_well_task_1_was_learnt():
    """Sharpness and forgetting both follow the loss at the checkpoint, and nothing else joins them."""
    rng, records = np.random.default_rng(5), []
    for first, second in itertools.permutations("abc", 2):
        for seed in range(16):
            learnt = np.random.default_rng(["abc".index(first), seed]).normal(size=3)
            made = {"mean_rise": learnt[0] + 0.3 * learnt[1], "centre_loss": -learnt[0]}
            outcomes = {
                "forgetting_loss": learnt[0] + 0.3 * rng.normal(), "retention_loss": 1.0 + rng.normal(),
                "first_learning_loss": learnt[0], "learning_loss": rng.normal(),
            }  # fmt: skip
            one = record(f"{first}{second}{seed}", (first, second), "adamw", seed, 0.0)
            records.append(CellRecord(**{**vars(one), "measures": made, "outcomes": outcomes}))
    analysis = Analysis(measures=("mean_rise",), baseline="adamw")
    assert {("first_learning_loss",), ("centre_loss",)} < set(analysis.given)
    content = analyse(records, analysis, ["adamw"])
    association = content["associations"]["measures"]["mean_rise"]
    partial = {each["given"]: each["within_pairs"]["value"] for each in association["partial"] if each["within_pairs"]}
    assert association["spearman_within_pairs"]["value"] > 0.8
    assert abs(partial["first_learning_loss",]) < 0.4
    said = content["answers"]["flatness"]
    assert f"given learning of task 1 {partial['first_learning_loss',]:+.2f}" in said
    assert f"given loss at the checkpoint {partial['centre_loss',]:+.2f}" in said
    assert "given learning of the last task" not in said
    assert ", but this is not shown at equal learning of task 1 or at equal loss at the checkpoint: " in said


def test_the_sentence_says_how_many_checkpoints_there_are():
    x, y = draw(np.random.default_rng(4), 0.5)
    said = describe_flatness(found(shared(x, y)), larger="sharper", outcome_is="forgetting")
    assert "48 runs of 6 task pairs, with 24 first checkpoints of 3 first tasks" in said


@pytest.mark.slow
def test_a_dry_run_says_that_six_first_tasks_are_needed(tmp_path, capsys, monkeypatch):
    """Six pairs of four first tasks; of six there is nothing to say."""
    monkeypatch.chdir(tmp_path)
    tasks = [[f"synthetic_{a}", f"synthetic_{b}"] for a, b in ((1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (4, 1))]
    (tmp_path / "study.yaml").write_text(json.dumps({"base": "smoke", "vary": {"data.tasks": tasks}}))
    assert main(["study", "study.yaml", "--dry_run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "At least 6 first tasks are needed for intervals and p-values of what an arm changes, and the cells have 4"
        in said
    )
    one = read_plan(tmp_path / "study.yaml").cells[0]
    six = [
        replace(one, config=replace(one.config, data=replace(one.config.data, tasks=(f"{k}", "b")))) for k in range(6)
    ]
    assert too_few_first_tasks(Plan("six", tuple(six), ("default",))) == []
    assert len(too_few_first_tasks(Plan("five", tuple(six[:5]), ("default",)))) == 1
