"""Figures of loss landscapes: 3-D and contour for every checkpoint and task, all on one colour scale."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from mpl_toolkits.mplot3d.axes3d import Axes3D

from llm_forgetting.landscape.metrics import FLAT_RANGE
from llm_forgetting.objective import Floats
from llm_forgetting.report.tables import value_and_error

COLOURS = "viridis"
# Beyond this ratio of largest to smallest loss a linear scale shows one surface and hides the others.
LOG_RATIO = 8.0

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Surface:
    """One loss surface to draw: values[i, j] at (alphas[i], betas[j])."""

    checkpoint: str
    task: str
    items: int
    split: str
    alphas: Floats
    betas: Floats
    values: Floats
    rise: str

    @property
    def title(self) -> str:
        """Which checkpoint, whose loss, on which items."""
        return f"{_spoken(self.checkpoint)}: loss of {_spoken(self.task)}\n{self.items} {self.split} items, {self.rise}"


def _spoken(name: str) -> str:
    return re.sub(r"after_task(\d+)", r"after task \1", name).replace("_", " ")


def slug(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def surfaces_of(results: Mapping[str, Any]) -> list[Surface]:
    """Every loss surface in results.json, checkpoint by checkpoint."""
    split = {"train": "trained", "test": "held-out"}[results["config"]["landscape"]["items"]]
    return [
        Surface(
            checkpoint=checkpoint,
            task=task,
            items=len(surface["items"]),
            split=split,
            alphas=np.array(landscape["alphas"], dtype=float),
            betas=np.array(landscape["betas"], dtype=float),
            values=np.array(surface["loss"], dtype=float),
            rise=f"mean rise {value_and_error(surface['mean_rise']['value'], surface['mean_rise']['stderr'])} nats",
        )
        for checkpoint, landscape in results["landscapes"].items()
        for task, surface in landscape["surfaces"].items()
    ]


def shared_norm(surfaces: list[Surface]) -> Normalize:
    """One colour scale for all surfaces: logarithmic where the losses span more than a factor of eight."""
    values = np.concatenate([surface.values[np.isfinite(surface.values)] for surface in surfaces])
    if values.size == 0:
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12:
        return Normalize(low - 0.5, high + 0.5)
    if low > 0 and high / low > LOG_RATIO:
        # Losses near 0 would stretch a logarithmic scale without end; what is below 1% of the largest is one colour.
        return LogNorm(max(low, high / 100), high, clip=True)
    return Normalize(low, high)


def draw_landscapes(results: Mapping[str, Any], folder: Path, *, dpi: int) -> list[str]:
    """Write `landscape_*.png` into `folder` and return the names: an overview, and one 3-D and contour figure each."""
    surfaces = surfaces_of(results)
    norm = shared_norm(surfaces)
    names = ["landscape_overview.png"]
    with mpl.rc_context(_STYLE):
        _save(_overview(surfaces, norm), folder / names[0], dpi)
        for surface in surfaces:
            stem = f"landscape_{surface.checkpoint}_{slug(surface.task)}"
            _save(_single_contour(surface, norm), folder / f"{stem}_contour.png", dpi)
            _save(_single_3d(surface, norm), folder / f"{stem}_3d.png", dpi)
            names += [f"{stem}_contour.png", f"{stem}_3d.png"]
    return names


def _save(figure: Figure, path: Path, dpi: int) -> None:
    FigureCanvasAgg(figure)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=dpi, format="png")
    partial.replace(path)


def _levels(norm: Normalize) -> Floats:
    assert norm.vmin is not None
    assert norm.vmax is not None
    if isinstance(norm, LogNorm):
        return np.geomspace(norm.vmin, norm.vmax, 65)
    return np.linspace(norm.vmin, norm.vmax, 65)


def _contour(axes: Axes, surface: Surface, norm: Normalize) -> None:
    """Filled contours with first direction to the right and second upwards; non-finite cells hatched."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    values = np.clip(np.ma.masked_invalid(surface.values), norm.vmin, norm.vmax)
    axes.set_facecolor("0.9")
    if not np.isfinite(surface.values).all():
        axes.patch.set_hatch("////")
        axes.patch.set_edgecolor("0.5")
    # contour's rows are the y axis, ours (i) the first direction: hence the transpose.
    axes.contourf(surface.alphas, surface.betas, values.T, levels=_levels(norm), norm=norm, cmap=COLOURS)
    finite = surface.values[np.isfinite(surface.values)]
    if finite.size and np.ptp(finite) > FLAT_RANGE:
        # Colour is shared by all surfaces; the lines are this one's own, so that its shape shows too.
        own = MaxNLocator(7).tick_values(float(finite.min()), float(finite.max()))
        masked = np.ma.masked_invalid(surface.values).T
        lines = axes.contour(surface.alphas, surface.betas, masked, levels=own, colors="white", linewidths=0.8)
        decimals = next((n for n in range(9) if np.allclose(own, np.round(own, n), rtol=0, atol=1e-12)), 9)
        texts = axes.clabel(lines, fontsize=7, fmt=f"%.{decimals}f", inline_spacing=2)
        for text in texts:
            text.set_path_effects([withStroke(linewidth=1.5, foreground="0.25")])
    axes.plot(0, 0, marker="o", color="white", markeredgecolor="black", markersize=6)
    axes.set_aspect("equal")
    axes.set_xlabel("direction 1 (units of the adapter's norm)")
    axes.set_ylabel("direction 2")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _colour_bar(figure: Figure, axes: Any, norm: Normalize, **layout: Any) -> None:
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, **layout)
    bar.set_label("loss (nats per item)")
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_major_formatter(ScalarFormatter())
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _single_contour(surface: Surface, norm: Normalize) -> Figure:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    _contour(axes, surface, norm)
    axes.set_title(surface.title)
    _colour_bar(figure, axes, norm)
    return figure


def _single_3d(surface: Surface, norm: Normalize) -> Figure:
    figure = Figure(figsize=(5.6, 4.6))
    axes: Axes3D = figure.add_axes((0.0, 0.02, 0.84, 0.84), projection="3d")
    first, second = np.meshgrid(surface.alphas, surface.betas, indexing="ij")
    finite = np.where(np.isfinite(surface.values), surface.values, np.nan)
    colours = mpl.colormaps[COLOURS](norm(np.nan_to_num(finite)))
    axes.plot_surface(
        first, second, finite, facecolors=colours, rstride=1, cstride=1, linewidth=0.3, edgecolor=(1, 1, 1, 0.35),
        shade=False, antialiased=True,
    )  # fmt: skip
    axes.set_xlabel("direction 1")
    axes.set_ylabel("direction 2")
    axes.set_zlabel("loss (nats)")
    assert norm.vmin is not None
    assert norm.vmax is not None
    axes.set_zlim(norm.vmin if isinstance(norm, LogNorm) is False else 0, norm.vmax)
    axes.view_init(elev=28, azim=-55)
    axes.set_box_aspect((1, 1, 0.72), zoom=0.92)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    figure.text(0.03, 0.97, surface.title, ha="left", va="top", fontsize=10)
    bar_axes = figure.add_axes((0.86, 0.18, 0.025, 0.55))
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), cax=bar_axes)
    bar.set_label("loss (nats per item)")
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_major_formatter(ScalarFormatter())
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _overview(surfaces: list[Surface], norm: Normalize) -> Figure:
    """All surfaces side by side: a row per task, a column per checkpoint."""
    checkpoints = list(dict.fromkeys(surface.checkpoint for surface in surfaces))
    tasks = list(dict.fromkeys(surface.task for surface in surfaces))
    figure = Figure(figsize=(3.6 * len(checkpoints) + 1.2, 3.5 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), len(checkpoints), squeeze=False)
    for surface in surfaces:
        axes = grid[tasks.index(surface.task)][checkpoints.index(surface.checkpoint)]
        _contour(axes, surface, norm)
        axes.set_title(surface.title, fontsize=8.5)
        axes.label_outer()
    _colour_bar(figure, list(grid.flat), norm, shrink=0.8, aspect=30)
    return figure
