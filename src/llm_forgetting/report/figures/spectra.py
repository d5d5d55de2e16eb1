"""The curvature at every checkpoint: its spectral density, and where in the network its trace lies."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.results import SpectralDensity
from llm_forgetting.report.figures.contours import colour_bar
from llm_forgetting.report.figures.layout import BAR, Caption, lay_out
from llm_forgetting.report.figures.style import LINE_COLOURS, SMALL, even_ticks
from llm_forgetting.report.tables.run import SPLIT_WORDS, eigenvalue_text, spoken, value_and_error

# Eigenvalues are blurred by this share of their range; densities below the second number are not drawn.
WIDTH, FLOOR = 0.01, 1e-6
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Spectrum:
    """One checkpoint: its density, the extreme eigenvalues that were found one by one (each too little of the density to be
    seen), and the trace of every module's block as cells[type, layer], NaN where there is none.
    """

    density: SpectralDensity
    extremes: tuple[float, ...]
    types: tuple[str, ...]
    cells: Floats
    caption: Caption
    trace: Caption


def spectra_of(results: Mapping[str, Any]) -> list[Spectrum]:
    """Every checkpoint's curvature in results.json."""
    split = SPLIT_WORDS[results["config"]["landscape"]["items"]]
    tasks = results.get("task_names", [])
    return [
        _spectrum(name, found, f"{len(found['items'])} {split} items of {spoken(task)}")
        for (name, found), task in zip((results.get("curvature") or {}).items(), tasks, strict=False)
    ]


def _spectrum(name: str, found: Mapping[str, Any], items: str) -> Spectrum:
    nodes, weights = (np.array(found["density"][key], dtype=float) for key in ("eigenvalues", "weights"))
    types, cells = _cells({module: float(block["value"]) for module, block in found["trace_by_module"].items()})
    ends = " to ".join(eigenvalue_text(found[end][0]) for end in ("smallest", "largest"))
    whole = f"trace {value_and_error(found['trace']['value'], found['trace']['stderr'])}"
    return Spectrum(
        density=SpectralDensity(nodes, weights),
        extremes=tuple(float(one["value"]) for end in ("smallest", "largest") for one in found[end]),
        types=types,
        cells=cells,
        caption=Caption(
            spoken(name),
            (
                items,
                f"eigenvalues {ends} (marks: the extreme ones)",
                f"{whole} over {found['dimension']:,} coordinates",
            ),
        ),
        trace=Caption(spoken(name), (items, whole)),
    )


def _cells(traces: Mapping[str, float]) -> tuple[tuple[str, ...], Floats]:
    """By kind of module (the last part of its name) and layer (the first number in it)."""
    places = [(module.rpartition(".")[2], int((_LAYER.search(module) or [0, 0])[1])) for module in traces]
    types = tuple(dict.fromkeys(kind for kind, _ in places))
    cells = np.full((len(types), 1 + max(layer for _, layer in places)), np.nan)
    for (kind, layer), value in zip(places, traces.values(), strict=True):
        row = types.index(kind)
        cells[row, layer] = value if np.isnan(cells[row, layer]) else cells[row, layer] + value
    return types, cells


def density_figure(spectra: Sequence[Spectrum]) -> Figure:
    """Densities on a logarithmic scale, all with one pair of axes."""
    panels = lay_out(
        {(0, column): spectrum.caption for column, spectrum in enumerate(spectra)},
        aspect=0.75,
        x_label="eigenvalue (nats per unit of the factors, squared)",
        y_labels=["density of eigenvalues"],
        right=0.1,
    )
    nodes = np.concatenate([spectrum.density.eigenvalues for spectrum in spectra])
    width = max(WIDTH * float(np.ptp(nodes)), 1e-12)
    at = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, 800)
    for axes, spectrum in zip(panels.axes.values(), spectra, strict=True):
        values = spectrum.density.smooth(at, width)
        axes.fill_between(
            at, np.maximum(values, FLOOR * values.max()), FLOOR * values.max(), color=LINE_COLOURS[0], lw=0
        )
        axes.plot(
            spectrum.extremes, [0.0] * len(spectrum.extremes), "|", color=LINE_COLOURS[1], ms=12, mew=1.5,
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(FLOOR * values.max(), 3 * values.max())
        axes.spines[["top", "right"]].set_visible(False)
        even_ticks(axes.xaxis, 5)
    lows, highs = zip(*(axes.get_ylim() for axes in panels.axes.values()), strict=True)
    for axes in panels.axes.values():
        axes.set_ylim(min(lows), max(highs))
    return panels.figure


def trace_figure(spectra: Sequence[Spectrum]) -> Figure:
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
