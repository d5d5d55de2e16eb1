"""Forecast against observed as dots: the numbers of results.json, and bars from items.jsonl."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from runs import SmokeRun
from small_records import small_results

from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.report.html.axes import ticks_of
from llm_forgetting.report.html.blocks import Figures, Numbers, Prose
from llm_forgetting.report.html.forecasts import forecast_blocks, forecast_plot, forecast_scale
from llm_forgetting.report.tables.curvature import forecast_table
from llm_forgetting.report.tables.markdown import results_markdown
from llm_forgetting.report.views.axis_scale import AxisScale
from llm_forgetting.report.views.forecasts import ComparedForecast, compared_forecasts, forecast_sentence
from llm_forgetting.results import Results, read_items


@pytest.fixture
def results(smoke_run: SmokeRun) -> Results:
    return from_plain(Results, copy.deepcopy(smoke_run.results))


def entry(
    first: float, second: float, observed: float, stderr: float | None = None, split: str = "train"
) -> ComparedForecast:
    return ComparedForecast(
        "maths, trained, one to two", split, {"first_order": first, "second_order": second}, observed, stderr, 8
    )


def test_every_forecast_is_a_dot_at_its_numbers(results: Results, smoke_run: SmokeRun) -> None:
    *_, figures, table = forecast_blocks(results, read_items(smoke_run.path))
    assert isinstance(figures, Figures)
    assert isinstance(table, Numbers)
    (plot,) = figures.plots
    named = {trace["name"]: trace for trace in plot.data}
    forecasts = results.forecasts[0].tasks["synthetic_1"]
    for split, word in (("train", "trained"), ("test", "held-out")):
        for key, label in (("first_order", "first order"), ("second_order", "second order")):
            dot = named[f"{label}, {word}"]
            assert dot["x"] == pytest.approx([getattr(forecasts[split], key)], rel=1e-4)
            assert dot["y"] == pytest.approx([forecasts[split].observed], rel=1e-4)
    assert named["forecast = observed"]["x"] == named["forecast = observed"]["y"]
    assert f"observed {forecasts['train'].observed:.1f}" in plot.alt


def test_a_curvature_by_differences_has_half_its_error_beside_the_second_order() -> None:
    results = small_results()
    step = results.forecasts[0]
    splits = {
        "train": replace(step.tasks["first"]["train"], curvature_error=0.4),
        "test": step.tasks["first"]["test"],
    }
    rows = forecast_table(replace(results, forecasts=(replace(step, tasks={"first": splits}),))).rows
    assert [row[3] for row in rows] == ["1.0 ± 0.2", "2.00"]


def test_bars_are_of_paired_differences_over_the_same_items(results: Results, smoke_run: SmokeRun) -> None:
    items = read_items(smoke_run.path)
    chosen = results.forecasts[0].tasks["synthetic_1"]["train"]
    losses = {(i.checkpoint, i.id): i.loss for i in items if isinstance(i, ItemRecord) and i.task == "synthetic_1"}
    changes = np.array([losses["after_task2", item] - losses["after_task1", item] for item in chosen.items])
    forecast = compared_forecasts(results, items)[0]
    assert forecast.stderr == pytest.approx(changes.std(ddof=1) / len(changes) ** 0.5)
    assert changes.mean() == pytest.approx(forecast.observed, abs=1e-4)
    assert compared_forecasts(results, [])[0].stderr is None
    bare = forecast_plot(compared_forecasts(results, []))
    assert not any("standard error" in fact for fact in bare.facts)


def test_a_forecast_outside_of_the_observed_interval_failed_and_that_is_said(
    results: Results, smoke_run: SmokeRun
) -> None:
    # Student's t of seven degrees of freedom: 2.3646, so the interval of 0.87 reaches from 0.40 to 1.34.
    holds, fails, unknown = entry(0.1, 1.33, 0.87, 0.2), entry(0.1, 1.35, 0.87, 0.2), entry(0.1, 99.0, 0.87)
    assert [each.failed for each in (holds, fails, unknown)] == [False, True, False]
    assert forecast_sentence([holds, unknown]) == ""
    said = "The forecast failed (maths, trained, one to two: second order 1.35, observed 0.9 ± 0.2 nats)."
    assert forecast_sentence([holds, fails]) == said
    items = [
        replace(item, loss=0.0) if isinstance(item, ItemRecord) and item.checkpoint == "after_task2" else item
        for item in read_items(smoke_run.path)
    ]
    assert "The forecast failed (synthetic 1, trained" in results_markdown(results, items)
    assert "The forecast failed" not in results_markdown(results)


def test_an_axis_is_even_until_a_forecast_lies_far_out() -> None:
    assert forecast_scale([entry(0.1, 3.0, 1.0)]) == forecast_scale([entry(0.1, 3.0, 0.0)]) == AxisScale()
    far = forecast_scale([entry(-0.5, 2454.0, 0.4)])
    assert far == AxisScale("asinh", 0.4)
    ticks = ticks_of(far, np.array([-0.5, 0.4, 2454.0]))
    numbers = [float(text) for text in ticks["ticktext"]]
    assert 0.0 in numbers
    assert max(numbers) in (1000, 2000, 5000)
    np.testing.assert_allclose(np.sinh(ticks["tickvals"]) * 0.4, numbers, rtol=1e-3, atol=1e-6)


def test_bars_keep_their_ends_on_a_stretched_axis() -> None:
    plot = forecast_plot([entry(-0.5, 2454.0, 0.4, 0.1)])
    dot = plot.data[1]
    ends = [dot["y"][0] + dot["error_y"]["array"][0], dot["y"][0] - dot["error_y"]["arrayminus"][0]]
    np.testing.assert_allclose(np.sinh(ends) * 0.4, [0.5, 0.3], rtol=1e-3)
    assert plot.facts[-1] == "axes even within 0.4 nats, logarithmic beyond"


def test_numbers_that_are_not_finite_leave_gaps() -> None:
    plot = forecast_plot([entry(math.nan, math.inf, math.nan), entry(0.1, 0.2, 0.3)])
    assert plot.data[1]["x"] == [None, 0.1]
    assert all(math.isfinite(end) for end in plot.layout["xaxis"]["range"])


def test_many_entries_are_told_by_the_table() -> None:
    assert "7 entries" in forecast_plot([entry(0.1, 0.2, 0.3, split=split) for split in ("train", *["test"] * 6)]).alt


def test_without_forecasts_a_sentence_stands_there(results: Results) -> None:
    (block,) = forecast_blocks(replace(results, forecasts=()), [])
    assert isinstance(block, Prose)
