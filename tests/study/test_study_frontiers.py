"""Arms at matched learning: hand-worked frontiers, an arm that only learns less, and how often the claim is wrong."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from llm_forgetting.forgetting.frontier import Frontier
from llm_forgetting.report.html.blocks import Figures
from llm_forgetting.report.html.study import study_page
from llm_forgetting.report.tables.study import conclusions
from llm_forgetting.report.tables.study_frontiers import frontier_tables
from llm_forgetting.study.matched_learning import across_arms, matched_learning
from llm_forgetting.study.measures import FrontierRecord
from llm_forgetting.study.plan import Analysis
from llm_forgetting.study.records import CellRecord, StudyRecords
from llm_forgetting.study.report import write_report
from llm_forgetting.study.statistics.conclusions import describe_across
from llm_forgetting.study.statistics.frontiers import FrontierStudy, RunFrontier
from llm_forgetting.study.statistics.runs import Run

LEARNING = (0.0, 1.0, 2.0)


def frontier(forgetting: Sequence[float], learning: Sequence[float] = LEARNING) -> RunFrontier:
    path = Frontier(np.array(learning), np.array(forgetting))
    return RunFrontier(path, (float(learning[-1]), float(forgetting[-1])), moved=False)


def study(made: dict[str, Callable[[int, int], RunFrontier]], pairs: int = 6, seeds: int = 2) -> FrontierStudy:
    """Runs of every arm in `pairs` task pairs of their own first task, each with `seeds` seeds."""
    runs, frontiers = [], []
    for arm, make in made.items():
        for pair in range(pairs):
            for seed in range(seeds):
                runs.append(Run(f"{pair} > x", {"arm": arm, "seed": seed}, first_task=str(pair)))
                frontiers.append({"loss": make(pair, seed)})
    return FrontierStudy(runs, frontiers, "plain", seed=0)


def test_a_run_is_matched_where_both_learnt_as_much() -> None:
    own = frontier((0.0, 1.0, 4.0))
    assert own.matched(1.5) == (1.5, 2.5)  # half-way between the points
    assert own.matched(3.0) == (2.0, 4.0)  # it never learnt more
    moved = dataclasses.replace(own, end=(1.2, 0.3), moved=True)
    assert moved.matched(3.0) == (1.2, 0.3)
    assert moved.matched(1.0) == (1.0, 0.3)  # it learnt more, and only its end counts


def test_an_arm_is_compared_at_its_own_learning() -> None:
    """Plain forgets 2 L, the arm L squared up to 1.6 nats: 2.56 - 3.2 there, and in the mean L / 3 less."""
    effect = study(
        {
            "plain": lambda pair, seed: frontier((0.0, 2.0, 4.0)),
            "arm": lambda pair, seed: frontier(
                [x * x for x in np.linspace(0, 1.6, 161)], list(np.linspace(0, 1.6, 161))
            ),
        }
    ).compare("arm", "loss")
    assert effect.difference.value == pytest.approx(2.56 - 3.2)
    assert effect.learnt.value == pytest.approx(0.8)
    assert effect.area is not None
    assert effect.area.value == pytest.approx(1.6**2 / 3 - 1.6, abs=1e-4)
    assert (effect.difference.n_runs, effect.difference.n_units, effect.unmatched) == (12, 6, 0)
    assert effect.runs_test.p_value == pytest.approx(2 / 2**12)
    assert effect.shown == -1


def test_learning_less_is_no_merit() -> None:
    """On one and the same curve an arm that stops half-way forgets half as much in the end, and no less at matched learning."""
    effect = study(
        {
            "plain": lambda pair, seed: frontier((0.0, 2.0, 4.0)),
            "slow": lambda pair, seed: frontier((0.0, 1.0, 2.0), (0.0, 0.5, 1.0)),
        }
    ).compare("slow", "loss")
    assert effect.difference.value == 0
    assert effect.learnt.value == 0.5
    assert effect.shown == 0


def test_areas_are_those_on_the_way_to_half_of_what_the_baseline_learnt() -> None:
    runs = study(
        {
            "plain": lambda pair, seed: frontier((0.0, 2.0, 4.0)),
            "short": lambda pair, seed: frontier((0.0, 1.0), (0.0, 1.0 if pair else 0.5)),
            "merged": lambda pair, seed: dataclasses.replace(frontier((0.0, 2.0, 4.0)), end=(1.0, 0.5), moved=True),
        }
    )
    plain, short = runs.area("plain", "loss"), runs.area("short", "loss")
    assert plain is not None
    assert short is not None
    assert plain.value == pytest.approx(1.0)
    assert (short.value, short.excluded) == (pytest.approx(0.5), 2)  # the first pair's never learn so much
    assert runs.area("merged", "loss") is None
    merged = runs.compare("merged", "loss")
    assert merged.difference.value == pytest.approx(0.5 - 2.0)
    assert merged.area is None


def test_runs_without_a_partner_are_counted() -> None:
    runs = study({"plain": lambda p, s: frontier((0.0, 2.0, 4.0)), "arm": lambda p, s: frontier((0.0, 1.0, 2.0))})
    alone = FrontierStudy(runs.runs[1:], runs.frontiers[1:], "plain", seed=0)
    assert alone.compare("arm", "loss").unmatched == 1
    with pytest.raises(ValueError, match="no run of 'other'"):
        runs.compare("other", "loss")
    with pytest.raises(ValueError, match="two runs with arm = 'plain' agree"):
        FrontierStudy([*runs.runs, runs.runs[0]], [*runs.frontiers, runs.frontiers[0]], "plain", 0).compare(
            "arm", "loss"
        )


def test_without_an_effect_hardly_any_arm_is_shown_to_keep_more_or_less() -> None:
    """Effects that differ from pair to pair around none, and noise: at most 5% of claims, and intervals hold 0 in 95%."""
    rng = np.random.default_rng(0)
    shown, held = 0, 0
    for _ in range(300):
        of_pair = rng.normal(0, 0.3, 6)
        effect = study(
            {
                "plain": lambda pair, seed: frontier((0.0, 2.0, 4.0 + rng.normal(0, 0.3))),
                "arm": lambda pair, seed, of_pair=of_pair: frontier(
                    (0.0, 2.0, 4.0 + of_pair[pair] + rng.normal(0, 0.3))
                ),  # type: ignore[misc]
            },
            seeds=5,
        ).compare("arm", "loss")
        shown += effect.shown != 0
        assert effect.difference.interval is not None
        held += effect.difference.interval.low <= 0 <= effect.difference.interval.high
    assert shown / 300 <= 0.06
    assert 0.92 <= held / 300 <= 0.98


def records() -> list[CellRecord]:
    """Six pairs, two seeds, three arms: one keeps half a nat per nat, one is as plain, one ends with a merge."""
    made = []
    for pair in range(6):
        for seed in range(2):
            noise = 0.01 * (pair - seed)
            for arm, slope in (("plain", 2.0), ("kept", 1.5), ("same", 2.0)):
                path = tuple(slope * x + noise * (arm != "plain") * (-1) ** pair for x in LEARNING[1:])
                own = FrontierRecord(LEARNING, (0.0, *path), (1.5, 0.2) if arm == "kept" else None)
                made.append(
                    CellRecord(
                        cell=f"{pair}{seed}{arm}", pair=f"a{pair} > b", tasks=(f"a{pair}", "b"), factors={"seed": seed},
                        arm=arm, measures={}, outcomes={}, stderrs={}, frontiers={"loss": own}, versions={},
                    )
                )  # fmt: skip
    return made


def test_what_the_report_says() -> None:
    found = records()
    runs = [Run(record.pair, {**record.factors, "arm": record.arm}, first_task=record.tasks[0]) for record in found]
    (loss,) = matched_learning(found, runs, ("plain", "kept", "same"), "plain", seed=0)
    lead, kept, same = loss["said"]
    assert lead == (
        "Compared with plain where the last task was learnt as far, 1 of 2 arms keep more of the first task (kept); for 1 "
        "neither is shown (same): 12 runs of each arm of 6 task pairs."
    )
    assert kept.startswith("kept forgot 2.80 nats less than plain at matched learning (95% interval 2.80 to 2.80), p ")
    assert same.startswith("It is not shown that same forgets more or less than plain at matched learning: ")
    assert loss["curves"]["kept"]["moved"]
    assert loss["curves"]["kept"]["end"] == pytest.approx((0.75, 0.2))
    table, areas = frontier_tables({"frontiers": [loss], "titles": {}})
    assert [row[0] for row in table.rows] == ["kept", "same"]
    assert areas.rows[0] == ("plain", "1.00 [1.00, 1.00]", "12", "0")
    assert "None of kept: only the end counts" in areas.note
    assert table.rows[0][1:5] == ("-2.80 [-2.80, -2.80]", "< 0.001", "more", "75%")


def test_items_that_were_not_learnt_are_said_to_be_so() -> None:
    """Learnt by 1 nat on the way, and 1 nat worse in the end."""
    found = [
        dataclasses.replace(record, frontiers={"loss": FrontierRecord((0.0, 1.0, -1.0), (0.0, 0.5, 2.0))})
        for record in records()
        if record.arm != "kept"
    ]
    runs = [Run(record.pair, {**record.factors, "arm": record.arm}, first_task=record.tasks[0]) for record in found]
    (loss,) = matched_learning(found, runs, ("plain", "same"), "plain", seed=0)
    lead, _, unlearnt = loss["said"]
    assert "learnt as far, no arm is shown to keep more of the first task, or less (same): 12 runs" in lead
    assert unlearnt.startswith(
        "With plain the last task's items that were scored on the way were in the end no better known"
    )


def test_arms_are_the_points_of_what_goes_with_forgetting_across_methods() -> None:
    """Ten arms whose KL changes as their forgetting does, and whose |D| changes by nothing that has to do with it."""
    order, rng, made = np.arange(1, 11), np.random.default_rng(3), []
    drawn = rng.permutation(order)
    for pair in range(6):
        for n, arm in enumerate(["plain", *(f"arm {k}" for k in order)]):
            path = tuple((1 + 0.1 * n) * x for x in LEARNING)
            measures = {
                "divergence": pair + float(n) ** 2,
                "update_norm": float(drawn[n - 1]) if n else 0.0,
                "trace": 1.0 + n,
            }
            made.append(
                CellRecord(
                    cell=f"{pair}{n}", pair=f"a{pair} > b", tasks=(f"a{pair}", "b"), factors={"seed": 0}, arm=arm,
                    measures=measures, outcomes={}, stderrs={}, frontiers={"loss": FrontierRecord(LEARNING, path)}, versions={},
                )
            )  # fmt: skip
    runs = [Run(r.pair, {**r.factors, "arm": r.arm}, r.measures, first_task=r.tasks[0]) for r in made]
    (loss,) = matched_learning(made, runs, ("plain", *(f"arm {k}" for k in order)), "plain", seed=0)
    measures = ("divergence", "update_norm", "trace")
    across = across_arms(runs, loss, measures, "divergence", seed=0)
    assert across is not None
    assert set(across.measures) == {"divergence", "update_norm"}  # the trace is made before arms differ
    divergence, norm = across.measures["divergence"], across.measures["update_norm"]
    assert divergence.spearman_within_pairs is not None
    assert divergence.spearman_within_pairs.value == pytest.approx(1.0)
    assert (divergence.n_runs, divergence.shown) == (10, True)
    assert norm.spearman_within_pairs is not None
    assert norm.spearman_within_pairs.value == pytest.approx(spearmanr(order, drawn).statistic)
    assert describe_across(divergence).startswith(
        "Arms with a larger change of divergence have more forgetting at matched learning: Spearman +1.00"
    )
    loss["across"] = dataclasses.asdict(across)
    *_, table = frontier_tables({"frontiers": [loss], "titles": {}})
    assert table.rows[0][0] == "divergence*"
    assert across_arms(runs, loss, measures, "absent", seed=0) is None


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
def test_the_report_leads_with_the_methods(tmp_path: Path, measured: bool) -> None:
    """Sentence, tables, figures and page of records that were scored on the way, whatever else was measured."""
    numbers = {"forgetting_loss": 1.0, "learning_loss": 2.0, "retention_loss": 1.0}
    made = tuple(
        dataclasses.replace(r, measures={"divergence": 1.0 + n % 7} if measured else {}, outcomes=numbers)
        for n, r in enumerate(records())
    )
    analysis = Analysis(primary="divergence", measures=("divergence",), baseline="plain")
    stored = StudyRecords("methods", {}, 36, ("plain", "kept", "same"), analysis, {}, made, "embedded", "skills")
    content = write_report(stored, tmp_path)
    (question, (lead, *_)), *_ = conclusions(content)
    assert question == "Which methods keep more of the first task where the last one was learnt as far?"
    assert lead.startswith("Compared with plain where the last task was learnt as far, 1 of 2 arms keep more")
    assert conclusions(content)[1][0] == "Does KL on new items go with forgetting?"
    assert "study_frontiers_loss.png" in content["figures"]
    page = study_page(content)
    assert page.answers[0][1][0] == lead
    section = next(section for section in page.sections if section.name == "methods")
    plots = next(block for block in section.blocks if isinstance(block, Figures)).plots
    assert [plot.heading for plot in plots] == ["kept: keeps more", "same: not shown"]
    assert "## At matched learning (loss, nats)" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "report.html").stat().st_size > 1e6
