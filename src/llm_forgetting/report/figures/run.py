"""Every figure of a run or of a scan, from its record alone, as PNG and as PDF."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from llm_forgetting.report.figures.accuracy_matrix import matrix_figure
from llm_forgetting.report.figures.checkpoint_plane import plane_figure
from llm_forgetting.report.figures.frontier import frontier_figure
from llm_forgetting.report.figures.lines import lines_figure
from llm_forgetting.report.figures.paths import paths_figure
from llm_forgetting.report.figures.spectra import density_figure, trace_figure
from llm_forgetting.report.figures.style import house_style, save
from llm_forgetting.report.figures.surface_3d import single_3d
from llm_forgetting.report.figures.surfaces import overview, single_contour
from llm_forgetting.report.tables.run import Scanned, chance_text
from llm_forgetting.report.tables.words import measure_name
from llm_forgetting.report.views.checkpoint_plane import plane_views
from llm_forgetting.report.views.frontier import frontier_views
from llm_forgetting.report.views.lines import line_ensembles
from llm_forgetting.report.views.paths import path_views
from llm_forgetting.report.views.spectra import spectrum_views
from llm_forgetting.report.views.surfaces import surface_views
from llm_forgetting.results import Results

View = TypeVar("View")
MOST_PANELS = 16
_LONGEST = 100
"""Characters of a name in a file name: a file system takes 255 in all."""


def draw_landscapes(results: Scanned, folder: Path, *, dpi: int) -> list[str]:
    """Write every figure into `folder` as PNG and PDF; the names of the PNGs, the overview first."""
    names = []
    with house_style():
        for stem, figure in figures(results):
            save(figure, folder / stem, dpi)
            names.append(f"{stem}.png")
    return names


def figures(results: Scanned) -> Iterator[tuple[str, Figure]]:
    """Stem and figure one after the other; what was not measured has none."""
    if surfaces := surface_views(results):
        yield "landscape_overview", overview(spread(surfaces))
    if isinstance(results, Results):
        yield "accuracy_matrix", matrix_figure(results.forgetting.splits, chance_text(results), measure_name(results))
        if scored := [training.during for training in results.training if training.during is not None]:
            yield "learning_frontier", frontier_figure(scored, list(frontier_views(results)))
    if planes := plane_views(results):
        yield "landscape_checkpoint_plane", plane_figure(planes)
    if paths := path_views(results):
        yield "landscape_path", paths_figure(spread(paths))
    if spectra := spectrum_views(results):
        yield "landscape_spectrum", density_figure(spectra)
        yield "landscape_trace", trace_figure(spectra)
    if surfaces:
        yield "landscape_lines", lines_figure(spread(line_ensembles(results)))
    slugs = distinct_slugs(list(dict.fromkeys(surface.task for surface in surfaces)))
    for surface in surfaces:
        stem = f"landscape_{slug(surface.checkpoint)}_{slugs[surface.task]}"
        yield f"{stem}_contour", single_contour(surface)
        yield f"{stem}_3d", single_3d(surface)


def spread(views: Sequence[View]) -> Sequence[View]:
    """The views of a figure of many panels: all, or `MOST_PANELS` evenly spread from the first to the last.

    A panel is drawn on a raster as large as the whole figure, so that memory grows as the square of the panels.
    """
    if len(views) <= MOST_PANELS:
        return views
    return [views[round(n * (len(views) - 1) / (MOST_PANELS - 1))] for n in range(MOST_PANELS)]


def slug(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def distinct_slugs(names: Sequence[str]) -> dict[str, str]:
    """The names as parts of file names, each its own: where two are written alike, or one is too long, with a hash of it."""
    short = {name: slug(name)[:_LONGEST] for name in names}
    alike = Counter(written.casefold() for written in short.values())
    return {
        name: written
        if len(slug(name)) <= _LONGEST and alike[written.casefold()] == 1
        else f"{written}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, written in short.items()
    }
