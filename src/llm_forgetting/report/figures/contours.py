"""Contours on one colour scale: the scale, its bar, lines of each surface's own, and labels that are never cut."""

from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import FLAT_RANGE
from llm_forgetting.report.figures.style import SMALL

COLOURS = "viridis"
# Beyond this ratio of largest to smallest loss a linear scale shows one surface and hides the others.
LOG_RATIO = 8.0
# Losses near 0 would stretch a logarithmic scale without end; below this share of the largest all is one colour.
LOWEST_SHARE = 0.01
HATCH = "/////"


def shared_norm(surfaces: Iterable[Floats]) -> Normalize:
    """One colour scale for all surfaces: logarithmic where the losses span more than a factor of eight."""
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    if values.size == 0:
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if high - low < FLAT_RANGE:
        return Normalize(low - 0.5, high + 0.5)
    if _many_sizes(low, high):
        return LogNorm(max(low, LOWEST_SHARE * high), high, clip=True)
    return Normalize(low, high)


def limits(norm: Normalize) -> tuple[float, float]:
    """Lowest and highest value of a scale."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    return norm.vmin, norm.vmax


def fill_levels(norm: Normalize) -> Floats:
    """Enough levels that filled contours look smooth, even in colour."""
    low, high = limits(norm)
    return np.geomspace(low, high, 129) if isinstance(norm, LogNorm) else np.linspace(low, high, 129)


def own_levels(values: Floats) -> Floats:
    """Round levels across a surface's own range: even, or 1, 2, 5 and so on where it spans many sizes; none if flat."""
    finite = values[np.isfinite(values)]
    if not finite.size or np.ptp(finite) <= FLAT_RANGE:
        return np.empty(0)
    low, high = float(finite.min()), float(finite.max())
    if not _many_sizes(low, high):
        return _between(MaxNLocator(7, steps=[1, 2, 5, 10]), low, high)
    low = max(low, LOWEST_SHARE * high)
    coarse, fine = (_between(LogLocator(subs=subs), low, high) for subs in ((1.0, 2.0, 5.0), (1.0, 2.0, 3.0, 5.0, 7.0)))
    return coarse if len(coarse) > 3 else fine


def step_between_lines(values: Floats) -> tuple[str, ...]:
    """What lies between two lines of `own_levels`, as a fact for a caption; none where there are no two lines."""
    levels = own_levels(values)
    if len(levels) < 2:
        return ()
    steps = np.diff(levels)
    if np.allclose(steps, steps[0]):
        return (f"lines every {steps[0]:g} nats",)
    return (f"lines at {levels[0]:g}, {levels[1]:g} to {levels[-1]:g} nats, not even",)


def _between(locator: Locator, low: float, high: float) -> Floats:
    levels = np.asarray(locator.tick_values(low, high))
    return levels[(levels > low) & (levels < high)]


def _many_sizes(low: float, high: float) -> bool:
    return low > 0 and high / low > LOG_RATIO


def ink(norm: Normalize, level: float) -> str:
    """Black on light fills, white on dark ones."""
    red, green, blue, _ = mpl.colormaps[COLOURS](float(norm(level)))
    return "black" if 0.30 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def draw_contours(
    axes: Axes,
    alphas: Floats,
    betas: Floats,
    values: Floats,
    norm: Normalize,
    *,
    levels: Floats,
    within: Floats,
    avoid: Floats,
    cut: Patch | None = None,
) -> None:
    """Fill values[i, j] at (alphas[i], betas[j]) in the shared colours and draw lines at `levels`.

    Cells that are not finite stay as they are. Labels stand inside the polygon `within`, clear of the points `avoid`; what is
    outside of `cut` is cut away.
    """
    masked = np.ma.masked_invalid(values).T  # contour's rows are the y axis, ours (i) the first direction
    if not masked.count():
        return
    clipped = np.ma.masked_array(np.clip(masked.filled(0), *limits(norm)), masked.mask)
    fill = axes.contourf(alphas, betas, clipped, levels=fill_levels(norm), norm=norm, cmap=COLOURS)
    fill.set_rasterized(True)
    drawn: list[ContourSet] = [fill]
    if levels.size:
        # Colour is shared by all surfaces; the lines are this one's own, so that its shape shows too.
        colours = [ink(norm, level) for level in levels]
        lines = axes.contour(alphas, betas, masked, levels=levels, colors=colours, linewidths=0.6)
        _label(axes, lines, norm, within, avoid)
        drawn.append(lines)
    for contours in drawn if cut is not None else []:
        contours.set_clip_path(cut)


def _label(axes: Axes, lines: ContourSet, norm: Normalize, within: Floats, avoid: Floats) -> None:
    """Write each level once on its line, if there is room."""
    levels = np.asarray(lines.levels)
    even = np.allclose(np.diff(levels, 2), 0, atol=1e-9 * np.ptp(levels))
    decimals = next((n for n in range(9) if np.allclose(levels, np.round(levels, n), rtol=0, atol=1e-12)), 9)
    gap = 0.17 * float(np.sqrt(np.ptp(within, axis=0).prod()))
    places = label_places(lines.allsegs, Outline(within), avoid, gap)
    if not places:
        return
    for text in axes.clabel(
        lines, manual=places, fontsize=SMALL, fmt=f"%.{decimals}f" if even else "%g", inline_spacing=3
    ):
        fill = mpl.colormaps[COLOURS](float(norm(float(text.get_text()))))
        text.set_path_effects([withStroke(linewidth=1.5, foreground=to_hex(fill))])


def label_places(
    levels: Sequence[Sequence[Floats]], within: Outline, avoid: Floats, gap: float
) -> list[tuple[float, float]]:
    """Per level the vertex farthest from everything to avoid, if it is `gap` away and its line is long enough to read."""
    places: list[tuple[float, float]] = []
    for pieces in levels:
        long = [piece for piece in pieces if np.hypot(*np.diff(piece, axis=0).T).sum() > 2 * gap]
        vertices = np.concatenate([np.empty((0, 2)), *long])
        vertices = vertices[within.contains_points(vertices)] if len(vertices) else vertices
        if not len(vertices):
            continue
        taken = np.concatenate([avoid, np.array(places).reshape(-1, 2)])
        clear = np.hypot(*(vertices[:, None] - taken[None]).transpose(2, 0, 1)).min(axis=1)
        if clear.max() >= gap:
            x, y = vertices[int(clear.argmax())]
            places.append((float(x), float(y)))
    return places


def colour_bar(figure: Figure, norm: Normalize, axes: Axes, label: str = "loss (nats)") -> None:
    """The scale's bar, with round numbers also on a logarithmic scale, and pointed where smaller losses share a colour."""
    low, high = limits(norm)
    cut = isinstance(norm, LogNorm) and low <= LOWEST_SHARE * high * (1 + 1e-9)
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), extend="min" if cut else "neither", extendfrac=0.03, cax=axes)
    bar.set_label(label)
    bar.ax.tick_params(which="both", width=0.6)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_major_formatter(ScalarFormatter())
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
