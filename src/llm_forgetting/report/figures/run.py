"""Every figure of a run, from results.json alone, as PNG and as PDF."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llm_forgetting.report.figures.accuracy_matrix import matrices_of, matrix_figure
from llm_forgetting.report.figures.checkpoint_plane import bowls_of, plane_figure
from llm_forgetting.report.figures.contours import shared_norm
from llm_forgetting.report.figures.lines import ensembles_of, lines_figure
from llm_forgetting.report.figures.paths import paths_figure, ways_of
from llm_forgetting.report.figures.spectra import density_figure, spectra_of, trace_figure
from llm_forgetting.report.figures.style import house_style, save
from llm_forgetting.report.figures.surface_3d import single_3d
from llm_forgetting.report.figures.surfaces import overview, single_contour, surfaces_of


def draw_landscapes(results: Mapping[str, Any], folder: Path, *, dpi: int) -> list[str]:
    """Write every figure into `folder` as PNG and PDF; the names of the PNGs, the overview first."""
    names = []
    with house_style():
        for stem, figure in _figures(results):
            save(figure, folder / stem, dpi)
            names.append(f"{stem}.png")
    return names


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Stem and figure one after the other; what was not measured has none."""
    surfaces = surfaces_of(results)
    norm = shared_norm(surface.values for surface in surfaces)
    yield "landscape_overview", overview(surfaces, norm)
    if "forgetting" in results:
        yield "accuracy_matrix", matrix_figure(matrices_of(results))
    if bowls := bowls_of(results):
        yield "landscape_checkpoint_plane", plane_figure(bowls)
    if ways := ways_of(results):
        yield "landscape_path", paths_figure(ways)
    if spectra := spectra_of(results):
        yield "landscape_spectrum", density_figure(spectra)
        yield "landscape_trace", trace_figure(spectra)
    yield "landscape_lines", lines_figure(ensembles_of(results))
    rise = max(surface.rise for surface in surfaces)
    for surface in surfaces:
        stem = f"landscape_{slug(surface.checkpoint)}_{slug(surface.task)}"
        yield f"{stem}_contour", single_contour(surface, norm)
        yield f"{stem}_3d", single_3d(surface, norm, rise)


def slug(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)
