"""Tables and figures, from results.json and nothing else."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from runs import SmokeRun

from llm_forgetting.report import figures
from llm_forgetting.report.figures import Surface, draw_landscapes, shared_norm, slug, surfaces_of
from llm_forgetting.report.tables import (
    Table,
    accuracy_matrix,
    all_tables,
    between_table,
    comparison_table,
    flatness_table,
    forgetting_table,
    landscape_table,
    number,
    results_markdown,
    summary_table,
    value_and_error,
)
from llm_forgetting.terminal import Terminal, spoken_seconds

Results = dict[str, Any]
AXIS = np.linspace(-1, 1, 5)


@pytest.fixture
def results(smoke_run: SmokeRun) -> Results:
    return copy.deepcopy(smoke_run.results)


def surface(values: Any, task: str = "a") -> Surface:
    return Surface(
        "after_task1", task, 8, "trained", AXIS, AXIS, np.asarray(values, dtype=float), "mean rise 1 ± 0.1 nats"
    )


def every_loss(results: Results, value: Any) -> None:
    """Make all cells of all surfaces `value(i, j)`."""
    for landscape in results["landscapes"].values():
        size = len(landscape["alphas"])
        for found in landscape["surfaces"].values():
            found["loss"] = [[value(i, j) for j in range(size)] for i in range(size)]


def pixel(figure: Figure, alpha: float, beta: float) -> Any:
    """Red, green and blue of a figure's first axes at (alpha, beta), 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    x, y = figure.axes[0].transData.transform((alpha, beta))
    image = np.asarray(canvas.buffer_rgba()).astype(int)
    return image[image.shape[0] - 1 - round(y), round(x), :3]


# --- tables -----------------------------------------------------------------------------------------------------------------


def test_every_cell_of_r_is_in_the_table(results: Results) -> None:
    table = accuracy_matrix(results)
    assert table.header == ("task", "items", "base model", "after task 1", "after task 2")
    assert [row[0] for row in table.rows] == [
        f"synthetic {j}, {word}" for j in (1, 2) for word in ("trained", "held-out")
    ]
    for row, (j, split) in zip(table.rows, [(j, s) for j in (0, 1) for s in ("train", "test")], strict=True):
        cells = results["forgetting"][split]
        pairs = [(cells["accuracy"]["cells"][i][j]["value"], cells["loss"]["cells"][i][j]["value"]) for i in range(3)]
        assert row[1:] == ("48", *(f"{accuracy:.2f} / {loss:.2f}" for accuracy, loss in pairs))


def test_forgetting_is_told_with_its_interval(results: Results) -> None:
    for row, split in zip(forgetting_table(results).rows, ("train", "test"), strict=True):
        (accuracy,), (loss,) = (results["forgetting"][split][measure]["tasks"] for measure in ("accuracy", "loss"))
        for cell, estimate in ((row[2], accuracy["absolute"]), (row[5], loss["absolute"])):
            interval = estimate["interval"]
            assert cell == f"{estimate['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
        assert row[1] == "48"
        assert row[3] == f"{100 * accuracy['relative']['value']:.0f}%"
        assert row[4] == f"{100 * accuracy['normalised']['value']:.0f}%"


def test_what_was_refused_is_a_dash_and_too_few_items_have_no_interval(results: Results) -> None:
    task = results["forgetting"]["train"]["accuracy"]["tasks"][0]
    task["absolute"].update(value=0.25, stderr=0.1, interval=None)
    task["normalised"].update(value=None, stderr=None, interval=None)
    row = forgetting_table(results).rows[0]
    assert row[2] == "0.25 ± 0.10"
    assert row[4] == "-"
    task["absolute"].update(stderr=None)
    assert forgetting_table(results).rows[0][2] == "0.25"


def test_summaries_landscapes_and_comparisons_are_all_there(results: Results) -> None:
    assert len(summary_table(results).rows) == 2 * 4
    landscape, flatness = landscape_table(results), flatness_table(results)
    assert len(landscape.rows) == len(flatness.rows) == 2 * 2
    surface = results["landscapes"]["after_task2"]["surfaces"]["synthetic_1"]
    metrics, rise = surface["metrics"], surface["mean_rise"]
    (row,) = (row for row in landscape.rows if "synthetic 1" in row[0] and "after task 2" in row[0])
    assert row[1:5] == tuple(f"{metrics[k]:.2f}" for k in ("centre", "maximum", "standard_deviation", "range"))
    (row,) = (row for row in flatness.rows if "synthetic 1" in row[0] and "after task 2" in row[0])
    assert row[1] == value_and_error(metrics["curvature_centre"], metrics["curvature_centre_error"])
    assert "±" in row[1]
    assert row[2] == value_and_error(rise["value"], rise["stderr"])
    assert row[4] == f"{100 * metrics['share_within']:.0f}%"
    assert f"over {results['config']['landscape']['directions']} directions" in flatness.note
    compared = results["landscape_comparison"]
    for entry, sharper in zip(compared, (True, False), strict=True):
        entry["sharper"] = sharper
    assert [row[-1] for row in comparison_table(results).rows] == ["sharper", "flatter"]
    compared[0]["sharper"] = None
    assert "no difference" in comparison_table(results).rows[0][-1]


@pytest.mark.parametrize(
    ("relative", "text"),
    [(0.0034, "0.3%"), (0.01, "1%"), (0.0, "0%"), (0.0101, "1%, not converged"), (0.2417, "24%, not converged"),
     ("nan", "nan%, not converged")],
)  # fmt: skip
def test_a_fitted_surface_says_what_it_cost_and_how_far_off_it_is(
    results: Results, relative: float | str, text: str
) -> None:
    for count, landscape in enumerate(results["landscapes"].values(), start=31):
        landscape["fit"].update(evaluations=count, tolerance=0.01)
        for found in landscape["surfaces"].values():
            found["error"]["relative"] = relative
    table = landscape_table(results)
    assert table.header[-1] == "error"
    assert [row[-1] for row in table.rows] == [text] * 4
    for words in ("41 x 41 cells from a fit to 31 or 32 evaluations", "largest at 8 of them", "asked for 1%"):
        assert words in table.note


def test_a_grid_has_neither_error_and_says_so(results: Results) -> None:
    for landscape in results["landscapes"].values():
        landscape.update(fit=None, method="grid", note=None)
        for found in landscape["surfaces"].values():
            found["error"] = None
            found["metrics"].update(curvature_centre=1.5, curvature_centre_error=None, curvature_inner_error=None)
    assert {row[-1] for row in landscape_table(results).rows} == {"-"}
    assert "41 x 41 cells, each evaluated." in landscape_table(results).note
    assert "fit" not in landscape_table(results).note
    assert {row[1] for row in flatness_table(results).rows} == {"1.50"}


def test_one_grid_among_fits_is_explained(results: Results) -> None:
    entry = results["landscapes"]["after_task2"]
    entry.update(
        fit=None, note="2 of 15 points are not finite, so a grid of 7 x 7 cells was evaluated instead of a fit"
    )
    entry["alphas"] = entry["betas"] = [n / 3 for n in range(-3, 4)]
    for found in entry["surfaces"].values():
        found["error"] = None
    table = landscape_table(results)
    assert [row[-1] == "-" for row in table.rows] == [False, False, True, True]
    spent = results["landscapes"]["after_task1"]["fit"]["evaluations"]
    assert f"7 x 7 cells, each evaluated; 41 x 41 cells from a fit to {spent} evaluations" in table.note
    assert "after task 2: 2 of 15 points are not finite, so a grid" in table.note


@pytest.mark.parametrize(
    ("space", "words"), [("adapter", "invariant"), ("weight", "filter-normalised"), ("raw", "another gauge")]
)
def test_only_what_is_invariant_is_called_so(results: Results, space: str, words: str) -> None:
    for landscape in results["landscapes"].values():
        landscape["space"] = space
    note = landscape_table(results).note
    assert note.startswith(f"{space} space (")
    assert words in note
    assert ("invariant" in note) == (space == "adapter")


def test_a_basin_that_is_not_left_is_at_least_the_distance(results: Results) -> None:
    for landscape, radius in zip(results["landscapes"].values(), (0.304, None), strict=True):
        landscape["distance"] = 0.5
        for found in landscape["surfaces"].values():
            found["lines"]["basin_radius"]["value"] = radius
    assert [row[3] for row in flatness_table(results).rows] == ["0.30", "0.30", "0.5 or more", "0.5 or more"]


def test_barriers_and_the_best_compromise_are_told_per_path_and_task(results: Results) -> None:
    table = between_table(results)
    (path,) = results["paths"]
    assert len(table.rows) == 2
    for row, task in zip(table.rows, results["task_names"], strict=True):
        found = path["tasks"][task]
        assert row[0] == f"{task.replace('_', ' ')}, after task 1 to after task 2"
        assert float(row[1]) == pytest.approx(found["barrier"]["value"], abs=0.005)
        assert row[2] == f"{found['barrier']['at']:.2f}"
        assert float(row[3].split("%")[0]) == pytest.approx(100 * found["error"]["relative"], abs=0.5)
        assert row[4:] == (f"{path['repair']['t']:.2f}", f"{path['repair']['loss_on_the_others'][task]:.2f}")
    assert f"after task 1 to after task 2: {path['evaluations']} evaluations." in table.note
    plane = results["checkpoint_plane"]
    assert (
        f"plane through base model, after task 1, after task 2: {plane['fit']['evaluations']} evaluations" in table.note
    )
    path["repair"]["loss_on_the_others"]["synthetic_1"] = None
    results["paths"] = [path, {**path, "from": "after_task2", "to": "after_task3"}]
    rows = between_table(results).rows
    assert [row[0].partition(", ")[2] for row in rows] == ["after task 1 to after task 2"] * 2 + [
        "after task 2 to after task 3"
    ] * 2
    assert [row[5] for row in rows][::2] == ["-", "-"]


def test_what_between_the_checkpoints_could_not_be_measured_is_said(results: Results) -> None:
    sentence = "the path from after_task1 to after_task2 could not be measured: 2 of 5 points are not finite"
    results.update(paths=[], checkpoint_plane=None, between_notes=[sentence])
    table = between_table(results)
    assert table.rows == ()
    assert table.note.endswith(f"{sentence}.")
    assert sentence in results_markdown(results)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1.005, "1.00"), (-0.5, "-0.50"), ("nan", "nan"), ("inf", "inf"), (-math.inf, "-inf")],
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
        ("nan", "nan", "nan ± nan"),
        ("inf", 0.1, "inf ± 0.10"),
    ],
)
def test_a_value_has_as_many_decimals_as_its_error_allows(value: Any, stderr: Any, text: str) -> None:
    assert value_and_error(value, stderr) == text


def test_tables_survive_everything_that_is_not_finite(results: Results) -> None:
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
    text = results_markdown(results)
    assert "nan" in text
    assert "inf" not in text.replace("information", "")


def test_markdown_holds_the_answer_every_table_figure_and_warning(results: Results) -> None:
    results["warnings"] = ["beware | of pipes"]
    text = results_markdown(results)
    assert text.startswith(f"# {results['answer']}\n")
    for table in all_tables(results):
        assert f"## {table.title}\n" in text
        assert table.note in text
        for row in table.rows:
            assert f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" in text
    for name in results["figures"]:
        assert f"![{name}]({name})" in text
    assert "- beware | of pipes" in text
    assert results["source"] in text
    assert f"{results['model']['parameters']:,} parameters" in text


def test_a_pipe_in_a_cell_does_not_end_it(results: Results) -> None:
    old, new = results["task_names"][0], "left|right"
    renamed = json.loads(json.dumps(results).replace(f'"{old}"', f'"{new}"'))
    rows = [line for line in results_markdown(renamed).splitlines() if line.startswith("|") and "right" in line]
    assert rows
    assert all("left\\|right" in row for row in rows)


# --- the terminal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_the_answer_and_where_everything_is(results: Results, width: int) -> None:
    console = Console(width=width, record=True, highlight=False, file=None, quiet=False)
    with console.capture() as capture:
        Terminal(console).show_results(results, Path("outputs/experiment_x [draft]"))
    text = capture.get()
    assert results["answer"] in " ".join(text.replace("│", " ").split())
    assert "outputs/experiment_x [draft]: results.md" in text
    assert max(len(line) for line in text.splitlines() if "Everything" not in line) <= width
    for task in ("synthetic 1, trained", "synthetic 2, held-out"):
        assert task in " ".join(text.split()) or width == 60


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


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89.4, "89 s"), (90, "1 min 30 s"), (3725, "62 min 5 s")])
def test_seconds_are_spoken(seconds: float, text: str) -> None:
    assert spoken_seconds(seconds) == text


# --- one colour scale ---------------------------------------------------------------------------------------------------------


def test_losses_of_one_size_share_a_linear_scale() -> None:
    norm = shared_norm([surface(np.full((5, 5), 1.0)), surface(np.full((5, 5), 7.9))])
    assert type(norm) is Normalize
    assert (norm.vmin, norm.vmax) == (1.0, 7.9)


def test_losses_of_many_sizes_share_a_logarithmic_scale() -> None:
    norm = shared_norm([surface(np.full((5, 5), 1.0)), surface(np.full((5, 5), 8.1))])
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == (1.0, 8.1)
    # 1% of the largest is dark enough for everything below it.
    norm = shared_norm([surface(np.full((5, 5), 1e-9)), surface(np.full((5, 5), 5.0))])
    assert (norm.vmin, norm.vmax) == (0.05, 5.0)


def test_a_loss_of_zero_has_no_logarithm() -> None:
    assert type(shared_norm([surface(np.zeros((5, 5))), surface(np.full((5, 5), 5.0))])) is Normalize


def test_the_scale_leaves_out_what_is_not_finite() -> None:
    values = np.ones((5, 5))
    values[0], values[1], values[2] = np.nan, np.inf, 3.0
    norm = shared_norm([surface(values)])
    assert (norm.vmin, norm.vmax) == (1.0, 3.0)
    assert shared_norm([surface(np.full((5, 5), np.nan))]).vmax == 1


def test_a_flat_surface_has_a_scale_around_it() -> None:
    norm = shared_norm([surface(np.full((5, 5), 2.0))])
    assert (norm.vmin, norm.vmax) == (1.5, 2.5)


def test_one_scale_is_used_for_every_surface(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for name in ("_single_contour", "_single_3d", "_overview"):
        real = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda what, norm, real=real: (norms.append(norm), real(what, norm))[1])
    draw_landscapes(results, tmp_path, dpi=50)
    assert len(norms) == len(results["figures"])
    assert len({id(norm) for norm in norms}) == 1
    values = [found["loss"] for entry in results["landscapes"].values() for found in entry["surfaces"].values()]
    assert norms[0].vmax == np.max(values)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_first_direction_points_to_the_right() -> None:
    """values[i, j] belongs to alphas[i], betas[j]; a surface that rises along the first axis is brighter on the right."""
    rising = surface(np.repeat(AXIS[:, None], 5, axis=1))
    figure = figures._single_contour(rising, Normalize(-1, 1))
    left, right, up, down = (pixel(figure, *at).sum() for at in ((-0.9, 0.3), (0.9, 0.3), (0.1, 0.9), (0.1, -0.9)))
    assert right > left + 150
    assert abs(up - down) < 40


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_cells_that_are_not_finite_are_hatched_and_not_coloured(wrong: float) -> None:
    values = np.full((5, 5), 1.0) + np.add.outer(AXIS, AXIS)
    values[4, 4] = wrong
    figure = figures._single_contour(surface(values), Normalize(-1, 3))
    assert figure.axes[0].patch.get_hatch()
    # viridis has no grey; the ground on which hatches are drawn is.
    assert np.ptp(pixel(figure, 0.95, 0.95)) < 15
    assert np.ptp(pixel(figure, -0.95, -0.95)) > 40
    whole = figures._single_contour(surface(np.add.outer(AXIS, AXIS)), Normalize(-2, 2))
    assert not whole.axes[0].patch.get_hatch()


SPOILT = {
    "nan in a corner": lambda i, j: "nan" if (i, j) == (0, 0) else 1.0 + i + j,
    "inf in the middle": lambda i, j: "inf" if (i, j) == (3, 3) else 1.0 + i + j,
    "a row of nan": lambda i, j: "nan" if i == 0 else 1.0 + i + j,
    "nothing but nan": lambda i, j: "nan",
    "nothing but inf": lambda i, j: "inf",
    "flat": lambda i, j: 2.0,
    "flat at zero": lambda i, j: 0.0,
    "nearly flat": lambda i, j: 2.0 + 1e-9 * i,
    "flat but for rounding": lambda i, j: 2.0 + 1e-13 * j,
    "enormous": lambda i, j: 1e30 * (1 + i),
    "many sizes": lambda i, j: 10.0 ** (i - j),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_every_kind_of_surface_is_drawn(results: Results, tmp_path: Path, kind: str) -> None:
    """Warnings are errors here, so a figure that matplotlib complains about fails too."""
    every_loss(results, SPOILT[kind])
    for checkpoint in list(results["landscapes"])[1:]:
        del results["landscapes"][checkpoint]
    for task in results["task_names"][1:]:
        del results["landscapes"]["after_task1"]["surfaces"][task]
    for name in draw_landscapes(results, tmp_path, dpi=50):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.format == "PNG"


def test_long_task_names_and_many_tasks_are_drawn(results: Results, tmp_path: Path) -> None:
    long = "high_school_government_and_politics_and_everything_else_there_is"
    entry = results["landscapes"]["after_task1"]
    (first, *_) = entry["surfaces"].values()
    entry["surfaces"] = {f"{long}_{number}": first for number in range(3)}
    results["landscapes"] = {"after_task1": entry}
    names = draw_landscapes(results, tmp_path, dpi=50)
    assert f"landscape_after_task1_{long}_2_3d.png" in names
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())


def test_a_figure_that_cannot_be_written_leaves_the_old_one(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "landscape_overview.png").write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="full"):
        draw_landscapes(results, tmp_path, dpi=50)
    assert (tmp_path / "landscape_overview.png").read_text() == "old"


def test_a_surface_is_titled_with_its_items(results: Results) -> None:
    found = surfaces_of(results)
    assert len(found) == 4
    assert "32 trained items" in found[0].title
    assert "after task 1: loss of synthetic 1" in found[0].title
    results["config"]["landscape"]["items"] = "test"
    assert "32 held-out items" in surfaces_of(results)[0].title


@pytest.mark.parametrize(
    ("name", "text"), [("group:philosophy", "group-philosophy"), ("a/../b c", "a-b-c"), ("x_1", "x_1")]
)
def test_a_task_s_name_makes_a_harmless_file_name(name: str, text: str) -> None:
    assert slug(name) == text
