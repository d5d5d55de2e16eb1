"""Results as rows: every number of a run that was written down by hand at its place, and none made up."""

import math
from dataclasses import replace
from typing import Any

import pytest
from small_records import CHECKPOINTS, CORRECT, HIGH, LETTER_MASS, LOSSES, LOW, TASKS, landscape, small_results

from llm_forgetting.files import decode, encode
from llm_forgetting.report.rows import (
    Row,
    curvature_rows,
    forecast_rows,
    forgetting_rows,
    landscape_rows,
    scalars,
    score_rows,
    training_rows,
)
from llm_forgetting.results import Results


@pytest.fixture(scope="module", params=["made", "read back"])
def results(request: pytest.FixtureRequest) -> Results:
    made = small_results()
    return made if request.param == "made" else decode(Results, encode(made), extra="forbid")


def one(rows: list[Row], **where: str) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return row


def test_a_score_row_is_a_cell_of_r(results: Results) -> None:
    rows = score_rows(results)
    assert len(rows) == 2 * 3 * 2
    for split in ("train", "test"):
        for i, checkpoint in enumerate(CHECKPOINTS):
            for j, task in enumerate(TASKS):
                accuracy, loss = CORRECT[split][i][j] / 10, LOSSES[split][i][j]
                expected = {
                    "checkpoint": checkpoint, "task": task, "split": split,
                    "accuracy": accuracy, "accuracy_stderr": 0.15625,
                    "accuracy_low": accuracy - LOW, "accuracy_high": accuracy + HIGH,
                    "loss": loss, "loss_stderr": 0.03125, "loss_low": None, "loss_high": None,
                    "letter_mass": LETTER_MASS[i][j], "items": 10,
                }  # fmt: skip
                assert str(one(rows, split=split, checkpoint=checkpoint, task=task)) == str(expected)  # one loss is NaN
    assert [(row["split"], row["checkpoint"], row["task"]) for row in rows[:3]] == [
        ("train", "initial", "first"),
        ("train", "initial", "second"),
        ("train", "after_task1", "first"),
    ]


def test_forgetting_is_before_minus_after_in_accuracy_and_after_minus_before_in_loss(results: Results) -> None:
    rows = forgetting_rows(results)
    columns = ("split", "measure", "task", "before", "after", "forgetting", "forgetting_low", "forgetting_high")
    assert [tuple(row[name] for name in columns) for row in rows[:3]] == [
        ("train", "accuracy", "first", 1.0, 0.7, 0.3, 0.3 - LOW, 0.3 + HIGH),
        ("train", "loss", "first", 0.25, 0.75, 0.5, 0.375, 0.5625),
        ("test", "accuracy", "first", 0.8, 0.5, 0.3, 0.3 - LOW, 0.3 + HIGH),
    ]
    assert {(row["forgetting_stderr"], row["items"]) for row in rows} == {(0.0625, 10)}
    (diverged,) = rows[3:]
    assert (diverged["split"], diverged["measure"], diverged["before"]) == ("test", "loss", 0.5)
    assert math.isnan(float(diverged["after"] or 0))
    assert math.isnan(float(diverged["forgetting"] or 0))


def test_landscapes_have_a_row_each_and_what_was_not_measured_is_none(results: Results) -> None:
    first, nan, *grids = landscape_rows(results)
    assert first == {
        "checkpoint": "after_task1", "task": "first", "space": "adapter", "distance": 1.0, "centre_loss": 0.25,
        "mean_rise": 1.5, "mean_rise_stderr": 0.25, "curvature": 3.5, "curvature_error": 0.5, "range": 2.75,
        "basin_radius": 0.375, "fit_error": 0.015625, "converged": True,
    }  # fmt: skip
    assert (nan["checkpoint"], nan["task"]) == ("after_task1", "second")
    assert math.isnan(float(nan["mean_rise"] or 0))
    unmeasured = {"curvature_error": None, "basin_radius": None, "fit_error": None, "converged": None}
    assert grids == [
        {**first, **unmeasured, "checkpoint": "after_task2", "task": task, "mean_rise": rise}
        for task, rise in (("first", 2.5), ("second", -0.5))
    ]


def test_spectra_forecasts_and_training_have_a_row_each(results: Results) -> None:
    assert curvature_rows(results) == [
        {
            "checkpoint": "after_task1", "largest_eigenvalue": 8.0, "largest_eigenvalue_residual": 0.125,
            "smallest_eigenvalue": -1.0, "trace": 9.0, "trace_stderr": 0.75, "gradient_norm": 0.375,
            "average_sharpness": 0.1875, "average_sharpness_stderr": 0.0625, "worst_sharpness": 0.75,
        }
    ]  # fmt: skip
    assert forecast_rows(results) == [
        {
            "from": "after_task1", "to": "after_task2", "task": "first", "split": split, "first_order": -0.5,
            "second_order": second, "curvature": 3.0, "observed": 0.625,
        }
        for split, second in (("train", 1.0), ("test", 2.0))
    ]  # fmt: skip
    steps = {"grad_norm": 2.0, "learning_rate": 0.01}
    assert training_rows(results) == [
        {"task": task, "epoch": epoch, "step": step, "loss": loss, **steps}
        for task, epoch, step, loss in (
            ("first", 0.5, 1, 1.5), ("first", 1.0, 2, 0.5),
            ("second", 0.5, 1, 1.25), ("second", 1.0, 2, 0.75), ("second", 1.5, 3, 0.5),
        )
    ]  # fmt: skip


def test_scalars_stand_at_the_step_of_their_checkpoint(results: Results) -> None:
    base, first, last = steps = scalars(results)
    assert [step["scores/train/first/accuracy"] for step in steps] == [0.3, 1.0, 0.7]
    assert [step["scores/test/second/loss"] for step in steps] == [1.5, 1.75, 1.0]
    assert {name.partition("/")[0] for name in base} == {"scores"}
    assert {name.partition("/")[0] for name in first} == {"scores", "landscape", "curvature"}
    assert {name.partition("/")[0] for name in last} == {"scores", "landscape", "forgetting", "forecast"}
    assert first["landscape/first/mean_rise"] == 1.5
    assert math.isnan(first["landscape/second/mean_rise"])
    assert first["curvature/largest_eigenvalue"] == 8.0
    assert last["landscape/second/mean_rise"] == -0.5
    assert "landscape/second/fit_error" not in last
    assert last["forgetting/train/first/loss/forgetting"] == 0.5
    assert last["forecast/test/first/second_order"] == 2.0
    assert all(type(value) is float for step in steps for value in step.values())


@pytest.mark.parametrize(("note", "converged"), [(None, True), ("1 of 8 points are not finite", False)])
def test_a_grid_that_stands_for_a_fit_is_not_converged(note: str | None, converged: bool) -> None:
    scanned = replace(landscape({"first": 1.0}, fitted=False), fit=None, note=note)
    assert scanned.surface("first", 0).converged == converged
