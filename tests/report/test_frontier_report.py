"""What a run that was scored during its trainings shows: table, plots, figure, rows, and results.json read again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from small_records import small_results

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.run_results import RunResults
from llm_forgetting.files import decode, encode
from llm_forgetting.forgetting.frontier import ScoresDuring, TaskScoresDuring
from llm_forgetting.report.figures.frontier import frontier_figure
from llm_forgetting.report.html.blocks import Figures
from llm_forgetting.report.html.frontier import frontier_blocks
from llm_forgetting.report.rows import during_rows
from llm_forgetting.report.tables.frontier import frontier_table
from llm_forgetting.report.tables.markdown import results_markdown
from llm_forgetting.report.views.frontier import frontier_views, learning_curves
from llm_forgetting.results import Results


def scores(task: str, right: list[int], loss: list[float]) -> TaskScoresDuring:
    """Four items, of which the first so many are right at each point, all with one loss."""
    correct = np.arange(4) < np.array(right)[:, None]
    return TaskScoresDuring(task, ("a", "b", "c", "d"), correct, np.repeat(np.array(loss)[:, None], 4, axis=1))


@pytest.fixture
def results() -> Results:
    """While the second task goes from 0 to 2 to 4 right, the first goes from 4 to 3 to 0."""
    first = scores("first", [4, 3, 0], [0.5, 1.0, 3.0])
    during = ScoresDuring("test", 10, (0, 5, 10), (first, scores("second", [0, 2, 4], [2.0, 1.0, 0.0])))
    alone = ScoresDuring("test", 10, (0, 10), (scores("first", [0, 4], [2.0, 0.5]),))
    made = small_results()
    training = [
        dataclasses.replace(made.training[0], task=name, during=scored)
        for name, scored in (("first", alone), ("second", during))
    ]
    return dataclasses.replace(made, training=tuple(training))


def test_forgetting_at_matched_learning_by_hand(results: Results) -> None:
    """Accuracy: (0, 0), (1/2, 1/4), (1, 1); loss: (0, 0), (1, 1/2), (2, 5/2). 1/4 is half way to 1/2."""
    rows = frontier_table(results).rows
    assert [row[3:5] for row in rows] == [
        ("0.25", "0.12"), ("0.50", "0.25"), ("0.75", "0.62"), ("1.00", "1.00"),
        ("0.50", "0.25"), ("1.00", "0.50"), ("1.50", "1.50"), ("2.00", "2.50"),
    ]  # fmt: skip
    assert [row[5] for row in rows] == ["0.06", "0.12", "0.23", "0.38", "0.12", "0.25", "0.50", "0.88"]
    assert {row[:2] for row in rows} == {("second", "first")}
    assert "4 held-out items" in frontier_table(results).note


def test_items_that_were_not_learnt_are_said_to_be_so(results: Results) -> None:
    """The loss of `second` goes from 2 to 1, and ends at 3.5."""
    assert "not learnt" not in frontier_table(results).note
    training = results.training[1]
    assert training.during is not None
    tasks = (training.during.tasks[0], scores("second", [0, 2, 1], [2.0, 1.0, 3.5]))
    worse = dataclasses.replace(training, during=dataclasses.replace(training.during, tasks=tasks))
    note = frontier_table(dataclasses.replace(results, training=(results.training[0], worse))).note
    assert "In the end the loss of second on these items was 1.50 nats higher than before its training" in note
    assert "evaluation.during_split train" in note


def test_an_end_that_a_method_moved_to_stands_apart(results: Results) -> None:
    """The last point as a merge's: the frontier ends at (1, 1/2) in loss, and the end is (2, 5/2)."""
    training = results.training[1]
    assert training.during is not None
    moved = dataclasses.replace(training, during=dataclasses.replace(training.during, moved=True))
    made = dataclasses.replace(results, training=(results.training[0], moved))
    table = frontier_table(made)
    assert [row[3:5] for row in table.rows if row[2] == "loss (nats)"] == [
        ("0.25", "0.12"), ("0.50", "0.25"), ("0.75", "0.38"), ("1.00", "0.50"), ("2.00 (end)", "2.50"),
    ]  # fmt: skip
    assert "end: after a method moved the model" in table.note
    _, loss = frontier_views(made)
    assert (loss.end, loss.moved, loss.learning.tolist()) == ((2.0, 2.5), True, [0.0, 1.0])
    (block,) = frontier_blocks(made)
    assert isinstance(block, Figures)
    assert "In the end 2.50 forgotten for 2.00 learnt (nats)" in block.plots[3].alt
    assert [spec["x"] for spec in block.plots[3].data][1] == [2.0]
    figure = frontier_figure([moved.during] if moved.during else [], list(frontier_views(made)))
    assert figure.axes[-1].lines[-2].get_marker() == "*"


def test_the_frontier_from_python(results: Results, tmp_path: Path) -> None:
    run = RunResults(json.loads(encode(results)), tmp_path)
    loss = run.frontier[run.frontier.measure == "loss"]
    assert loss[["step", "learning", "forgetting"]].to_numpy().tolist() == [[0, 0, 0], [5, 1, 0.5], [10, 2, 2.5]]
    found = run.forgetting_at(1.5)
    assert found is not None
    assert (found.value, found.low, found.items) == (1.5, None, 4)
    assert run.forgetting_at(0.25, measure="accuracy").value == pytest.approx(0.125)  # type: ignore[union-attr]
    assert run.forgetting_at(2.5) is None
    with pytest.raises(UserError, match=r"forgetting_at needs a task that was scored .* \(first\), was 'other'"):
        run.forgetting_at(1.0, "other")


def test_errors_are_of_paired_changes(results: Results) -> None:
    """At the middle point one of four first items was lost: sd of (1, 0, 0, 0) over 2."""
    accuracy, loss = frontier_views(results)
    assert accuracy.forgetting_stderr is not None
    np.testing.assert_allclose(accuracy.forgetting_stderr, [0, 0.25, 0])
    assert loss.forgetting_stderr is not None
    np.testing.assert_allclose(loss.forgetting_stderr, 0, atol=1e-15)


def test_page_figure_rows_and_markdown_show_it(results: Results) -> None:
    (block,) = frontier_blocks(results)
    assert isinstance(block, Figures)
    assert [plot.heading for plot in block.plots] == [
        "Learning curves: first",
        "Learning curves: second",
        "Frontier in accuracy: second learnt, first forgotten",
        "Frontier in loss: second learnt, first forgotten",
    ]
    assert "first from 0.50 to 3.00 nats; second from 2.00 to 0.00 nats" in block.plots[1].alt
    trainings = [training.during for training in results.training if training.during is not None]
    figure = frontier_figure(trainings, list(frontier_views(results)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Learning first", "Learning second", "Frontier in accuracy", "Frontier in loss",
    ]  # fmt: skip
    np.testing.assert_allclose(figure.axes[3].lines[0].get_xydata(), [[0, 0], [1, 0.5], [2, 2.5]])
    assert "Forgetting at matched learning" in results_markdown(results)
    rows = during_rows(results)
    assert len(rows) == 2 + 3 * 2
    assert rows[4] == {
        "learnt": "second", "task": "first", "step": 5, "fraction": 0.5, "accuracy": 0.75, "loss": 1.0, "items": 4,
    }  # fmt: skip


def test_results_are_read_again(results: Results) -> None:
    again = decode(Results, encode(results))
    during = again.training[1].during
    assert during is not None
    np.testing.assert_array_equal(during.tasks[0].correct, results.training[1].during.tasks[0].correct)  # type: ignore[union-attr]
    assert [curve.task for curve in learning_curves(during)] == ["first", "second"]


def test_without_scores_nothing_is_shown() -> None:
    made = small_results()
    assert frontier_blocks(made) == []
    assert frontier_table(made).rows == ()
    assert during_rows(made) == []
    assert "matched learning" not in results_markdown(made)
    assert all("during" not in training for training in json.loads(encode(made))["training"])
