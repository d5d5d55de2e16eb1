"""Figures of the curvature at every checkpoint: its spectral density, and where in the network its trace lies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llm_forgetting.report.figures.contours import colour_bar
from llm_forgetting.report.figures.layout import BAR, lay_out
from llm_forgetting.report.figures.style import LINE_COLOURS, SMALL, even_ticks
from llm_forgetting.report.views.spectra import FLOOR, SpectrumView, blurred_densities


def density_figure(spectra: Sequence[SpectrumView]) -> Figure:
    """Densities on a logarithmic scale, all with one pair of axes."""
    panels = lay_out(
        {(0, column): spectrum.caption for column, spectrum in enumerate(spectra)},
        aspect=0.75,
        x_label="eigenvalue (nats per unit of the factors, squared)",
        y_labels=["density of eigenvalues"],
        right=0.1,
    )
    at, densities = blurred_densities(spectra, 800)
    for axes, spectrum, values in zip(panels.axes.values(), spectra, densities, strict=True):
        axes.fill_between(
            at, np.maximum(values, FLOOR * values.max()), FLOOR * values.max(), color=LINE_COLOURS[0], lw=0
        )
        marks, inside = [0.0] * len(spectrum.extremes), axes.get_xaxis_transform()
        axes.plot(spectrum.extremes, marks, "|", color=LINE_COLOURS[1], ms=12, mew=1.5, transform=inside, clip_on=False)
        axes.set_yscale("log")
        axes.set_ylim(FLOOR * values.max(), 3 * values.max())
        axes.spines[["top", "right"]].set_visible(False)
        even_ticks(axes.xaxis, 5)
    lows, highs = zip(*(axes.get_ylim() for axes in panels.axes.values()), strict=True)
    for axes in panels.axes.values():
        axes.set_ylim(min(lows), max(highs))
    return panels.figure


def trace_figure(spectra: Sequence[SpectrumView]) -> Figure:
    """Where the trace lies, on one colour scale."""
    panels = lay_out(
        {(0, column): spectrum.trace for column, spectrum in enumerate(spectra)},
        aspect=max(0.3, 0.09 * len(spectra[0].types)),
        x_label="layer",
        y_labels=[""],
        left=0.75,
        right=BAR,
    )
    values = np.concatenate([spectrum.cells.ravel() for spectrum in spectra])
    norm = Normalize(min(0.0, float(np.nanmin(values))), float(np.nanmax(values)))
    for axes, spectrum in zip(panels.axes.values(), spectra, strict=True):
        kinds, layers = spectrum.cells.shape
        edges = np.arange(layers + 1) - 0.5, np.arange(kinds + 1) - 0.5
        axes.pcolormesh(*edges, np.ma.masked_invalid(spectrum.cells), norm=norm, cmap="viridis")
        axes.set_yticks(range(kinds), spectrum.types, fontsize=SMALL)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    colour_bar(panels.figure, norm, panels.bar_axes(), "trace of the module's block")
    return panels.figure
