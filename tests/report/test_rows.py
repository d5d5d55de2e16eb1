"""results.json as rows: every number at its place, and none made up."""

import math
from typing import Any

import pytest
from runs import SmokeRun

from llm_forgetting.report.rows import (
    curvature_rows,
    forecast_rows,
    forgetting_rows,
    landscape_rows,
    scalars,
    score_rows,
    training_rows,
)

TASKS = ["synthetic_1", "synthetic_2"]


@pytest.fixture(scope="module")
def results(smoke_run: SmokeRun) -> dict[str, Any]:
    return smoke_run.results


def one(rows: list[dict[str, Any]], **where: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


def test_a_score_row_is_a_cell_of_r(results: dict[str, Any]) -> None:
    rows = score_rows(results)
    assert len(rows) == 2 * 3 * 2
    for split, found in results["forgetting"].items():
        for i, checkpoint in enumerate(found["checkpoints"]):
            for j, task in enumerate(TASKS):
                row = one(rows, split=split, checkpoint=checkpoint, task=task)
                cell = found["accuracy"]["cells"][i][j]
                assert row["accuracy"] == cell["value"]
                assert row["accuracy_low"] == cell["interval"]["low"]
                assert row["loss"] == found["loss"]["cells"][i][j]["value"]
                assert row["loss_stderr"] == found["loss"]["cells"][i][j]["stderr"]
                assert row["letter_mass"] == found["letter_mass"][i][j]
                assert row["items"] == 48


def test_forgetting_is_before_minus_after_in_accuracy_and_after_minus_before_in_loss(results: dict[str, Any]) -> None:
    rows = forgetting_rows(results)
    assert {(row["task"], row["split"], row["measure"]) for row in rows} == {
        ("synthetic_1", split, measure) for split in ("train", "test") for measure in ("accuracy", "loss")
    }
    for row in rows:
        sign = 1 if row["measure"] == "accuracy" else -1
        assert row["forgetting"] == pytest.approx(sign * (row["before"] - row["after"]), abs=1e-12)
        assert row["forgetting_low"] <= row["forgetting"] <= row["forgetting_high"]


def test_landscapes_forecasts_and_training_have_a_row_each(results: dict[str, Any]) -> None:
    rows = landscape_rows(results)
    assert [(row["checkpoint"], row["task"]) for row in rows] == [
        (checkpoint, task) for checkpoint in ("after_task1", "after_task2") for task in TASKS
    ]
    for row in rows:
        surface = results["landscapes"][row["checkpoint"]]["surfaces"][row["task"]]
        assert (row["mean_rise"], row["mean_rise_stderr"]) == (
            surface["mean_rise"]["value"],
            surface["mean_rise"]["stderr"],
        )
        assert row["fit_error"] == surface["error"]["largest"]
        assert row["converged"] is results["landscapes"][row["checkpoint"]]["fit"]["converged"]
    assert {row["split"] for row in forecast_rows(results)} == {"train", "test"}
    for row in forecast_rows(results):
        assert row["second_order"] == pytest.approx(row["first_order"] + row["curvature"] / 2, rel=1e-6)
    assert len(training_rows(results)) == sum(phase["optimizer_steps"] for phase in results["training"])


def test_what_was_not_measured_is_none_and_what_is_not_finite_stays_so(results: dict[str, Any]) -> None:
    surface = results["landscapes"]["after_task1"]["surfaces"]["synthetic_1"]
    changed = {**surface, "error": None, "mean_rise": {"value": "nan", "stderr": None, "directions": 2}}
    grid = {**results["landscapes"]["after_task1"], "fit": None, "surfaces": {"synthetic_1": changed}}
    row = landscape_rows({**results, "landscapes": {"after_task1": grid}})[0]
    assert math.isnan(row["mean_rise"])
    assert row["mean_rise_stderr"] is row["fit_error"] is row["converged"] is None
    assert curvature_rows({**results, "curvature": {}}) == []


def test_scalars_stand_at_the_step_of_their_checkpoint(results: dict[str, Any]) -> None:
    base, first, last = scalars(results)
    cells = results["forgetting"]["train"]["accuracy"]["cells"]
    name = "scores/train/synthetic_1/accuracy"
    assert [base[name], first[name], last[name]] == [cells[i][0]["value"] for i in range(3)]
    assert not any(key.startswith(("landscape", "forgetting", "forecast")) for key in base)
    assert "landscape/synthetic_2/mean_rise" in first
    lost = results["forgetting"]["train"]["loss"]["tasks"][0]["absolute"]["value"]
    assert last["forgetting/train/synthetic_1/loss/forgetting"] == lost
    assert "forgetting/train/synthetic_1/loss/forgetting" not in first
    assert "forecast/train/synthetic_1/second_order" in last
    assert all(isinstance(value, float) for found in (base, first, last) for value in found.values())
