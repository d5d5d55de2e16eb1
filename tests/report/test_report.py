"""Tables, from results.json and nothing else."""

import copy
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import SmokeRun

from llm_forgetting.errors import program
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.intervals import PairedProportionChange, proportion
from llm_forgetting.progress import duration
from llm_forgetting.report.html.run import run_page
from llm_forgetting.report.set_up import set_up
from llm_forgetting.report.tables.closing import closing_tables, landscape_sentence
from llm_forgetting.report.tables.landscape import between_table, comparison_table, flatness_table, landscape_table
from llm_forgetting.report.tables.markdown import all_tables, results_markdown
from llm_forgetting.report.tables.repair import repair_sentence
from llm_forgetting.report.tables.run import (
    Table,
    accuracy_matrix,
    counts,
    forgetting_table,
    measured,
    number,
    summary_table,
    value_and_error,
)
from llm_forgetting.report.tables.spurious import spurious_table
from llm_forgetting.report.terminal import Terminal
from llm_forgetting.results import RepairRecord, RepairScore, Results

Content = dict[str, Any]


@pytest.fixture
def results(smoke_run: SmokeRun) -> Content:
    return copy.deepcopy(smoke_run.results)


def record(results: Content) -> Results:
    return from_plain(Results, results)


# --- tables -----------------------------------------------------------------------------------------------------------------


def test_every_cell_of_r_is_in_the_table(results: Content) -> None:
    table = accuracy_matrix(record(results))
    assert table.header == ("task", "items", "base model", "after task 1", "after task 2")
    assert [row[0] for row in table.rows] == [
        f"synthetic {j}, {word}" for j in (1, 2) for word in ("trained", "held-out")
    ]
    for row, (j, split) in zip(table.rows, [(j, s) for j in (0, 1) for s in ("train", "test")], strict=True):
        cells = results["forgetting"][split]
        pairs = [(cells["accuracy"]["cells"][i][j]["value"], cells["loss"]["cells"][i][j]["value"]) for i in range(3)]
        assert row[1:] == ("48", *(f"{accuracy:.2f} / {loss:.2f}" for accuracy, loss in pairs))


def test_guessing_stands_below_every_table_of_accuracy(results: Content) -> None:
    for make in (accuracy_matrix, forgetting_table, summary_table, spurious_table):
        assert "Guessing: 0.25." in make(record(results)).note
    results["tasks"][1]["options"] = [2, 5]
    assert "Guessing: 0.25 on synthetic 1, 0.20 to 0.50 on synthetic 2." in accuracy_matrix(record(results)).note


def test_relearning_is_told_in_counts_and_what_was_not_recovered_is_said(results: Content) -> None:
    recovery = results["spurious"]["synthetic_1"]["recovery"]
    tuned, last, again = (recovery["accuracy"][name]["correct"] for name in ("tuned", "last", "recovered"))
    note = spurious_table(record(results)).note
    assert f"the other 38 went from {last} to {again} correct ({tuned} after its own training)." in note
    recovery["share"] = -0.5
    assert "Nothing was recovered." in spurious_table(record(results)).note


def test_forgetting_is_told_with_its_interval(results: Content) -> None:
    for row, split in zip(forgetting_table(record(results)).rows, ("train", "test"), strict=True):
        (accuracy,), (loss,) = (results["forgetting"][split][measure]["tasks"] for measure in ("accuracy", "loss"))
        for cell, estimate in ((row[2], accuracy["absolute"]), (row[5], loss["absolute"])):
            interval = estimate["interval"]
            assert cell == f"{estimate['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
        assert row[1] == "48"
        assert row[3] == f"{100 * accuracy['relative']['value']:.0f}%"
        assert row[4] == f"{100 * accuracy['normalised']['value']:.0f}%"


def test_what_was_refused_is_a_dash_and_too_few_items_have_no_interval(results: Content) -> None:
    task = results["forgetting"]["train"]["accuracy"]["tasks"][0]
    task["absolute"].update(value=0.25, stderr=0.1, interval=None)
    task["normalised"].update(value=None, stderr=None, interval=None)
    row = forgetting_table(record(results)).rows[0]
    assert row[2] == "0.25 ± 0.10"
    assert row[4] == "-"
    task["absolute"].update(stderr=None)
    assert forgetting_table(record(results)).rows[0][2] == "0.25"


def test_summaries_landscapes_and_comparisons_are_all_there(results: Content) -> None:
    assert len(summary_table(record(results)).rows) == 2 * 4
    landscape, flatness = landscape_table(record(results)), flatness_table(record(results))
    assert len(landscape.rows) == len(flatness.rows) == 2 * 2
    surface = results["landscapes"]["after_task2"]["surfaces"]["synthetic_1"]
    metrics, rise = surface["metrics"], surface["mean_rise"]
    (row,) = (row for row in landscape.rows if "synthetic 1" in row[0] and "after task 2" in row[0])
    assert row[2:5] == tuple(f"{metrics[k]:.2f}" for k in ("centre", "maximum", "standard_deviation"))
    assert row[1] == str(len(surface["items"])) == "32"
    assert row[5] == f"{metrics['range']:.2f}"
    (row,) = (row for row in flatness.rows if "synthetic 1" in row[0] and "after task 2" in row[0])
    assert row[1:3] == ("32", value_and_error(metrics["curvature_centre"], metrics["curvature_centre_error"]))
    assert "±" in row[2]
    assert row[3] == value_and_error(rise["value"], rise["stderr"])
    assert row[5] == f"{100 * metrics['share_within']:.0f}%"
    assert f"over {results['config']['landscape']['directions']} directions" in flatness.note
    compared = results["landscape_comparison"]
    for entry, verdict in zip(compared, ("no verdict: not a minimum", "flatter"), strict=True):
        entry["verdict"] = verdict
    table = comparison_table(record(results))
    assert [row[-1] for row in table.rows] == ["no verdict: not a minimum", "flatter"]
    scale, rise = compared[0]["relative_scale"], compared[0]["mean_rise"]
    assert table.rows[0][1:4] == ("32", "4", f"{scale['before']:.2f} to {scale['after']:.2f}")
    assert table.rows[0][4:6] == (f"{rise['before']:.3f}", f"{rise['after']:.3f}")
    del compared[0]["verdict"]
    assert comparison_table(record(results)).rows[0][-1] == "not judged (older run)"


@pytest.mark.parametrize(
    ("relative", "text"),
    [(0.0034, "0.4%"), (0.00034, "0.04%"), (0.01, "1%"), (0.0, "0.01%"), (0.0101, "1.1%, not converged"),
     (0.2417, "25%, not converged"), ("nan", "nan%, not converged")],
)  # fmt: skip
def test_a_fitted_surface_says_what_it_cost_and_how_far_off_it_is(
    results: Content, relative: float | str, text: str
) -> None:
    for count, landscape in enumerate(results["landscapes"].values(), start=31):
        landscape["fit"].update(evaluations=count, tolerance=0.01)
        for found in landscape["surfaces"].values():
            found["error"]["relative"] = relative
    table = landscape_table(record(results))
    assert table.header[-1] == "error"
    assert [row[-1] for row in table.rows] == [text] * 4
    for words in ("41 x 41 cells from a fit to 31 or 32 evaluations", "not seen (8 or more)", "tolerance 1%"):
        assert words in table.note


def test_a_grid_has_neither_error_and_says_so(results: Content) -> None:
    for landscape in results["landscapes"].values():
        landscape.update(fit=None, method="grid", note=None)
        for found in landscape["surfaces"].values():
            found["error"] = None
            found["metrics"].update(curvature_centre=1.5, curvature_centre_error=None, curvature_inner_error=None)
    assert {row[-1] for row in landscape_table(record(results)).rows} == {"-"}
    assert "41 x 41 cells, each evaluated." in landscape_table(record(results)).note
    assert "fit" not in landscape_table(record(results)).note
    assert {row[2] for row in flatness_table(record(results)).rows} == {"1.50"}


def test_one_grid_among_fits_is_explained(results: Content) -> None:
    entry = results["landscapes"]["after_task2"]
    entry.update(
        fit=None, note="2 of 15 points are not finite, so a grid of 7 x 7 cells was evaluated instead of a fit"
    )
    entry["alphas"] = entry["betas"] = [n / 3 for n in range(-3, 4)]
    for found in entry["surfaces"].values():
        found["error"] = None
    table = landscape_table(record(results))
    assert [row[-1] == "-" for row in table.rows] == [False, False, True, True]
    spent = results["landscapes"]["after_task1"]["fit"]["evaluations"]
    assert f"7 x 7 cells, each evaluated; 41 x 41 cells from a fit to {spent} evaluations" in table.note
    assert "after task 2: 2 of 15 points are not finite, so a grid" in table.note


@pytest.mark.parametrize(
    ("space", "words"), [("adapter", "invariant"), ("weight", "filter-normalised"), ("raw", "another gauge")]
)
def test_only_what_is_invariant_is_called_so(results: Content, space: str, words: str) -> None:
    for landscape in results["landscapes"].values():
        landscape["space"] = space
    note = landscape_table(record(results)).note
    assert note.startswith(f"{space} space (")
    assert words in note
    assert ("invariant" in note) == (space == "adapter")


def test_a_basin_that_is_not_left_is_at_least_the_distance(results: Content) -> None:
    for landscape, radius in zip(results["landscapes"].values(), (0.304, None), strict=True):
        landscape["distance"] = 0.5
        for found in landscape["surfaces"].values():
            found["lines"]["basin_radius"]["value"] = radius
    assert [row[4] for row in flatness_table(record(results)).rows] == ["0.30", "0.30", "0.5 or more", "0.5 or more"]


def test_barriers_and_the_best_compromise_are_told_per_path_and_task(results: Content) -> None:
    table = between_table(record(results))
    (path,) = results["paths"]
    assert len(table.rows) == 2
    for row, task in zip(table.rows, results["task_names"], strict=True):
        found = path["tasks"][task]
        assert row[0] == f"{task.replace('_', ' ')}, after task 1 to after task 2"
        losses = (found["loss"][0], path["repair"]["loss"][task], found["loss"][-1])
        assert row[1:4] == tuple(f"{loss:.2f}" for loss in losses)
        assert float(row[4]) == pytest.approx(found["barrier"]["value"], abs=0.005)
        assert row[5] == f"{found['barrier']['at']:.2f}"
        assert float(row[6].split("%")[0]) == pytest.approx(100 * found["error"]["relative"], abs=0.5)
    chosen = " + ".join(map(str, path["repair"]["selection_items"]))
    assert (
        f"after task 1 to after task 2: t* = {path['repair']['t']:.2f} has the least mean loss of the tasks on {chosen} items; "
        f"{path['evaluations']} evaluations." in table.note
    )
    plane = results["checkpoint_plane"]
    assert (
        f"plane through base model, after task 1, after task 2: {plane['fit']['evaluations']} evaluations" in table.note
    )
    results["paths"] = [path, {**path, "from": "after_task2", "to": "after_task3"}]
    rows = between_table(record(results)).rows
    assert [row[0].partition(", ")[2] for row in rows] == ["after task 1 to after task 2"] * 2 + [
        "after task 2 to after task 3"
    ] * 2


def test_what_between_the_checkpoints_could_not_be_measured_is_said(results: Content) -> None:
    sentence = "the path from after_task1 to after_task2 could not be measured: 2 of 5 points are not finite"
    results.update(paths=[], checkpoint_plane=None, between_notes=[sentence])
    table = between_table(record(results))
    assert table.rows == ()
    assert table.note.endswith(f"{sentence}.")
    assert sentence in results_markdown(record(results))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (1.005, "1.00"),
        (-0.5, "-0.50"),
        (-4e-17, "0.00"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_as_text(value: Any, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.0384, 0.0061, "0.038 ± 0.006"),
        (2.3561, 0.298, "2.4 ± 0.3"),
        (1.0, 0.123, "1.00 ± 0.12"),
        (-1.32, 0.097, "-1.32 ± 0.10"),
        (123.4, 17.0, "123 ± 17"),
        (0.5, 0.0, "0.50"),
        (0.5, None, "0.50"),
        (math.nan, math.nan, "nan ± nan"),
        (math.inf, 0.1, "inf ± 0.10"),
        (0.5, 3e-17, "0.50"),
        (-4.05e-17, 2e-17, "0.00"),
        (-4.05e-17, 0.2, "0.0 ± 0.2"),
        (1e-5, 2e-6, "0.000010 ± 0.000002"),
    ],
)
def test_a_value_has_as_many_decimals_as_its_error_allows(value: Any, stderr: Any, text: str) -> None:
    assert value_and_error(value, stderr) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50"), (0.0123, "0.012"), (1e-5, "1e-05"), (-4.05e-17, "0.00"), (0.0, "0.00")]
)
def test_small_numbers_are_told_and_rounding_is_not(value: float, text: str) -> None:
    assert measured(value) == text


def test_tables_survive_everything_that_is_not_finite(results: Content) -> None:
    def spoil(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: spoil(value) for key, value in node.items()}
        if isinstance(node, list):
            return [spoil(value) for value in node]
        return "nan" if isinstance(node, float) else node

    for part in ("landscapes", "landscape_comparison", "paths", "checkpoint_plane"):
        kept = {name: entry["distance"] for name, entry in results["landscapes"].items()}
        tau = results["config"]["landscape"]["tau"]
        results[part] = spoil(results[part])
        for name, distance in kept.items():
            results["landscapes"][name]["distance"] = distance
            for found in results["landscapes"][name]["surfaces"].values():
                found["lines"]["basin_radius"]["tau"] = tau
    for split in ("train", "test"):
        results["forgetting"][split]["loss"] = spoil(results["forgetting"][split]["loss"])
    text = results_markdown(record(results))
    assert "nan" in text
    assert "inf" not in text.replace("information", "")


def test_markdown_holds_the_answer_every_table_figure_and_warning(results: Content) -> None:
    results["warnings"] = ["beware | of pipes"]
    text = results_markdown(record(results))
    assert text.startswith(f"# {results['answer']}\n")
    for table in all_tables(record(results)):
        assert f"## {table.title}\n" in text
        assert table.note in text
        for row in table.rows:
            assert f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" in text
    for name in results["figures"]:
        assert f"![{name}]({name})" in text
    assert "- beware | of pipes" in text
    assert results["source"] in text
    assert f"{results['model']['parameters']:,} parameters" in text


def test_a_pipe_in_a_cell_does_not_end_it(results: Content) -> None:
    old, new = results["task_names"][0], "left|right"
    renamed = json.loads(json.dumps(results).replace(f'"{old}"', f'"{new}"'))
    rows = [line for line in results_markdown(record(renamed)).splitlines() if line.startswith("|") and "right" in line]
    assert rows
    assert all("left\\|right" in row for row in rows)


def test_the_set_up_stands_below_the_title_and_names_the_model_as_what_it_is(results: Content) -> None:
    line = set_up(record(results))
    assert line == (
        "synthetic · synthetic interfering tasks · LoRA r = 8, alpha = 16 · learning rate 0.01, 12 epochs (36 + 36 steps), "
        "batch 16 · 48 + 48 trained and 48 + 48 held-out items · seed 0"
    )
    assert results_markdown(record(results)).splitlines()[2] == line
    page = run_page(record(results), ())
    assert page.set_up == line
    assert page.answers[0][1] == [results["answer"], landscape_sentence(record(results))]
    results["model"]["name"] = "embedded"
    assert set_up(record(results)).startswith("SmolLM2-135M-Instruct (Q4_1, dequantised) · ")
    results["model"].update(name="/models/mine")
    assert set_up(record(results)).startswith("mine · ")


# --- the terminal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_the_answer_and_where_everything_is(results: Content, width: int) -> None:
    console = Console(width=width, record=True, highlight=False, file=None, quiet=False)
    with console.capture() as capture:
        Terminal(console).show_results(record(results), Path("outputs/experiment_x [draft]"))
    text = capture.get()
    assert results["answer"] in " ".join(text.replace("│", " ").split())
    assert "outputs/experiment_x [draft]: results.md" in text
    shown, _, steps = text.partition("Everything is in")
    assert max(len(line) for line in shown.splitlines()) <= width
    assert f"\n  draw its report: {program()} report 'outputs/experiment_x [draft]'\n" in steps  # whole, to be copied
    for task in ("task 1, trained", "task 2, held-out"):
        assert task in " ".join(text.split()) or width == 60


def test_three_tables_on_80_columns_break_no_value_and_the_answer_ends_with_the_landscape(results: Content) -> None:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        Terminal(console).show_results(record(results), Path("run"))
    text = capture.get()
    tables = closing_tables(record(results))
    assert [table.title for table in tables] == [
        "Accuracy and forgetting", "Loss landscape (nats)", "Forecast from the landscape (nats)"
    ]  # fmt: skip
    for table in tables:
        assert table.title in text
        for row in table.rows:
            assert any(all(cell in line for cell in row) for line in text.splitlines()), row
    assert [title for title in ("Flatness", "Between", "Over all tasks", "What kind") if title in text] == []
    flowing = " ".join(text.replace("│", " ").split())
    assert set_up(record(results)) in flowing
    sentence = landscape_sentence(record(results))
    assert sentence.endswith("(4 directions, 32 items).")
    assert f"{results['answer']} {sentence}" in flowing
    assert (
        counts(PairedProportionChange(10, 1, 1, 3, 5, 0.2, None, None, 0.6, None)) == "2 right before, 4 after, of 10"
    )


def test_a_note_is_printed_once_and_the_time_is_told(results: Content) -> None:
    results["warnings"] = ["said before", "found at the end"]
    seconds = sum(timing["wall_seconds"] for timing in results["timings"].values())
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        terminal = Terminal(console)
        terminal.warn("said before")
        terminal.show_results(record(results), Path("run"))
    text = capture.get()
    assert text.count("said before") == text.count("found at the end") == 1
    assert f"All phases took {duration(seconds)}." in text


def test_a_run_of_two_tasks_has_ten_phases(smoke_run: SmokeRun) -> None:
    numbered = re.findall(r"^\[ *(\d+)/(\d+)\]", smoke_run.stdout, re.MULTILINE)
    assert numbered == [(str(n), "10") for n in range(1, 11)]


def test_a_repair_ends_with_what_was_kept_and_what_it_cost(results: Content) -> None:
    accuracy = {"after_task2": proportion([False] * 3 + [True]), "repaired": proportion([True, False] * 2)}
    first = RepairScore("synthetic_1", "train", ("a", "b", "c", "d"), accuracy, {}, None, None)  # type: ignore[arg-type]
    second = replace(first, task="synthetic_2", accuracy=dict.fromkeys(accuracy, accuracy["repaired"]))
    repair = RepairRecord(record(results).config, "after_task1", "after_task2", 0.5, "", 8, 0.0, "", (first, second))
    assert repair_sentence(repair) == (
        "Accuracy from after task 2 to the repaired adapter: synthetic 1 (4 trained items) 0.25 -> 0.50, "
        "synthetic 2 (4 trained items) 0.50 -> 0.50."
    )


def test_names_of_groups_are_whole_on_a_narrow_terminal(results: Content) -> None:
    name = "group:philosophy"
    for landscape in results["landscapes"].values():
        landscape["surfaces"] = {name: landscape["surfaces"]["synthetic_1"]}
    for make in (flatness_table, landscape_table):
        console = Console(width=80, highlight=False)
        with console.capture() as capture:
            Terminal(console).show_table(make(record(results)))
        lines = capture.get().splitlines()
        assert sum(name in line for line in lines) == 2
        assert "…" not in capture.get()
        assert max(map(len, lines)) <= 80


def test_a_word_that_no_terminal_holds_is_broken_and_not_cut() -> None:
    console, word = Console(width=60, highlight=False), "w" * 90
    with console.capture() as capture:
        Terminal(console).show_table(Table("Title", ("a", "b"), ((word, "1.00 ± 0.10"),)))
    assert capture.get().count("w") == 90
    assert "1.00 ± 0.10" in capture.get()


def test_a_table_with_brackets_is_not_read_as_markup() -> None:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        Terminal(console).show_table(Table("Title", ("a [b]", "c"), (("[red]x[/red]", "1"),), "note [i]"))
    for words in ("a [b]", "[red]x[/red]", "note [i]"):
        assert words in capture.get()


def test_a_bar_ends_with_a_line_that_says_how_long_it_took() -> None:
    console = Console(width=80, highlight=False)
    with console.capture() as capture, Terminal(console).bar("work", 2) as advance:
        advance(1, "loss 2.0")
        advance(1, "")
    assert "work: 2 steps in 0 s, loss 2.0" in capture.get()


def test_a_slow_bar_in_a_file_says_every_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 40.0, 100.0, 130.0, 400.0, 400.0])  # the beginning, four steps, the end
    monkeypatch.setattr("llm_forgetting.report.terminal.time.perf_counter", lambda: next(moments))
    console = Console(width=80, highlight=False, file=io.StringIO())
    with console.capture() as capture, Terminal(console).bar("scan", 4) as advance:
        for _ in range(4):
            advance(1, "")
    lines = [line.strip() for line in capture.get().splitlines()]
    assert lines == ["scan: 2 of 4, about 100 s left", "scan: 4 steps in 6 min 40 s"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89.4, "89 s"), (90, "1 min 30 s"), (3725, "62 min 5 s")])
def test_seconds_are_spelt(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (9e4, "25 h")],
)
def test_estimates_are_spelt_in_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds, rough=True) == text
