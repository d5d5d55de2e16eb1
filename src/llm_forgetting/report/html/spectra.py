"""Plots of the curvature at every checkpoint: spectral density, and where in the network the trace lies."""

from collections.abc import Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.records import SpectrumRecord
from llm_forgetting.report.html.blocks import Block, Figures, Numbers, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.colour_scale import COLOURSCALE
from llm_forgetting.report.tables.curvature import curvature_table
from llm_forgetting.report.tables.run import Table, display_name, value_and_error
from llm_forgetting.report.views.spectra import FLOOR, SpectrumView, blurred_densities, spectrum_views
from llm_forgetting.results import Results


def curvature_blocks(results: Results) -> list[Block]:
    """Densities, traces by module, and the table of extreme eigenvalues."""
    if not results.curvature:
        return [
            Prose(
                "Eigenvalues, trace and spectral density were not computed in this run; --curvature.spectrum true does.",
                quiet=True,
            )
        ]
    spectra = spectrum_views(results)
    columns = min(len(spectra), 2)
    return [
        Numbers(curvature_table(results)),
        Figures(_densities(spectra), columns, "Eigenvalues are blurred by a hundredth of their range."),
        Figures(
            [_trace(spectrum, spectra) for spectrum in spectra],
            columns,
            "The trace of each module's diagonal block, on one colour scale.",
            [_modules(name, record) for name, record in results.curvature.items()],
        ),
    ]


def _densities(spectra: Sequence[SpectrumView]) -> list[Plot]:
    at, curves = blurred_densities(spectra, 500)
    top = max(float(curve.max()) for curve in curves)
    floor = FLOOR * top
    layout = {
        "xaxis": {"title": {"text": "eigenvalue"}},
        "yaxis": {
            "title": {"text": "density of eigenvalues"},
            "type": "log",
            "range": [float(np.log10(floor)), float(np.log10(3 * top))],
            "exponentformat": "power",
            "dtick": 1,
        },
        "showlegend": False,
        "margin": {"l": 58, "r": 8, "t": 8, "b": 40},
    }
    return [
        _density(spectrum, at, np.maximum(curve, floor), layout)
        for spectrum, curve in zip(spectra, curves, strict=True)
    ]


def _density(spectrum: SpectrumView, at: Floats, curve: Floats, layout: Spec) -> Plot:
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(at),
        "y": rounded(curve),
        "fill": "tozeroy",
        "fillcolor": "@line0/0.35",
        "line": {"color": "@line0", "width": 1.5},
        "hovertemplate": "%{x:.3g}: %{y:.2g}<extra></extra>",
    }
    heading = spectrum.caption.heading
    alt = f"Spectral density {heading}: {'; '.join(spectrum.caption.facts)}."
    return Plot(f"Spectral density, {heading}", alt, [trace], layout, spectrum.caption.facts, aspect=0.6)


def _trace(spectrum: SpectrumView, spectra: Sequence[SpectrumView]) -> Plot:
    values = np.concatenate([other.cells.ravel() for other in spectra])
    finite = values[np.isfinite(values)]
    low, high = min(0.0, float(finite.min())), float(finite.max())
    trace = {
        "type": "heatmap",
        "x": list(range(spectrum.cells.shape[1])),
        "y": [plain(kind) for kind in spectrum.types],
        "z": rounded(spectrum.cells),
        "zmin": low,
        "zmax": high,
        "colorscale": COLOURSCALE,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{y}, layer %{x}: %{z:.3g}<extra></extra>",
        "colorbar": {"title": {"text": "trace", "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    layout = {
        "xaxis": {"title": {"text": "layer"}, "showgrid": False, "zeroline": False, "tickformat": "d", "nticks": 8},
        "yaxis": {"autorange": "reversed", "showgrid": False},
        "margin": {"l": 84, "r": 8, "t": 8, "b": 40},
    }
    heading = f"Trace by module, {spectrum.trace.heading}"
    return Plot(
        heading, f"{heading}: {'; '.join(spectrum.trace.facts)}.", [trace], layout, spectrum.trace.facts, aspect=0.6
    )


def _modules(name: str, record: SpectrumRecord) -> Table:
    rows = tuple(
        (module, value_and_error(trace.value, trace.stderr)) for module, trace in record.trace_by_module.items()
    )
    return Table(f"Trace by module, {display_name(name)}", ("module", "trace"), rows, "± one standard error.")
