"""Views of the curvature at checkpoints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.records import SpectrumRecord
from llm_forgetting.curvature.results import SpectralDensity, Trace
from llm_forgetting.report.tables.run import Scanned, display_name, eigenvalue_text, value_and_error
from llm_forgetting.report.views.captions import Caption
from llm_forgetting.report.views.surfaces import split_word
from llm_forgetting.results import Results

# Eigenvalues are blurred by this share of their range; densities below the second number are not drawn.
WIDTH, FLOOR = 0.01, 1e-6
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, eq=False)
class SpectrumView:
    """Spectrum at one checkpoint: its density, the extreme eigenvalues that were computed one by one (each too little of
    the density to be seen), and the trace of every module's block as cells[type, layer], NaN where there is none.
    """

    density: SpectralDensity
    extremes: tuple[float, ...]
    types: tuple[str, ...]
    cells: Floats
    caption: Caption
    trace: Caption


def spectrum_views(results: Scanned) -> list[SpectrumView]:
    """Every checkpoint's spectrum; none where it was not computed."""
    if not isinstance(results, Results):
        return []
    split = split_word(results)
    return [
        _spectrum_view(name, spectrum, f"{len(spectrum.items)} {split} items of {display_name(task)}")
        for (name, spectrum), task in zip(results.curvature.items(), results.task_names, strict=False)
    ]


def _spectrum_view(name: str, spectrum: SpectrumRecord, items: str) -> SpectrumView:
    types, cells = _by_type_and_layer(spectrum.trace_by_module)
    ends = f"{eigenvalue_text(spectrum.smallest[0])} to {eigenvalue_text(spectrum.largest[0])}"
    trace = f"trace {value_and_error(spectrum.trace.value, spectrum.trace.stderr)}"
    facts = (
        items,
        f"eigenvalues {ends} (marks: the extreme ones)",
        f"{trace} over {spectrum.dimension:,} coordinates",
    )
    return SpectrumView(
        density=spectrum.density,
        extremes=tuple(eigenvalue.value for eigenvalue in (*spectrum.smallest, *spectrum.largest)),
        types=types,
        cells=cells,
        caption=Caption(display_name(name), facts),
        trace=Caption(display_name(name), (items, trace)),
    )


def _by_type_and_layer(traces: Mapping[str, Trace]) -> tuple[tuple[str, ...], Floats]:
    """Traces by type of module (the last part of its name) and layer (the first number in it)."""
    places = [(module.rpartition(".")[2], int((_LAYER.search(module) or [0, 0])[1])) for module in traces]
    types = tuple(dict.fromkeys(kind for kind, _ in places))
    cells = np.full((len(types), 1 + max(layer for _, layer in places)), np.nan)
    for (kind, layer), trace in zip(places, traces.values(), strict=True):
        row = types.index(kind)
        cells[row, layer] = trace.value if np.isnan(cells[row, layer]) else cells[row, layer] + trace.value
    return types, cells


def blurred_densities(views: Sequence[SpectrumView], points: int) -> tuple[Floats, list[Floats]]:
    """Eigenvalues (points,) over the range of all spectra, and every spectrum's blurred density (points,) there."""
    nodes = np.concatenate([view.density.eigenvalues for view in views])
    width = max(WIDTH * float(np.ptp(nodes)), 1e-12)
    at = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, points)
    return at, [view.density.smooth(at, width) for view in views]
