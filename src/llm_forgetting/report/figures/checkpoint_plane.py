"""The plane through three checkpoints: every task's loss inside their triangle, and the way the training went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.contours import HATCH, colour_bar, draw_contours, own_levels, shared_norm
from llm_forgetting.report.figures.fit_quality import quality
from llm_forgetting.report.figures.layout import BAR, Caption, axis_label, lay_out, panel_width
from llm_forgetting.report.figures.style import CHECKPOINT, SMALL, ticks_between
from llm_forgetting.report.tables.run import SPLIT_WORDS, measured, spoken

_HALO = withStroke(linewidth=2.2, foreground="white")
_EDGE = withStroke(linewidth=1.8, foreground="black")
_COLUMNS, _LEFT = 3, 0.6
# Inches that the checkpoints' names take beside the outermost of them, and beyond the outline.
_NAMES = np.array([0.42, 0.36])
_TALLEST, _FLATTEST = 1.35, 0.45


@dataclass(frozen=True)
class Bowl:
    """One task's loss on the plane: values[i, j] at (alphas[i], betas[j]) where `inside`, whose border is `outline` (p, 2)."""

    alphas: Floats
    betas: Floats
    values: Floats
    inside: NDArray[np.bool_]
    outline: Floats
    checkpoints: Mapping[str, Floats]
    losses: Mapping[str, float]
    trajectory: Floats
    caption: Caption


def bowls_of(results: Mapping[str, Any]) -> list[Bowl]:
    """Every task's loss on the plane, or nothing where the plane was not scanned."""
    plane = results.get("checkpoint_plane")
    if not plane:
        return []
    split = SPLIT_WORDS[results["config"]["landscape"]["items"]]
    return [_bowl(task, surface, plane, split) for task, surface in plane["surfaces"].items()]


def _bowl(task: str, surface: Mapping[str, Any], plane: Mapping[str, Any], split: str) -> Bowl:
    alphas, betas, values = (
        np.array(numbers, dtype=float) for numbers in (plane["alphas"], plane["betas"], surface["loss"])
    )
    inside = np.array(plane["inside"], dtype=bool)
    checkpoints = {name: np.array(place, dtype=float) for name, place in plane["checkpoints"].items()}
    state = quality(plane["fit"], surface["error"], values[inside])
    trajectory = np.array([(entry["a"], entry["b"]) for entry in plane.get("trajectory") or []], dtype=float)
    facts = (
        f"{len(surface['items'])} {split} items",
        state.fact,
        "thin line: training, projected" if len(trajectory) else "",
    )
    return Bowl(
        alphas=alphas,
        betas=betas,
        values=np.where(inside, values, np.nan),
        inside=inside,
        outline=np.array(plane["outline"], dtype=float),
        checkpoints=checkpoints,
        losses={name: float(loss) for name, loss in surface["at_checkpoints"].items()},
        trajectory=trajectory.reshape(-1, 2),
        caption=Caption(f"loss of {spoken(task)}", tuple(filter(None, facts)), state.alarms),
    )


def plane_figure(bowls: Sequence[Bowl]) -> Figure:
    """All tasks side by side on one colour scale, which is the plane's own."""
    norm = shared_norm([bowl.values for bowl in bowls])
    columns = min(len(bowls), _COLUMNS)
    width = panel_width(columns, _LEFT + BAR)
    low, high = _window(bowls[0], width)
    across, up = high - low
    first, second, *_ = bowls[0].checkpoints
    panels = lay_out(
        {divmod(number, columns): bowl.caption for number, bowl in enumerate(bowls)},
        aspect=float(up / across),
        x_label=axis_label(f"{spoken(first)} to {spoken(second)}", "Frobenius norm of ΔW", width),
        y_labels=[axis_label("across", "Frobenius norm of ΔW", width * up / across)] * -(-len(bowls) // columns),
        left=_LEFT,
    )
    for axes, bowl in zip(panels.axes.values(), bowls, strict=True):
        _bowl_panel(axes, bowl, norm)
        _names(axes, bowl, close=0.8 * across / width)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    colour_bar(panels.figure, norm, panels.bar_axes())
    return panels.figure


def _window(bowl: Bowl, width: float) -> tuple[Floats, Floats]:
    """Corners of a panel `width` inches wide that holds the outline and the names, neither tall nor flat."""
    corners = np.stack(list(bowl.checkpoints.values()))
    low, high = bowl.outline.min(axis=0), bowl.outline.max(axis=0)
    inch = 0.0
    for _ in range(20):  # names have a size in inches, and so need the more room the more an inch stands for
        beside, beyond = inch * _NAMES
        low = np.array([min(low[0], corners[:, 0].min() - beside), bowl.outline[:, 1].min() - beyond])
        high = np.array([max(high[0], corners[:, 0].max() + beside), bowl.outline[:, 1].max() + beyond])
        inch = float(((high - low) / (width, _TALLEST * width)).max())
    across, up = high - low
    missing = np.maximum([up / _TALLEST - across, _FLATTEST * across - up], 0) / 2
    return low - missing, high + missing


def _bowl_panel(axes: Axes, bowl: Bowl, norm: Normalize) -> None:
    """The surface inside its outline and nowhere else, the checkpoints by name, and the way between them."""
    _fill(axes, bowl, norm)
    # What is cut off has jagged edges.
    axes.add_patch(Polygon(bowl.outline, closed=True, fill=False, edgecolor="white", linewidth=1.0, zorder=3))
    corners = list(bowl.checkpoints.values())
    for start, end in pairwise(corners):
        arrow = FancyArrowPatch(
            tuple(start), tuple(end), arrowstyle="-|>", mutation_scale=9, shrinkA=3, shrinkB=4, linewidth=1.1, zorder=4
        )
        arrow.set(color="black", path_effects=[_HALO])
        axes.add_patch(arrow)
    if len(bowl.trajectory):
        axes.plot(*bowl.trajectory.T, color="white", linewidth=0.8, zorder=5, path_effects=[_EDGE])
        dots: Any = {"color": "white", "markersize": 2.6, "markeredgecolor": "black", "markeredgewidth": 0.5}
        axes.plot(*bowl.trajectory.T, "o", zorder=5, **dots)
    for place in corners:
        axes.plot(*place, zorder=6, **CHECKPOINT)
    axes.spines[["top", "right"]].set_visible(False)
    ticks_between(axes.xaxis, bowl.outline[:, 0].min(), bowl.outline[:, 0].max())
    ticks_between(axes.yaxis, bowl.outline[:, 1].min(), bowl.outline[:, 1].max())


def _names(axes: Axes, bowl: Bowl, *, close: float) -> None:
    """Every checkpoint's name and measured loss outside of the outline; two that are `close` stand back to back."""
    middle = float(np.mean(list(bowl.checkpoints.values()), axis=0)[1])
    for name, (a, b) in bowl.checkpoints.items():
        upwards = b > middle
        gaps = [p[0] - a for n, p in bowl.checkpoints.items() if n != name and (p[1] > middle) == upwards]
        nearest = min(gaps, key=abs, default=np.inf)
        axes.annotate(
            f"{spoken(name)}\n{measured(bowl.losses[name])}",
            (a, float(bowl.outline[:, 1].max() if upwards else bowl.outline[:, 1].min())),
            (0, 2 if upwards else -2),
            textcoords="offset points",
            ha="center" if abs(nearest) > close else "right" if nearest > 0 else "left",
            va="bottom" if upwards else "top",
            linespacing=1.1,
            fontsize=SMALL,
            zorder=7,
        )


def _fill(axes: Axes, bowl: Bowl, norm: Normalize) -> None:
    """Filled contours and lines, cut along the outline; what is not finite is hatched."""
    cut = Polygon(bowl.outline, closed=True, facecolor="0.9", edgecolor="0.5", hatch=HATCH, linewidth=0)
    cut.set_visible(not np.isfinite(bowl.values[bowl.inside]).all())
    axes.add_patch(cut)
    corners = np.stack(list(bowl.checkpoints.values()))
    draw_contours(
        axes,
        bowl.alphas,
        bowl.betas,
        continued(bowl),
        norm,
        levels=own_levels(bowl.values[bowl.inside]),
        within=0.85 * corners + 0.15 * corners.mean(axis=0),
        avoid=np.concatenate([np.linspace(start, end, 30) for start, end in pairwise(corners)]),
        cut=cut,
    )


def continued(bowl: Bowl) -> Floats:
    """`values`, and outside a smooth continuation: cells that the outline cuts need all their corners to be drawn."""
    grid = np.stack(np.meshgrid(bowl.alphas, bowl.betas, indexing="ij"), axis=-1)
    known = bowl.inside & np.isfinite(bowl.values)
    values = bowl.values.copy()
    if known.any() and np.linalg.matrix_rank(grid[known] - grid[known][0]) == 2:
        values[~bowl.inside] = RBFInterpolator(grid[known], values[known], neighbors=12)(grid[~bowl.inside])
    return values
