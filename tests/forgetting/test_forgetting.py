import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from llm_forgetting.arrays import standard_error
from llm_forgetting.forgetting.accuracy_matrix import (
    absolute_forgetting,
    average_accuracy,
    backward_transfer,
    forgetting_measure,
    forward_transfer,
    learning,
)
from llm_forgetting.forgetting.clusters import cluster_stderr
from llm_forgetting.forgetting.intervals import bonett_price_paired, paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.forgetting.measures import Forgetting, forgetting
from llm_forgetting.forgetting.scores import ItemScores, ScoreTable
from llm_forgetting.forgetting.verdict import detectable_drops, verdict

FOUR = np.array(
    [[0.80, 0.30, 0.25, 0.20], [0.70, 0.90, 0.35, 0.25], [0.90, 0.60, 0.85, 0.30], [0.65, 0.70, 0.80, 0.95]]
)
THREE = np.array([[0.8, 0.9, 0.2], [0.7, 0.6, 0.3], [0.6, 0.5, 0.9]])
NAMES = ("abstract_algebra", "anatomy", "virology", "astronomy")


def _cell(n: int, right: int, loss: float, spread: float = 0.1, stream: int = 0) -> ItemScores:
    rng = np.random.default_rng(stream)
    ids = tuple(f"item{k}" for k in range(n))
    return ItemScores(ids, ("subject",) * n, np.arange(n) < right, loss + spread * rng.normal(size=n))


def _table(right: list[list[int]], loss: list[list[float]], n: int = 40, spread: float = 0.1, split: str = "train"):
    """right[i][j - 1] of n items right, mean loss about loss[i][j - 1]."""
    T = len(right[0])
    scores = {
        (i, j): _cell(n, right[i][j - 1], loss[i][j - 1], spread, stream=10 * i + j)
        for i in range(T + 1)
        for j in range(1, T + 1)
    }
    return ScoreTable(scores, NAMES[:T], split)


def _two_tasks(
    right: tuple[int, int, int] = (7, 36, 11), loss: tuple[float, float, float] = (8.7, 0.3, 5.5), **options
) -> ScoreTable:
    """Task 1 as given for checkpoints 0, 1, 2; task 2 learnt at the last."""
    n = options.get("n", 40)
    counts = [list(row) for row in zip(right, (2, 3, n), strict=True)]
    losses = [list(row) for row in zip(loss, (6.0, 2.6, 0.1), strict=True)]
    return _table(counts, losses, **options)


def _result(*args, **options) -> Forgetting:
    return forgetting(_two_tasks(*args, **options), seed=0)


# Matrices, by hand and against Avalanche 0.6.0


def test_maximum_based_measure_excludes_the_last_checkpoint():
    assert forgetting_measure(FOUR, base_row=False) == pytest.approx(0.166667, abs=1e-6)
    assert forgetting_measure(THREE, base_row=False) == pytest.approx(0.30)
    rising = np.array([[0.5, 0.1], [0.7, 0.9]])
    assert forgetting_measure(rising, base_row=False) == pytest.approx(-0.2)


def test_what_was_not_measured_before_it_was_learnt_is_no_candidate():
    """By hand, of FOUR's lower triangle; a NaN among measured ones stays."""
    lower = np.where(np.tri(4, dtype=bool), FOUR, np.nan)
    expected = np.mean([max(FOUR[j:3, j]) - FOUR[3, j] for j in range(3)])
    assert forgetting_measure(lower, base_row=False) == pytest.approx(expected)
    broken = FOUR.copy()
    broken[0, 2] = np.nan
    assert math.isnan(forgetting_measure(broken, base_row=False))


def test_mean_forgetting_after_each_task_equals_avalanche():
    assert absolute_forgetting(FOUR, base_row=False) == pytest.approx([0.15, 0.20, 0.05])
    for after, expected in ((2, 0.1), (3, 0.1), (4, 0.133333)):
        assert backward_transfer(FOUR[:after, :after], base_row=False) == pytest.approx(-expected, abs=1e-6)
    assert absolute_forgetting(FOUR[:1, :1], base_row=False).size == 0
    assert backward_transfer(THREE, base_row=False) == pytest.approx(-0.15)


def test_the_base_row_serves_learning_and_forward_transfer_only():
    base = np.array([0.25, 0.20, 0.30, 0.10])
    R = np.vstack([base, FOUR])
    assert learning(R) == pytest.approx([0.55, 0.70, 0.55, 0.85])
    assert forward_transfer(R) == pytest.approx((0.10 + 0.05 + 0.20) / 3)
    assert average_accuracy(R) == average_accuracy(FOUR) == pytest.approx(0.775)
    assert backward_transfer(R) == backward_transfer(FOUR, base_row=False)
    assert forgetting_measure(R) == forgetting_measure(FOUR, base_row=False)
    better_base = np.vstack([np.ones(4), FOUR])
    assert forgetting_measure(better_base) == forgetting_measure(R)


def test_matrix_functions_do_not_mutate_and_refuse_wrong_shapes():
    R = np.vstack([np.full(4, 0.25), FOUR])
    kept = R.copy()
    R.flags.writeable = False
    for measure in (average_accuracy, backward_transfer, forgetting_measure, forward_transfer, learning):
        measure(R)
    assert np.array_equal(R, kept)
    for measure in (backward_transfer, forgetting_measure, forward_transfer, learning):
        with pytest.raises(ValueError, match="shape"):
            measure(FOUR)
    with pytest.raises(ValueError, match="shape"):
        backward_transfer(R, base_row=False)
    for measure in (backward_transfer, forgetting_measure, forward_transfer):
        with pytest.raises(ValueError, match="at least two tasks"):
            measure(np.array([[0.2], [0.8]]))


# Records


def test_table_refuses_other_items_or_another_order():
    scores = dict(_two_tasks().scores)
    cell = scores[2, 1]
    swapped = (cell.ids[1], cell.ids[0], *cell.ids[2:])
    scores[2, 1] = ItemScores(swapped, cell.subjects, cell.correct, cell.loss)
    with pytest.raises(ValueError, match=r"checkpoints 0 and 2 must hold the same items of task 1"):
        ScoreTable(scores, NAMES[:2], "train")


def test_table_refuses_missing_and_foreign_cells():
    scores = dict(_two_tasks().scores)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        ScoreTable({**scores, (3, 1): scores[2, 1]}, NAMES[:2], "train")
    del scores[0, 2]
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        ScoreTable(scores, NAMES[:2], "train")


def test_item_scores_copy_and_check():
    correct, loss = np.array([True, False]), np.array([1.0, 2.0])
    cell = ItemScores(("a", "b"), ("s", "s"), correct, loss)
    loss[0] = 9.0
    assert cell.loss[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        cell.loss[0] = 3.0
    with pytest.raises(ValueError, match="one entry per item"):
        ItemScores(("a", "b"), ("s", "s"), correct, np.ones(3))
    with pytest.raises(ValueError, match="one entry per item"):
        ItemScores((), (), np.array([]), np.array([]))
    with pytest.raises(ValueError, match="unique"):
        ItemScores(("a", "a"), ("s", "s"), correct, loss)


def test_matrices_have_the_base_row_first():
    table = _two_tasks()
    assert table.matrix("accuracy") == pytest.approx(np.array([[7, 2], [36, 3], [11, 40]]) / 40)
    assert table.matrix("loss") == pytest.approx(np.array([[8.7, 6.0], [0.3, 2.6], [5.5, 0.1]]), abs=0.06)
    assert table.matrix("loss")[2, 0] == table.scores[2, 1].loss.mean()


# One run of two tasks


def test_two_tasks_in_accuracy_by_hand():
    result = _result().accuracy
    (task,) = result.tasks
    assert (task.task, task.name, task.n) == (1, "abstract_algebra", 40)
    assert task.absolute.value == pytest.approx(25 / 40)
    assert task.relative.value == pytest.approx(25 / 36)
    assert task.normalised.value == pytest.approx(25 / 29)
    assert [x.learning.value for x in result.learning] == pytest.approx([29 / 40, 38 / 40])
    assert (result.learning[0].before, result.learning[0].after, result.learning[0].shown) == (7 / 40, 36 / 40, True)
    assert result.average.value == pytest.approx((11 + 40) / 80)
    assert result.backward_transfer.value == pytest.approx(-25 / 40)
    assert result.forgetting_measure.value == pytest.approx(25 / 40)
    assert result.forward_transfer.value == pytest.approx(1 / 40)
    expected = bonett_price_paired(25, 0, 40)
    assert (task.absolute.interval.low, task.absolute.interval.high) == pytest.approx((-expected.high, -expected.low))
    assert (task.change.only_before, task.change.only_after, task.change.value) == (25, 0, -25 / 40)


def test_two_tasks_in_loss_turn_the_sign():
    table = _two_tasks()
    result, L = forgetting(table, seed=0).loss, table.matrix("loss")
    (task,) = result.tasks
    assert task.absolute.value == pytest.approx(L[2, 0] - L[1, 0])
    assert task.relative.value == pytest.approx((L[2, 0] - L[1, 0]) / L[1, 0])
    assert task.normalised.value == pytest.approx((L[2, 0] - L[1, 0]) / (L[0, 0] - L[1, 0]))
    assert result.learning[1].learning.value == pytest.approx(L[0, 1] - L[2, 1])
    assert result.learning[1].learning.interval.low > 5
    assert result.average.value == pytest.approx(L[2].mean())
    assert result.backward_transfer.value == pytest.approx(L[1, 0] - L[2, 0])
    assert result.forgetting_measure.value == pytest.approx(L[2, 0] - L[1, 0])
    assert result.forward_transfer.value == pytest.approx(L[0, 1] - L[1, 1])
    assert task.absolute.interval.low < task.absolute.value < task.absolute.interval.high
    change = paired_mean_change(table.scores[1, 1].loss, table.scores[2, 1].loss, seed=0)
    assert task.absolute.stderr == pytest.approx(change.stderr)


def test_ratio_stderrs_agree_with_a_bootstrap():
    rng = np.random.default_rng(1)
    table = _two_tasks(spread=1.0, loss=(9.0, 3.0, 6.0), n=200, right=(40, 180, 60))
    task = forgetting(table, seed=0).loss.tasks[0]
    pick = rng.integers(0, 200, (4000, 200))
    base, tuned, last = (table.scores[i, 1].loss[pick].mean(axis=1) for i in range(3))
    assert task.relative.stderr == pytest.approx(np.std((last - tuned) / tuned), rel=0.06)
    assert task.normalised.stderr == pytest.approx(np.std((last - tuned) / (base - tuned)), rel=0.06)


def test_negative_forgetting_is_kept():
    result = _result(right=(7, 20, 36), loss=(8.0, 4.0, 3.0))
    for measure in (result.accuracy, result.loss):
        task = measure.tasks[0]
        for estimate in (task.absolute, task.relative, task.normalised, measure.forgetting_measure):
            assert estimate.value < -0.2
        assert measure.backward_transfer.value > 0.2


def test_normalised_forgetting_is_refused_when_nothing_was_learnt():
    fell = _result(right=(20, 12, 5), loss=(2.0, 3.0, 4.0))
    for measure in (fell.accuracy, fell.loss):
        assert measure.tasks[0].normalised.value is None
        assert "not positive" in measure.tasks[0].normalised.reason
        assert measure.tasks[0].absolute.value > 0
        assert not measure.learning[0].shown
    unclear = _result(right=(10, 14, 5), loss=(3.0, 2.9, 4.0), spread=2.0)
    assert "not distinguishable" in unclear.accuracy.tasks[0].normalised.reason
    assert "not distinguishable" in unclear.loss.tasks[0].normalised.reason
    assert unclear.loss.learning[0].learning.value > 0


def test_refusal_follows_the_exact_test():
    """Five gained and none lost: p = 0.0625; six: p = 0.03125."""
    assert _result(right=(10, 15, 5)).accuracy.tasks[0].normalised.value is None
    assert _result(right=(10, 16, 5)).accuracy.tasks[0].normalised.value == pytest.approx(11 / 6)


def test_relative_forgetting_is_refused_for_a_zero_denominator():
    scores = dict(_two_tasks(right=(5, 0, 3)).scores)
    cell = scores[1, 1]
    scores[1, 1] = ItemScores(cell.ids, cell.subjects, cell.correct, np.zeros(40))
    result = forgetting(ScoreTable(scores, NAMES[:2], "train"), seed=0)
    assert (result.accuracy.tasks[0].relative.value, result.loss.tasks[0].relative.value) == (None, None)
    assert result.accuracy.tasks[0].relative.reason == "accuracy after fine-tuning on the task is 0"
    assert result.accuracy.tasks[0].absolute.value == pytest.approx(-3 / 40)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_kept(bad):
    scores = dict(_two_tasks().scores)
    for i in (1, 2):
        cell = scores[i, 1]
        scores[i, 1] = ItemScores(cell.ids, cell.subjects, cell.correct, np.append(cell.loss[1:], bad))
    table = ScoreTable(scores, NAMES[:2], "train")
    result = forgetting(table, seed=0)
    task = result.loss.tasks[0]
    assert not math.isfinite(table.matrix("loss")[2, 0])
    assert result.loss.cells[2][0].value == pytest.approx(bad, nan_ok=True)
    assert result.loss.cells[2][0].stderr is None
    assert math.isnan(task.absolute.value)
    assert task.absolute.stderr is task.absolute.interval is task.change is task.normalised.value is None
    assert task.absolute.reason == task.relative.reason == "some losses are NaN or infinite"
    assert result.loss.backward_transfer.stderr is None
    assert result.loss.forward_transfer.stderr is not None
    assert result.accuracy.tasks[0].absolute.value == pytest.approx(25 / 40)
    assert "loss not finite" in verdict(result)


# Several tasks


RIGHT = [[10, 9, 12], [36, 15, 13], [38, 34, 20], [16, 30, 38]]
LOSS = [[5.0, 5.0, 5.0], [0.5, 4.0, 4.5], [0.3, 0.4, 4.2], [2.0, 1.0, 0.2]]


def test_three_tasks_agree_with_the_matrix_functions():
    table = _table(RIGHT, LOSS)
    result = forgetting(table, seed=0)
    R, L = table.matrix("accuracy"), table.matrix("loss")
    for measure, gains in ((result.accuracy, R), (result.loss, -L)):
        assert [task.absolute.value for task in measure.tasks] == pytest.approx(absolute_forgetting(gains))
        assert measure.backward_transfer.value == pytest.approx(-np.mean(absolute_forgetting(gains)))
        assert [x.learning.value for x in measure.learning] == pytest.approx(learning(gains))
    assert result.accuracy.forgetting_measure.value == pytest.approx(((38 - 16) + (34 - 30)) / 80)
    assert result.accuracy.backward_transfer.value == pytest.approx(-((36 - 16) + (34 - 30)) / 80)
    assert result.loss.forgetting_measure.value == pytest.approx(((L[3, 0] - L[2, 0]) + (L[3, 1] - L[2, 1])) / 2)
    assert result.accuracy.forward_transfer.value == pytest.approx(((15 - 9) + (20 - 12)) / 80)
    assert [[cell.value for cell in row] for row in result.accuracy.cells] == pytest.approx(R)
    assert np.array([[cell.value for cell in row] for row in result.loss.cells]) == pytest.approx(L)


def test_summary_stderrs_combine_independent_tasks():
    table = _table(RIGHT, LOSS)
    result = forgetting(table, seed=0).accuracy

    def stderr(j, i, k):
        return paired_proportion_change(table.scores[i, j].correct, table.scores[k, j].correct).stderr

    assert result.backward_transfer.stderr == pytest.approx(math.hypot(stderr(1, 1, 3), stderr(2, 2, 3)) / 2)
    assert result.forgetting_measure.stderr == pytest.approx(math.hypot(stderr(1, 2, 3), stderr(2, 2, 3)) / 2)
    assert result.forward_transfer.stderr == pytest.approx(math.hypot(stderr(2, 0, 1), stderr(3, 0, 2)) / 2)
    assert result.average.stderr == pytest.approx(math.hypot(*(cell.stderr for cell in result.cells[3])) / 3)


def test_tasks_of_several_subjects_have_the_error_over_subjects():
    """One subject in four keeps all that was right: 40 items tell a drop, 4 subjects do not."""
    table = _two_tasks()
    subjects = tuple(np.repeat(["algebra", "logic", "law", "virology"], 10).tolist())
    scores = {key: ItemScores(cell.ids, subjects, cell.correct, cell.loss) for key, cell in table.scores.items()}
    pooled, alone = (forgetting(each, seed=0) for each in (ScoreTable(scores, NAMES[:2], "train"), table))
    for measure, plain in ((pooled.accuracy, alone.accuracy), (pooled.loss, alone.loss)):
        task = measure.tasks[0]
        assert task.absolute.interval.method == "Student t over 4 subjects (cluster-robust)"
        d = scores[2, 1].values(measure.measure) - scores[1, 1].values(measure.measure)
        assert task.absolute.stderr == pytest.approx(max(cluster_stderr(d, subjects), standard_error(d)))
        assert measure.backward_transfer.stderr == pytest.approx(task.absolute.stderr)
        assert plain.tasks[0].change.clustered_stderr is None
        assert plain.tasks[0].absolute.stderr == pytest.approx(standard_error(d))
    assert alone.accuracy.tasks[0].absolute.interval.low > 0 > pooled.accuracy.tasks[0].absolute.interval.low
    assert detectable_drops(pooled)[0].drop > detectable_drops(alone)[0].drop


def test_results_are_plain_json_reproducible_and_leave_the_scores_alone():
    table = _table(RIGHT, LOSS)
    kept = {key: cell.loss.copy() for key, cell in table.scores.items()}
    result = forgetting(table, seed=0)
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["accuracy"]["tasks"][0]["name"] == "abstract_algebra"
    assert result == forgetting(table, seed=0)
    other = forgetting(table, seed=1)
    assert other.accuracy == result.accuracy
    assert other.loss.tasks[0].absolute.interval != result.loss.tasks[0].absolute.interval
    assert all(np.array_equal(cell.loss, kept[key]) for key, cell in table.scores.items())


def test_below_forty_items_there_is_no_interval():
    result = _result(right=(1, 9, 4), n=10)
    for measure in (result.accuracy, result.loss):
        assert measure.tasks[0].absolute.interval is None
        assert measure.tasks[0].absolute.reason == "fewer than 40 items: no interval"
        assert measure.cells[0][0].interval is None
    assert result.accuracy.tasks[0].absolute.value == pytest.approx(0.5)


# The sentence


def test_verdict_of_a_drop():
    interval = bonett_price_paired(25, 0, 40)
    said = verdict(_result())
    assert said.startswith(
        "After fine-tuning on anatomy, accuracy on the 40 trained abstract_algebra items fell from 0.90 to 0.28, "
        f"a drop of 0.62 (95% interval {-interval.high:.2f} to {-interval.low:.2f}; loss +5.2"
    )
    assert said.endswith(" nats); one seed.")
    assert " ± 0.0" in said


def test_verdict_of_few_items_gives_counts_only():
    said = verdict(_result(right=(1, 9, 4), n=10))
    assert "went from 9 to 4 of 10 items, too few items for an interval or a verdict; one seed." in said
    assert "95%" not in said
    assert "fell" not in said


def test_verdict_where_no_drop_can_be_shown():
    said = verdict(_result(right=(7, 36, 34), loss=(8.0, 0.5, 0.6)))
    assert "no drop could be shown" in said
    assert "95% interval -0.0" in said
    assert "with 40 items a drop below 19 points cannot be seen reliably; one seed." in said
    assert "fell" not in said


def test_verdict_where_nothing_was_learnt():
    said = verdict(_result(right=(8, 9, 8), loss=(3.0, 3.0, 3.0), spread=2.0))
    assert said.startswith("Nothing was learnt of abstract_algebra, so nothing could be forgotten")
    assert "from 0.20 to 0.23, and it ended at 0.20; one seed." in said or "from 0.20 to 0.22, and it" in said
    learnt_in_loss = verdict(_result(right=(8, 9, 8), loss=(8.0, 0.5, 0.6)))
    assert "no drop could be shown" in learnt_in_loss


def test_verdict_of_a_drop_in_what_the_base_model_knew():
    said = verdict(_result(right=(35, 36, 8), loss=(0.5, 0.5, 4.0)))
    assert "fell from 0.90 to 0.20" in said
    assert "had not measurably raised it (0.88 before)" in said


def test_verdict_of_a_rise():
    said = verdict(_result(right=(7, 20, 36), loss=(8.0, 4.0, 3.0)))
    assert "rose from 0.50 to 0.90, a gain of 0.40 (95% interval 0.22 to 0.5" in said
    assert "fell" not in said


def test_verdict_says_first_that_learning_is_not_shown():
    said = verdict(_result(right=(3, 4, 2), loss=(3.0, 3.0, 3.0), spread=2.0, n=10))
    assert said.startswith(
        "Learning of abstract_algebra is not shown: accuracy was 0.30 before fine-tuning on it and 0.40 after. After"
    )
    assert "not shown" not in verdict(_result())


def test_verdict_counts_more_than_four_earlier_tasks():
    """Six tasks: of the second most is lost, and the fourth was never learnt."""
    learnt, lost = [36, 38, 36, 10, 36, 36], [16, 8, 34, 10, 30, 36]
    right = [
        [10] * 6,
        *([lost[j] if i > j + 1 else learnt[j] if i == j + 1 else 10 for j in range(6)] for i in range(1, 7)),
    ]
    loss = [[0.2 if count > 20 else 5.0 for count in row] for row in right]
    scores = {
        (i, j): _cell(40, right[i][j - 1], loss[i][j - 1], stream=10 * i + j) for i in range(7) for j in range(1, 7)
    }
    result = forgetting(ScoreTable(scores, tuple("abcdef"), "train"), seed=0)
    said = verdict(result)
    assert said.startswith(
        "After fine-tuning on 5 more tasks, the last f, accuracy on the 40 trained a items fell from 0.90"
    )
    counted = "of all 5 earlier tasks the accuracy fell of 3, no drop could be shown of 1, nothing was learnt of 1"
    assert f"; {counted}; the most was lost of b (0.75 in accuracy); average forgetting " in said
    assert said.count("items") <= 3


def test_verdict_names_held_out_items_and_every_earlier_task():
    assert "40 held-out abstract_algebra items" in verdict(_result(split="test"))
    said = verdict(forgetting(_table(RIGHT, LOSS), seed=0))
    assert said.startswith("After fine-tuning on anatomy, then virology, accuracy on the 40 trained abstract_algebra")
    assert "no drop could be shown in accuracy on the 40 trained anatomy items" in said
    assert "average forgetting 0.30 ± " in said
    assert said.count("one seed") == 1


def test_verdict_of_a_single_task():
    result = forgetting(_table([[7], [36]], [[5.0], [0.5]]), seed=0)
    assert result.accuracy.tasks == ()
    assert result.accuracy.backward_transfer.reason == "needs at least two tasks"
    assert "cannot be measured" in verdict(result)
