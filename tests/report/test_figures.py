"""Figures, from records and nothing else. Every figure is drawn without matplotlib having a word to say about it:
warnings are errors here."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from mpl_toolkits.mplot3d.art3d import Line3D, Poly3DCollection
from PIL import Image
from small_records import small_results

from llm_forgetting.config.sections import DataConfig, ScanConfig
from llm_forgetting.files import from_plain, to_plain
from llm_forgetting.landscape.records import FitError, FitSummary
from llm_forgetting.report.figures import run
from llm_forgetting.report.figures.accuracy_matrix import matrix_figure
from llm_forgetting.report.figures.checkpoint_plane import plane_figure
from llm_forgetting.report.figures.contours import ink, own_levels, shared_norm, step_between_lines
from llm_forgetting.report.figures.layout import axis_label, wrapped
from llm_forgetting.report.figures.lines import lines_figure
from llm_forgetting.report.figures.paths import paths_figure
from llm_forgetting.report.figures.run import distinct_slugs, draw_landscapes, figures, slug
from llm_forgetting.report.figures.style import house_style
from llm_forgetting.report.figures.surface_3d import single_3d
from llm_forgetting.report.figures.surfaces import overview, single_contour
from llm_forgetting.report.views.accuracy_matrix import cell_lines
from llm_forgetting.report.views.captions import Caption
from llm_forgetting.report.views.checkpoint_plane import plane_views
from llm_forgetting.report.views.fit_quality import surface_quality
from llm_forgetting.report.views.lines import line_ensembles
from llm_forgetting.report.views.paths import path_views
from llm_forgetting.report.views.surfaces import SurfaceView, surface_views
from llm_forgetting.results import ScanResults

Results = dict[str, Any]
Loss = Callable[[Any, Any], Any]
CORNERS = {"initial": [0.0, 0.0], "after_task1": [10.0, 0.0], "after_task2": [4.0, 8.0]}
FIT = {"degree": 4, "evaluations": 23, "check_points": 8, "tolerance": 0.01, "converged": True}
TASKS = ("algebra", "anatomy")
METRICS: Results = {
    "centre": 0.0, "maximum": 1.0, "standard_deviation": 0.1, "curvature_centre": 1.0, "curvature_centre_error": 0.0,
    "curvature_inner": 1.0, "curvature_inner_error": 0.0, "range": 1.0, "centre_eigenvalues": [0.5, 1.0], "share_within": 0.2,
    "flat": False, "non_finite_cells": 0,
}  # fmt: skip
SELF_TEST: Results = {
    "items": 4, "value": [1.0, 1.0], "value_relative_difference": 0.0, "second_difference": [1.0, 1.0],
    "second_difference_relative_difference": 0.0, "tolerance": 1e-3, "passed": True,
}  # fmt: skip
MODEL: Results = {
    "name": "synthetic", "architecture": "Llama", "parameters": 1, "adapter_parameters": 1, "adapted_modules": 1,
    "adapted_weights": 1, "dtype": "float32", "device": "cpu", "threads": 1,
}  # fmt: skip
KINDS = ("loss", "four_way_loss", "accuracy", "letter_mass")


# --- landscape.json in small --------------------------------------------------------------------------------------------------


def bowl(level: float, steepness: float) -> Loss:
    return lambda a, b: level + steepness * (a**2 + 0.5 * (b - 0.2) ** 2 + 0.2 * a * b)


def fit_error(relative: float) -> Results:
    return {"largest": relative, "relative": relative, "wrong_letters": 0.0}


def a_surface(loss: Loss, cells: int = 9) -> Results:
    axis, steps = np.linspace(-1, 1, cells), np.linspace(-1, 1, 21)
    profiles = np.stack([loss(steps, 0 * steps), loss(0 * steps, steps), loss(steps, steps), loss(-steps, steps)])
    return {
        "items": [f"item {n}" for n in range(12)],
        **dict.fromkeys(KINDS, loss(axis[:, None], axis[None, :]).tolist()),
        "error": fit_error(0.0023),
        "metrics": METRICS,
        "measured_loss": [],
        "mean_rise": {"value": 0.25, "stderr": 0.01, "directions": 4},
        "lines": {
            "steps": steps.tolist(),
            "losses": profiles.tolist(),
            "mean": profiles.mean(axis=0).tolist(),
            "stderr": (profiles.std(axis=0, ddof=1) / 2).tolist(),
            "nodes": [-1, -0.5, 0.5, 1],
            "basin_radius": {"tau": 0.1, "value": 0.4},
        },
    }


def a_landscape(surfaces: dict[str, Results]) -> Results:
    axis = np.linspace(-1, 1, len(next(iter(surfaces.values()))["loss"])).tolist()
    settings = {"space": "adapter", "method": "spectral", "distance": 1.0, "alphas": axis, "betas": axis, "points": []}
    norms = dict.fromkeys(("adapter_norm", "reference_norm", "relative_scale", "update_norm"), 1.0)
    rest = {"direction_cosine": 0.0, "evaluations": 23, "gauge_self_test": SELF_TEST}
    return {**settings, **norms, **rest, "fit": copy.deepcopy(FIT), "note": None, "surfaces": surfaces}


def a_path(start: str, end: str) -> Results:
    steps, nodes = np.linspace(0, 1, 101), np.array([0, 0.1, 0.35, 0.8, 1])

    def hill(t: Any) -> Any:
        return 1 + t + 0.6 * np.sin(np.pi * t)

    return {
        "from": start,
        "to": end,
        "update_norm": 9.0,
        "steps": steps.tolist(),
        "nodes": nodes.tolist(),
        **FIT,
        "tasks": {
            name: {
                "items": ["a", "b"],
                **dict.fromkeys(KINDS, (offset + hill(steps)).tolist()),
                "accuracy": np.round(1 - 0.5 * steps, 1).tolist(),
                "at_nodes": {
                    **dict.fromkeys(KINDS, (offset + hill(nodes) + 0.01).tolist()),
                    "accuracy": [1.0, 0.9, 0.8, 0.6, 0.5],
                },
                "error": fit_error(0.004),
                "at_start": dict.fromkeys(("slope", "slope_error", "curvature", "curvature_error"), 0.0),
                "barrier": {"value": value, "at": 0.5},
            }
            for name, offset, value in zip(TASKS, (0.0, 1.0), (0.6, 0.001), strict=True)
        },
        "repair": {
            "t": 0.41,
            "selection_items": [6, 6],
            "mean_loss_on_selection": 1.0,
            "loss": dict.fromkeys(TASKS, 1.0),
            "loss_on_the_others": dict.fromkeys(TASKS),
        },
    }


def a_plane(cells: int = 21) -> Results:
    corners = np.array(list(CORNERS.values()))
    centroid = corners.mean(axis=0)
    wide = centroid + 1.2 * (corners - centroid)
    alphas, betas = (np.linspace(wide[:, k].min(), wide[:, k].max(), cells) for k in (0, 1))
    grid = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    shares = (grid - wide[0]) @ np.linalg.inv(wide[1:] - wide[0])
    inside = (shares >= -1e-9).all(axis=-1) & (shares.sum(axis=-1) <= 1 + 1e-9)

    def surface(centre: list[float]) -> Results:
        loss = np.where(inside, 0.5 + 0.01 * ((grid - centre) ** 2).sum(axis=-1), None)
        at = {name: 0.5 + 0.01 * float(((place - np.array(centre)) ** 2).sum()) for name, place in CORNERS.items()}
        ends = {"at_checkpoints": at, "error_at_checkpoints": 0.0, "measured_loss": []}
        return {"items": ["a"] * 7, **{kind: loss.tolist() for kind in KINDS}, "error": fit_error(0.006), **ends}

    surfaces = {task: surface(CORNERS[f"after_task{k}"]) for k, task in enumerate(TASKS, start=1)}
    axes = {"alphas": alphas.tolist(), "betas": betas.tolist(), "inside": inside.tolist()}
    return {
        **axes,
        "outline": wide.tolist(),
        "checkpoints": CORNERS,
        "fit": copy.deepcopy(FIT),
        "points": [],
        "surfaces": surfaces,
        "trajectory": [],
    }


BASE: Results = {
    "schema_version": 1,
    "config": to_plain(ScanConfig(data=DataConfig(tasks=TASKS))),
    "versions": {},
    "environment": {"platform": "here", "machine": "this", "cpu_count": 1},
    "model": MODEL,
    "adapters": {"adapter": "somewhere"},
    "landscapes": {
        "after_task1": a_landscape({"algebra": a_surface(bowl(0.5, 0.6)), "anatomy": a_surface(bowl(2.0, 0.2))}),
        "after_task2": a_landscape({"algebra": a_surface(bowl(1.5, 0.3)), "anatomy": a_surface(bowl(0.6, 0.1))}),
    },
    "paths": [a_path("after_task1", "after_task2")],
    "checkpoint_plane": a_plane(),
    "between_notes": [],
    "warnings": [],
    "figures": [],
    "timings": {},
}


@pytest.fixture
def results() -> Results:
    return copy.deepcopy(BASE)


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with house_style():
        yield


def record(results: Results) -> ScanResults:
    """The record of plain JSON values, without a reference to them."""
    return from_plain(ScanResults, copy.deepcopy(results))


def only(results: Results) -> Results:
    """One surface and nothing else; its landscape."""
    landscape: Results = results["landscapes"]["after_task1"]
    landscape["surfaces"] = {"algebra": landscape["surfaces"]["algebra"]}
    results.update(landscapes={"after_task1": landscape}, paths=[], checkpoint_plane=None)
    return landscape


def drawn(figure: Figure) -> Any:
    """The figure's pixels, (height, width, 3), 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(int)[..., :3]


def every_figure(results: Results) -> dict[str, Figure]:
    """All figures by stem, each drawn once."""
    by_stem = dict(figures(record(results)))
    for figure in by_stem.values():
        drawn(figure)
    return by_stem


def pixel(image: Any, axes: Axes, alpha: float, beta: float) -> Any:
    """Red, green and blue of a drawn image at a place of one of its panels."""
    x, y = axes.transData.transform((alpha, beta))
    return image[image.shape[0] - 1 - round(y), round(x)]


def words(figure: Figure) -> str:
    """Everything that is written on the figure, line by line."""
    texts = [text for text in figure.findobj(Text) if text.get_visible()]
    return "\n".join(text.get_text() for text in texts)


def running(figure: Figure) -> str:
    """Everything that is written on the figure, whatever the lines it is broken into."""
    return " ".join(words(figure).split())


def markers(axes: Axes) -> list[tuple[float, float]]:
    """Where checkpoints are marked."""
    marks = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_markersize() == 5]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marks]  # type: ignore[index]


def a_view(values: Any) -> SurfaceView:
    axis = np.linspace(-1, 1, len(values))
    cells = np.asarray(values, dtype=float)
    return SurfaceView("after_task1", "a", "adapter", axis, axis, cells, np.empty((0, 2)), Caption("title"))


AXIS, NINE = np.linspace(-1, 1, 5), np.linspace(-1, 1, 9)


# --- one colour scale ---------------------------------------------------------------------------------------------------------


def test_losses_of_one_size_share_a_linear_scale() -> None:
    norm = shared_norm([np.full((5, 5), 1.0), np.full((5, 5), 7.9)])
    assert type(norm) is Normalize
    assert (norm.vmin, norm.vmax) == (1.0, 7.9)


def test_losses_of_many_sizes_share_a_logarithmic_scale() -> None:
    norm = shared_norm([np.full((5, 5), 1.0), np.full((5, 5), 8.1)])
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == (1.0, 8.1)
    # 1% of the largest is dark enough for everything below it.
    norm = shared_norm([np.full((5, 5), 1e-9), np.full((5, 5), 5.0)])
    assert (norm.vmin, norm.vmax) == (0.05, 5.0)


def test_a_loss_of_zero_has_no_logarithm() -> None:
    assert type(shared_norm([np.zeros((5, 5)), np.full((5, 5), 5.0)])) is Normalize


def test_the_scale_leaves_out_what_is_not_finite() -> None:
    values = np.ones((5, 5))
    values[0], values[1], values[2] = np.nan, np.inf, 3.0
    norm = shared_norm([values])
    assert (norm.vmin, norm.vmax) == (1.0, 3.0)
    assert shared_norm([np.full((5, 5), np.nan)]).vmax == 1


@pytest.mark.parametrize("ripple", [0, 1e-9])
def test_a_flat_surface_has_a_scale_around_it(ripple: float) -> None:
    norm = shared_norm([2.0 + ripple * np.arange(25.0).reshape(5, 5)])
    assert norm.vmin == pytest.approx(1.5)
    assert norm.vmax == pytest.approx(2.5)


def test_every_surface_has_a_colour_scale_of_its_own(results: Results) -> None:
    figure = overview(surface_views(record(results)))
    assert len(figure.axes) == 2 * 4
    entries = [surface["loss"] for entry in results["landscapes"].values() for surface in entry["surfaces"].values()]
    for panel, bar in zip(figure.axes[:4], figure.axes[4:], strict=True):
        assert bar.get_position().x0 > panel.get_position().x1
    limits = [bar.get_ylim() for bar in figure.axes[4:]]
    assert limits == [pytest.approx((np.min(loss), np.max(loss))) for loss in entries]
    assert len({*limits}) == 4
    assert [bar.get_ylabel() for bar in figure.axes[4:]] == ["", "", "loss (nats)", "loss (nats)"]


def test_lines_are_black_on_light_and_white_on_dark() -> None:
    assert [ink(Normalize(0, 1), level) for level in (0.0, 0.3, 0.8, 1.0)] == ["white", "white", "black", "black"]


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [
        (0.29, 0.45, [0.3, 0.35, 0.4]),
        (0.39, 6.7, [0.5, 1, 2, 5]),
        (0.12, 1.6, [0.2, 0.3, 0.5, 0.7, 1]),
        (1e-6, 12, [0.2, 0.5, 1, 2, 5, 10]),
        (0.0, 12, [2, 4, 6, 8, 10]),
        (2.0, 2.000001, []),
    ],
)
def test_contour_lines_stand_at_round_losses_of_the_surface_s_own(low: float, high: float, levels: list[float]) -> None:
    assert own_levels(np.array([low, np.nan, high])) == pytest.approx(levels)


# --- surfaces -----------------------------------------------------------------------------------------------------------------


def test_the_first_direction_points_to_the_right() -> None:
    """values[i, j] belongs to alphas[i], betas[j]; a surface that rises along the first axis is brighter on the right."""
    figure = single_contour(a_view(np.repeat(AXIS[:, None], 5, axis=1)))
    places = ((-0.9, 0.3), (0.9, 0.3), (0.1, 0.9), (0.1, -0.9))
    image = drawn(figure)
    left, right, up, down = (pixel(image, figure.axes[0], *at).sum() for at in places)
    assert right > left + 150
    assert abs(up - down) < 40


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_cells_that_are_not_finite_are_hatched_and_not_coloured(wrong: float) -> None:
    values = np.full((5, 5), 1.0) + np.add.outer(AXIS, AXIS)
    values[4, 4] = wrong
    figure = single_contour(a_view(values))
    assert figure.axes[0].patch.get_hatch()
    image = drawn(figure)
    # viridis has no grey; the ground on which hatches are drawn is.
    assert np.ptp(pixel(image, figure.axes[0], 0.95, 0.95)) < 15
    assert np.ptp(pixel(image, figure.axes[0], -0.95, -0.95)) > 40
    whole = single_contour(a_view(np.add.outer(AXIS, AXIS)))
    assert not whole.axes[0].patch.get_hatch()


def test_in_three_dimensions_cells_with_a_corner_that_is_not_finite_stay_open() -> None:
    values = np.add.outer(AXIS, AXIS)
    values[0, 0], values[2, 2] = np.nan, np.inf
    (relief,) = single_3d(a_view(values)).findobj(Poly3DCollection)
    assert len(relief.get_facecolor()) == 16 - 1 - 4  # type: ignore[union-attr]


def test_every_surface_fills_its_box() -> None:
    for values in (np.add.outer(AXIS, AXIS), 5 + 0.1 * np.add.outer(AXIS, AXIS)):
        low, high = single_3d(a_view(values)).axes[1].get_zlim()  # type: ignore[attr-defined]
        assert low < values.min() < values.max() < high
        assert 1.2 < (high - low) / np.ptp(values) < 1.6


def test_mesh_lines_behind_the_surface_are_hidden() -> None:
    axis = np.linspace(-1, 1, 21)

    def hidden(values: Any) -> int:
        lines = single_3d(a_view(values)).findobj(Line3D)
        return sum(int(np.isnan(np.asarray(line.get_data_3d()[2], dtype=float)).sum()) for line in lines)  # type: ignore[attr-defined]

    assert hidden(np.zeros((21, 21))) == 0
    assert hidden(np.add.outer(axis, axis)) == 0
    # So steep towards the camera that it is seen from below, and nothing is in front of it.
    assert hidden(np.add.outer(axis, -axis)) == 0
    assert hidden(4 * np.add.outer(axis**2, axis**2)) > 50
    assert hidden(-4 * np.add.outer(axis**2, axis**2)) > 50


def test_checkpoints_are_marked_at_the_centre_of_every_surface(results: Results) -> None:
    surfaces = surface_views(record(results))
    figure = overview(surfaces)
    panels = figure.axes[:4]
    assert [markers(axes) for axes in panels] == [[(0, 0)]] * 4
    for axes in panels:
        assert axes.get_window_extent().width == pytest.approx(axes.get_window_extent().height)
    centre = results["landscapes"]["after_task1"]["surfaces"]["algebra"]["loss"][4][4]
    dots = [line for line in single_3d(surfaces[0]).findobj(Line3D) if line.get_marker() == "o"]  # type: ignore[attr-defined]
    assert [[float(x[0]) for x in dot.get_data_3d()] for dot in dots] == [[0, 0, centre]]  # type: ignore[attr-defined]


def test_rows_are_tasks_and_columns_are_checkpoints(results: Results) -> None:
    del results["landscapes"]["after_task2"]["surfaces"]["algebra"]
    surfaces = surface_views(record(results))
    figure = overview(surfaces)
    first, below, aside = (axes.get_position() for axes in figure.axes[:3])
    assert len(figure.axes) == 3 + 3
    assert below.x0 == first.x0
    assert below.y1 < first.y0
    assert aside.x0 > first.x1
    assert aside.y0 == pytest.approx(below.y0)
    assert "after task 2: loss of anatomy" in [text.get_text() for text in figure.axes[2].texts]


def test_every_contour_label_is_whole_and_on_its_panel(results: Results) -> None:
    surfaces = surface_views(record(results))
    figure = overview(surfaces)
    drawn(figure)
    for axes in figure.axes[:4]:
        labels = [text for text in axes.texts if text.get_rotation() or text.get_text()[0].isdigit()]
        labels = [text for text in labels if text.get_transform() == axes.transData]
        assert len(labels) >= 2
        places = np.array([(0, 0), *(text.get_position() for text in labels)])
        assert min(np.hypot(*(one - other)) for one, other in combinations(places, 2)) > 0.25
        inside = axes.get_window_extent()
        for box in (text.get_window_extent() for text in labels):
            assert inside.x0 < box.x0
            assert box.x1 < inside.x1
            assert inside.y0 < box.y0
            assert box.y1 < inside.y1


def test_evaluated_points_are_dots_on_the_single_figure_alone(results: Results) -> None:
    landscape = only(results)
    landscape["points"] = [[0.5, -0.25], [1.0, 1.0]]
    by_stem = every_figure(results)
    single = by_stem["landscape_after_task1_algebra_contour"]
    (dots,) = [line for line in single.axes[0].get_lines() if len(line.get_xydata()) == 2]
    assert dots.get_xydata().tolist() == landscape["points"]  # type: ignore[union-attr]
    assert "23 evaluations (dots)" in running(single)
    assert "(dots)" not in words(by_stem["landscape_overview"])


SPOILT: dict[str, Callable[[int, int], Any]] = {
    "nan in a corner": lambda i, j: "nan" if (i, j) == (0, 0) else 1.0 + i + j,
    "inf in the middle": lambda i, j: "inf" if (i, j) == (2, 2) else 1.0 + i + j,
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
def test_every_kind_of_coarse_grid_is_drawn(results: Results, kind: str) -> None:
    landscape = only(results)
    values = [[SPOILT[kind](i, j) for j in range(5)] for i in range(5)]
    surface = landscape["surfaces"]["algebra"]
    landscape.update(fit=None, method="grid", alphas=AXIS.tolist(), betas=AXIS.tolist())
    surface.update(loss=values, error=None)
    surface["lines"].update(
        steps=AXIS.tolist(), losses=values, mean=values[2], stderr=values[2], basin_radius={"tau": 0.1, "value": None}
    )
    (drawing,) = surface_views(record(results))
    for figure in (single_contour(drawing), single_3d(drawing), lines_figure(line_ensembles(record(results)))):
        drawn(figure)
        assert "grid, 25 evaluations" in words(figure)


# --- what is written ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_figure_of_a_fit_tells_its_measured_error(results: Results) -> None:
    del results["landscapes"]["after_task2"], results["landscapes"]["after_task1"]["surfaces"]["anatomy"]
    by_stem = every_figure(results)
    assert len(by_stem) == 4 + 2
    for stem, figure in by_stem.items():
        error = {"landscape_path": "0.4%", "landscape_checkpoint_plane": "0.6%"}.get(stem, "0.3%")
        count = 5 if stem == "landscape_path" else 23
        assert f"{count} evaluations, error {error} of the range" in running(figure), stem
        assert "NOT CONVERGED" not in words(figure)


def test_a_fit_that_has_not_converged_says_so_on_every_figure(results: Results) -> None:
    del results["landscapes"]["after_task2"], results["landscapes"]["after_task1"]["surfaces"]["algebra"]
    for part in (results["landscapes"]["after_task1"], results["checkpoint_plane"]):
        part["fit"]["converged"] = False
        part["surfaces"]["anatomy"]["error"] = fit_error(0.043)
    results["paths"][0]["converged"] = False
    results["paths"][0]["tasks"]["anatomy"]["error"]["relative"] = 0.043
    for stem, figure in every_figure(results).items():
        assert "NOT CONVERGED: error 4.3% of the range" in running(figure), stem
    # The other task's fit is within the tolerance.
    assert "error 0.6% of the range" in running(the_plane(results))


def test_raw_coordinates_are_called_not_comparable_on_every_figure(results: Results) -> None:
    only(results)["space"] = "raw"
    for figure in every_figure(results).values():
        assert "not comparable: raw coordinates" in running(figure)


@pytest.mark.parametrize(
    ("relative", "spread", "text"),
    [
        (0.0023, 1.0, "23 evaluations, error 0.3% of the range"),
        (0.003, 1.0, "23 evaluations, error 0.3% of the range"),
        (0.007, 1.0, "23 evaluations, error 0.7% of the range"),
        (0.01, 1.0, "23 evaluations, error 1% of the range"),
        (0.0, 1.0, "23 evaluations, error 0.01% of the range"),
        (0.0023, 5.0, "23 evaluations, error 0.3% of 2 nats"),
        (0.0123, 1.0, "23 evaluations; NOT CONVERGED: error 1.3% of the range"),
        (0.43, 5.0, "23 evaluations; NOT CONVERGED: error 43% of 2 nats"),
        (np.nan, 1.0, "23 evaluations; NOT CONVERGED: error nan% of the range"),
    ],
)
def test_errors_are_bounds_rounded_up_or_alarms(relative: float, spread: float, text: str) -> None:
    error = FitError(largest=0.0, relative=relative, wrong_letters=0.0)
    quality = surface_quality(FitSummary(**FIT), error, np.array([[1.0, 1.0 + spread], [np.nan, 1.0]]))
    assert "; ".join([quality.fact, *quality.alarms]).replace("\N{NO-BREAK SPACE}", " ") == text
    assert surface_quality(None, None, np.ones((3, 3))).fact == "grid, 9 evaluations"


def test_an_error_above_one_percent_is_marked_even_where_it_was_allowed() -> None:
    error = FitError(largest=0.0, relative=0.05, wrong_letters=0.0)
    quality = surface_quality(FitSummary(**{**FIT, "tolerance": 0.1}), error, np.array([1.0, 2.0]))
    assert quality.fact == "23 evaluations"
    (alarm,) = quality.alarms
    assert alarm.replace("\N{NO-BREAK SPACE}", " ") == "error 5% of the range (accepted up to 10%)"


def test_a_surface_is_titled_with_its_items(results: Results) -> None:
    views = surface_views(record(results))
    assert len(views) == 4
    assert views[0].caption.heading == "after task 1: loss of algebra"
    assert views[0].caption.facts[0] == "12 trained items"
    results["config"]["landscape"]["items"] = "test"
    assert surface_views(record(results))[0].caption.facts[0] == "12 held-out items"


@pytest.mark.slow
def test_long_names_are_neither_cut_nor_written_over_each_other(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[Text, Any] = {}
    real = Text.draw

    def draw(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text():
            written[text] = text.get_window_extent(renderer)
        real(text, renderer)

    monkeypatch.setattr(Text, "draw", draw)
    long = "high_school_government_and_politics_and_everything_else_there_is"
    endless = "x" * 90
    first = results["landscapes"]["after_task1"]["surfaces"]["algebra"]
    surfaces = {long: first, endless: first}
    first["lines"]["steps"] = [0.05 * step for step in first["lines"]["steps"]]
    entry = {**a_landscape(surfaces), "alphas": (0.05 * NINE).tolist(), "betas": (0.05 * NINE).tolist()}
    results["landscapes"] = {f"after_task{k}": entry for k in (1, 2, 3)}
    plane, path = results["checkpoint_plane"], results["paths"][0]
    plane["surfaces"] = dict.fromkeys(surfaces, plane["surfaces"]["algebra"])
    path["tasks"] = dict.fromkeys(surfaces, path["tasks"]["algebra"])
    results["paths"] = [path, path, path]
    views = surface_views(record(results))
    drawings = {
        "overview": overview(views),
        "contour": single_contour(views[0]),
        "plane": the_plane(results),
        "path": the_path(results),
        "lines": lines_figure(line_ensembles(record(results))),
    }
    for stem, figure in drawings.items():
        assert figure.get_figwidth() == pytest.approx(3.45 if stem == "contour" else 7.0)
        written.clear()
        wide = drawn(figure).shape[1]
        assert len(written) > 15
        for (one, a), (other, b) in combinations(written.items(), 2):
            across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 1 or up < 1, (stem, one.get_text(), other.get_text())
        # What sticks out is not cut, as files are cut to what is drawn; but it would make them wider than a page.
        assert min(box.x0 for box in written.values()) > -0.03 * wide
        assert max(box.x1 for box in written.values()) < 1.03 * wide


@pytest.mark.parametrize("width", [0.6, 1.6, 3.0])
def test_wrapped_lines_are_no_wider_than_their_panel(width: float) -> None:
    text = "after task 2: loss of high school government and politics WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW"
    lines = wrapped(text, width, 8.5, "bold")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    figure = Figure(dpi=200)
    canvas: Any = FigureCanvasAgg(figure)
    for line in lines:
        box = figure.text(0, 0, line, fontsize=8.5, weight="bold").get_window_extent(canvas.get_renderer())
        assert box.width / 200 < width + 0.03


def test_an_axis_label_has_two_lines_where_the_axis_is_short() -> None:
    assert axis_label("step", "unit", 2.0) == "step (unit)"
    assert axis_label("step", "unit", 0.3) == "step\n(unit)"


# --- the plane through the checkpoints ----------------------------------------------------------------------------------------


def the_plane(results: Results) -> Figure:
    return plane_figure(plane_views(record(results)))


def test_checkpoints_are_named_and_marked_where_their_coordinates_say(results: Results) -> None:
    figure = the_plane(results)
    for axes, task in zip(figure.axes[:2], TASKS, strict=True):
        assert sorted(markers(axes)) == sorted(tuple(place) for place in CORNERS.values())
        named = {text.get_text(): text.xy[0] for text in axes.texts if hasattr(text, "xy")}
        for name, label in (
            ("initial", "base model"),
            ("after_task1", "after task 1"),
            ("after_task2", "after task 2"),
        ):
            loss = results["checkpoint_plane"]["surfaces"][task]["at_checkpoints"][name]
            assert named[f"{label}\n{loss:.2f}"] == CORNERS[name][0]
        assert axes.get_xlabel() == "base model to after task 1\n(Frobenius norm of ΔW)"


def test_the_way_leads_from_the_base_model_to_the_last_checkpoint(results: Results) -> None:
    ends = ((2.0, 0.5), (9.0, 0.25))
    results["checkpoint_plane"]["trajectory"] = [
        {"name": str(n), "a": a, "b": b, "residual": 0.0, "loss": {}, "in_plane_loss": None}
        for n, (a, b) in enumerate(ends)
    ]
    for axes in the_plane(results).axes[:2]:
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        ends = [[list(end) for end in arrow._posA_posB] for arrow in arrows]  # type: ignore[attr-defined]
        first, second, last = CORNERS.values()
        assert ends == [[first, second], [second, last]]
        tracks = [line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xydata()) == 2]  # type: ignore[union-attr]
        assert tracks == [[[2.0, 0.5], [9.0, 0.25]]] * 2


def test_a_plane_has_its_zero_and_says_what_is_not_drawn(results: Results) -> None:
    whole = the_plane(results)
    assert all(0 in axes.get_xticks() for axes in whole.axes[:2])
    assert "arrows: from each checkpoint to the next" in running(whole)
    assert "left out" not in running(whole)
    plane = results["checkpoint_plane"]
    first, second, last = plane["outline"]
    plane["outline"] = [[first[0] + 2, first[1]], second, last, [first[0] + 1, first[1] + 2]]
    cut = the_plane(results)
    assert all(0 in axes.get_xticks() for axes in cut.axes[:2])
    assert "left out: the corner at the base model" in running(cut)


def test_both_tasks_are_on_one_scale_in_equal_units(results: Results) -> None:
    figure = the_plane(results)
    assert len(figure.axes) == 3
    for axes in figure.axes[:2]:
        box = axes.get_window_extent()
        units = np.ptp(axes.get_xlim()) / box.width, np.ptp(axes.get_ylim()) / box.height
        assert units[0] == pytest.approx(units[1])
    # Task 1 is lowest after task 1, task 2 after task 2: dark there, and lighter at the other.
    image = drawn(figure)
    for axes, own, other in ((figure.axes[0], [8, 1.5], [3.9, 6.8]), (figure.axes[1], [3.9, 6.8], [8, 1.5])):
        assert pixel(image, axes, *own).sum() < pixel(image, axes, *other).sum() - 60


def test_the_scale_covers_both_tasks(results: Results) -> None:
    surface = results["checkpoint_plane"]["surfaces"]["anatomy"]
    surface["loss"] = [[None if cell is None else cell + 3 for cell in row] for row in surface["loss"]]
    figure = the_plane(results)
    image = drawn(figure)
    (low, high), (low_2, high_2) = (
        sorted(pixel(image, axes, *place).sum() for place in ((1.2, 1.0), (3.9, 6.8), (8, 1.5)))[::2]
        for axes in figure.axes[:2]
    )
    assert low < high < low_2 < high_2


def test_nothing_is_drawn_outside_of_what_was_scanned(results: Results) -> None:
    figure = the_plane(results)
    axes = figure.axes[0]
    (outline,) = {tuple(map(tuple, view.plane.outline.round(6))) for view in plane_views(record(results))}
    centroid, image = np.mean(outline, axis=0), drawn(figure)
    for start, end in combinations(np.array(outline), 2):
        for share in (0.2, 0.8):
            edge = start + share * (end - start)
            outwards = (edge - centroid) / np.hypot(*(edge - centroid))
            assert pixel(image, axes, *(edge + 0.35 * outwards)).min() == 255
            assert np.ptp(pixel(image, axes, *(edge - 0.35 * outwards))) > 40


def test_places_that_are_not_finite_are_hatched_inside_the_outline_only(results: Results) -> None:
    surface = results["checkpoint_plane"]["surfaces"]["algebra"]
    inside = np.array(results["checkpoint_plane"]["inside"])
    i, j = np.argwhere(inside)[inside.sum() // 2]
    for k, m in ((i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)):
        surface["loss"][k][m] = "nan"
    figure, axes = the_plane(results), results["checkpoint_plane"]
    middle = [float(np.mean(axes[name][k : k + 2])) for name, k in (("alphas", i), ("betas", j))]
    image = drawn(figure)
    assert np.ptp(pixel(image, figure.axes[0], *middle)) < 15
    assert np.ptp(pixel(image, figure.axes[1], *middle)) > 40
    surface["loss"] = [[None if cell is None else "nan" for cell in row] for row in surface["loss"]]
    drawn(the_plane(results))


def test_names_of_close_checkpoints_stand_back_to_back(results: Results) -> None:
    results["checkpoint_plane"]["checkpoints"] = {"initial": [0, 0], "after_task1": [1, 0], "after_task2": [4.0, 8.0]}
    axes = the_plane(results).axes[0]
    sides = {text.get_text().split("\n")[0]: text.get_horizontalalignment() for text in axes.texts}
    assert (sides["base model"], sides["after task 1"], sides["after task 2"]) == ("right", "left", "center")


# --- paths --------------------------------------------------------------------------------------------------------------------


def the_path(results: Results) -> Figure:
    return paths_figure(path_views(record(results)))


def test_a_path_s_dots_are_the_measured_values(results: Results) -> None:
    figure = the_path(results)
    path = results["paths"][0]
    for axes, kind in zip(figure.axes, ("loss", "accuracy"), strict=True):
        lines = axes.get_lines()
        dots = [line for line in lines if line.get_linestyle() == "None"]
        curves = [line for line in lines if len(line.get_xydata()) == 101]
        for task, dot, curve in zip(path["tasks"].values(), dots, curves, strict=True):
            assert list(dot.get_xdata()) == path["nodes"]  # type: ignore[arg-type]
            assert list(dot.get_ydata()) == task["at_nodes"][kind]  # type: ignore[arg-type]
            assert list(curve.get_ydata()) == task[kind]  # type: ignore[arg-type]
            assert dot.get_color() == curve.get_color()
        # Tasks differ in colour, in dashes and in marks.
        assert len({dot.get_marker() for dot in dots}) == len({str(curve.get_linestyle()) for curve in curves}) == 2
        assert len({curve.get_color() for curve in curves}) == 2
    assert all(task in words(figure) for task in TASKS)


def test_a_path_ends_at_its_checkpoints_and_its_legend_names_every_look(results: Results) -> None:
    path = results["paths"][0]
    path["nodes"][0] = -0.1
    figure = the_path(results)
    dots = [line for axes in figure.axes for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert [list(dot.get_xdata()) for dot in dots] == [path["nodes"][1:]] * 4  # type: ignore[arg-type]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*TASKS, "dots: measured"]
    views = path_views(record(results))
    forecast = replace(views[0].profiles[0], quadratic=views[0].scan.steps)
    (legend,) = paths_figure([replace(views[0], profiles=(forecast,))]).legends
    assert [text.get_text() for text in legend.get_texts()] == [TASKS[0], "dots: measured", "thin: quadratic forecast"]


def test_the_repair_and_the_barrier_are_marked(results: Results) -> None:
    figure = the_path(results)
    upper, lower = figure.axes
    for axes in (upper, lower):
        assert [0.41, 0.41] in [list(line.get_xdata()) for line in axes.get_lines()]  # type: ignore[arg-type]
    assert "t* = 0.41" in words(figure)
    arrows = [text for text in upper.texts if getattr(text, "arrow_patch", None)]
    # 0.001 nats are within the fit's error of 0.004, so there is one barrier.
    assert len(arrows) == 1
    assert arrows[0].xy == pytest.approx((0.5, 2.1))  # type: ignore[attr-defined]
    assert arrows[0].get_position() == pytest.approx((0.5, 1.5))
    assert "barrier: 0.60 nats (algebra)" in running(figure)
    results["paths"][0]["tasks"]["algebra"]["barrier"]["value"] = 0.0
    assert "no barrier" in words(the_path(results))


def test_several_paths_have_several_columns_on_one_axis(results: Results) -> None:
    second = a_path("after_task2", "after_task3")
    for task in second["tasks"].values():
        task["loss"] = [loss + 3 for loss in task["loss"]]
    results["paths"].append(second)
    figure = the_path(results)
    assert len(figure.axes) == 4
    assert figure.axes[0].get_ylim() == figure.axes[2].get_ylim()
    assert "after task 2 to after task 3" in words(figure)


def test_what_was_not_measured_has_no_figure(results: Results) -> None:
    only(results)
    stems = [stem for stem, _ in figures(record(results))]
    assert stems == [
        "landscape_overview", "landscape_lines", "landscape_after_task1_algebra_contour", "landscape_after_task1_algebra_3d",
    ]  # fmt: skip


# --- lines --------------------------------------------------------------------------------------------------------------------


def test_lines_show_every_direction_their_mean_and_its_error(results: Results) -> None:
    results["landscapes"]["after_task2"]["surfaces"]["anatomy"]["lines"]["basin_radius"]["value"] = None
    figure = lines_figure(line_ensembles(record(results)))
    entries = [surface for entry in results["landscapes"].values() for surface in entry["surfaces"].values()]
    for axes, surface in zip(figure.axes, entries, strict=True):
        lines = surface["lines"]
        centre = lines["mean"][10]
        profiles = [line for line in axes.get_lines() if len(line.get_xydata()) == 21]
        *thin, bold = sorted(profiles, key=Line2D.get_linewidth)
        assert np.allclose([line.get_ydata() for line in thin], np.array(lines["losses"]) - centre)
        assert np.allclose(bold.get_ydata(), np.array(lines["mean"]) - centre)
        assert bold.get_linewidth() > 3 * thin[-1].get_linewidth()
        (band,) = axes.findobj(FillBetweenPolyCollection)
        corners = band.get_paths()[0].vertices  # type: ignore[union-attr]
        for step, mean, stderr in zip(lines["steps"], lines["mean"], lines["stderr"], strict=True):
            ends = corners[np.isclose(corners[:, 0], step), 1]
            assert ends.min() == pytest.approx(mean - centre - stderr)
            assert ends.max() == pytest.approx(mean - centre + stderr)
        upright = [line for line in axes.get_lines() if len(line.get_xydata()) == 2 and line.get_xdata()[0] != 0]  # type: ignore[index]
        edges = sorted({float(line.get_xdata()[0]) for line in upright if line.get_linestyle() == "--"})  # type: ignore[index]
        assert edges == ([] if lines["basin_radius"]["value"] is None else [-0.4, 0.4])
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert "basin radius 0.4" in running(figure)
    assert "basin wider than 1" in running(figure)


def test_a_basin_is_in_the_legend_only_where_one_is_drawn(results: Results) -> None:
    assert "basin: mean rise" in words(lines_figure(line_ensembles(record(results))))
    for entry in results["landscapes"].values():
        for surface in entry["surfaces"].values():
            surface["lines"]["basin_radius"]["value"] = None
            surface["mean_rise"]["value"] = -0.25
    text = running(lines_figure(line_ensembles(record(results))))
    assert "basin" not in text
    assert "not a minimum" in text


def test_rises_are_counted_from_the_checkpoint(results: Results) -> None:
    for ensemble in line_ensembles(record(results)):
        assert np.all(ensemble.rises[:, 10] == 0)
        assert ensemble.mean[10] == 0


# --- files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_png_has_a_pdf_and_both_are_alike_to_the_byte_whatever_the_user_s_settings(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(results)
    names = draw_landscapes(record(results), tmp_path, dpi=50)
    assert names == [
        "landscape_overview.png", "landscape_lines.png",
        "landscape_after_task1_algebra_contour.png", "landscape_after_task1_algebra_3d.png",
    ]  # fmt: skip
    twins = [name.replace(".png", ".pdf") for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, *twins])
    for name, twin in zip(names, twins, strict=True):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width < 50 * 4
        content = (tmp_path / twin).read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        assert b"CreationDate" not in content
    chosen = ("landscape_lines", "landscape_after_task1_algebra_3d")
    monkeypatch.setattr(run, "figures", lambda results: (pair for pair in figures(results) if pair[0] in chosen))
    (tmp_path / "again").mkdir()
    with mpl.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        draw_landscapes(record(results), tmp_path / "again", dpi=50)
        assert mpl.rcParams["font.size"] == 30
    again = sorted((tmp_path / "again").iterdir())
    assert len(again) == 4
    assert [path.read_bytes() for path in again] == [(tmp_path / path.name).read_bytes() for path in again]


def test_a_figure_that_cannot_be_written_leaves_the_old_one(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [tmp_path / f"landscape_overview.{kind}" for kind in ("png", "pdf")]
    for path in old:
        path.write_text("old")

    def fail(self: Figure, path: Path, **settings: object) -> None:
        path.write_text("half")
        raise OSError("full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="full"):
        draw_landscapes(record(results), tmp_path, dpi=50)
    assert [path.read_text() for path in old] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == sorted(old)


@pytest.mark.parametrize(
    ("name", "text"), [("group:philosophy", "group-philosophy"), ("a/../b c", "a-b-c"), ("x_1", "x_1")]
)
def test_a_name_makes_a_harmless_file_name(name: str, text: str) -> None:
    assert slug(name) == text


def test_every_task_has_a_file_name_of_its_own() -> None:
    names = ["a.b", "a:b", "a-b", "\u4f60\u597d", "\u518d\u89c1", "x" * 300, "x" * 301, "anatomy", "group:philosophy"]
    written = distinct_slugs(names)
    assert len({name.casefold() for name in written.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,110}", name) for name in written.values())
    assert (written["anatomy"], written["group:philosophy"]) == ("anatomy", "group-philosophy")


def test_contours_say_what_lies_between_two_lines() -> None:
    assert step_between_lines(np.linspace(0, 1, 25).reshape(5, 5)) == ("lines every 0.2 nats",)
    (fact,) = step_between_lines(np.geomspace(0.01, 10, 25).reshape(5, 5))
    assert fact.endswith("nats, not even")
    assert step_between_lines(np.ones((5, 5))) == ()
    assert step_between_lines(np.full((5, 5), np.nan)) == ()


def test_the_figure_of_accuracies_has_counts_or_intervals_and_says_what_guessing_gives() -> None:
    splits = small_results().forgetting.splits
    text = running(matrix_figure(splits, "guessing: 0.25"))
    assert "guessing: 0.25" in text
    assert cell_lines(splits[0], 1, 0)[:2] == ("1.00", "[0.88, 1.06]")
