"""The tables of surfaces around and between checkpoints: their numbers, how flat they are, and how they change with a task."""

import math
from collections.abc import Collection

from llm_forgetting.landscape.metrics import SurfaceMetrics
from llm_forgetting.landscape.records import CheckpointLandscape, FitError, LandscapeChange
from llm_forgetting.report.tables.run import Scanned, Table, display_name, measured, number, share, value_and_error
from llm_forgetting.results import Results


def landscape_table(results: Scanned) -> Table:
    """The numbers of every surface."""
    rows = []
    for checkpoint, landscape in results.landscapes.items():
        tolerance = None if landscape.fit is None else landscape.fit.tolerance
        for task, surface in landscape.surfaces.items():
            m = surface.metrics
            rows.append(
                (
                    f"{display_name(task)}, {display_name(checkpoint)}",
                    str(len(surface.items)),
                    *map(measured, (m.centre, m.maximum, m.standard_deviation)),
                    measured(m.range),
                    _fit_error(surface.error, tolerance),
                )
            )
    header = ("loss of", "items", "centre", "max.", "s.d.", "range", "error")
    first = next(iter(results.landscapes.values()))
    notes = [
        f"{_SPACES[first.space]}, distance {first.distance:g}; {_cells_and_fits(results.landscapes.values())}.",
        *(f"{display_name(name)}: {scan.note}." for name, scan in results.landscapes.items() if scan.note),
    ]
    return Table("Loss landscape (nats)", header, tuple(rows), " ".join(notes))


_SPACES = {
    "adapter": "adapter space (invariant under LoRA's GL(r))",
    "weight": "weight space (filter-normalised directions)",
    "raw": "raw space (another gauge of the same adapter has another landscape)",
}


def _cells_and_fits(landscapes: Collection[CheckpointLandscape]) -> str:
    """Where the cells of the surfaces come from, and what the column "error" is."""
    fits = [landscape.fit for landscape in landscapes if landscape.fit is not None]
    grids = sorted({len(landscape.alphas) for landscape in landscapes if landscape.fit is None})
    parts = [f"{cells} x {cells} cells, each evaluated" for cells in grids]
    if fits:
        cells = max(len(landscape.alphas) for landscape in landscapes if landscape.fit is not None)
        spent = " or ".join(str(count) for count in sorted({fit.evaluations for fit in fits}))
        parts.append(
            f"{cells} x {cells} cells from a fit to {spent} evaluations; error: the largest at random points that the fit had "
            f"not seen ({fits[0].check_points} or more), as a fraction of the range (at most 2 nats), tolerance "
            f"{share(fits[0].tolerance)}"
        )
    return "; ".join(parts)


def _fit_error(error: FitError | None, tolerance: float | None) -> str:
    """`0.3%`, `24%, not converged`, or "-" where nothing was fitted."""
    if error is None or tolerance is None:
        return "-"
    return f"{percent_above(error.relative)}{'' if error.relative <= tolerance else ', not converged'}"


def percent_above(bound: float) -> str:
    """An error of a fit in percent: rounded up, to one digit below 1% and to two above; no smaller than 0.01%."""
    if not math.isfinite(bound):
        return f"{bound}%"
    percent = 100 * max(bound, 1e-4)
    unit = 10.0 ** (math.floor(math.log10(percent)) - (percent > 1 + 1e-6))
    return f"{math.ceil(percent / unit - 1e-6) * unit:g}%"


def curvature_text(metrics: SurfaceMetrics) -> str:
    """Curvature at the centre, with its error where it is of a fit."""
    value, error = metrics.curvature_centre, metrics.curvature_centre_error
    return measured(value) if error is None else value_and_error(value, error)


def flatness_table(results: Scanned) -> Table:
    """What says how sharp every surface is at its checkpoint."""
    rows = []
    for checkpoint, landscape in results.landscapes.items():
        for task, surface in landscape.surfaces.items():
            radius = surface.lines.basin_radius.value
            rows.append(
                (
                    f"{display_name(task)}, {display_name(checkpoint)}",
                    str(len(surface.items)),
                    curvature_text(surface.metrics),
                    value_and_error(surface.mean_rise.value, surface.mean_rise.stderr),
                    f"{landscape.distance:g} or more" if radius is None else number(radius),
                    share(surface.metrics.share_within),
                )
            )
    first = next(iter(results.landscapes.values()))
    surface = next(iter(first.surfaces.values()))
    header = ("loss of", "items", "curvature", "mean rise", "basin radius", "fraction within")
    note = (
        f"curvature: largest |eigenvalue| at the centre, ± change between the last two polynomial degrees; mean rise at "
        f"distance {first.distance:g} over {surface.mean_rise.directions} directions, ± standard error; basin "
        f"radius: how far their mean loss stays within {surface.lines.basin_radius.tau:g} nats of the centre's; fraction "
        f"within: of the square, with loss within as much of the centre's."
    )
    return Table("Flatness (nats)", header, tuple(rows), note)


def between_table(results: Scanned) -> Table:
    """The loss on the way from each checkpoint to the next, and the point that keeps all tasks best."""
    rows = []
    notes = [
        "t = 0: the earlier checkpoint, t = 1: the later; barrier: the most that the loss rises above the straight line "
        "between its two ends, and at which t."
    ]
    for path in results.paths:
        best, ends = path.repair, f"{display_name(path.start)} to {display_name(path.to)}"
        for task, profile in path.tasks.items():
            rows.append(
                (
                    f"{display_name(task)}, {ends}",
                    *map(number, (profile.loss[0], best.loss[task], profile.loss[-1])),
                    measured(profile.barrier.value),
                    number(profile.barrier.at),
                    _fit_error(profile.error, path.tolerance),
                )
            )
        notes.append(
            f"{ends}: t* = {number(best.t)} has the least mean loss of the tasks on "
            f"{' + '.join(map(str, best.selection_items))} items; {path.evaluations} evaluations."
        )
    plane = results.checkpoint_plane
    if plane is not None:
        errors = "; ".join(
            f"{display_name(task)} {_fit_error(surface.error, plane.fit.tolerance)}"
            for task, surface in plane.surfaces.items()
        )
        names = ", ".join(map(display_name, plane.checkpoints))
        notes.append(f"plane through {names}: {plane.fit.evaluations} evaluations, error {errors}.")
    notes += [f"{sentence}." for sentence in results.between_notes]
    header = ("loss along the path", "at t = 0", "at t*", "at t = 1", "barrier", "at t", "error")
    return Table("Between the checkpoints (nats)", header, tuple(rows), " ".join(notes))


def comparison_table(results: Results) -> Table:
    """How every task's surface changed between checkpoints, and what the comparison rests on."""
    rows = tuple(
        (
            f"{display_name(change.task)}, {display_name(change.before)} to {display_name(change.after)}",
            str(len(results.landscapes[change.before].surfaces[change.task].items)),
            str(change.mean_rise.directions),
            f"{number(change.relative_scale.before)} to {number(change.relative_scale.after)}",
            *(f"{number(rise, 3)}" for rise in (change.mean_rise.before, change.mean_rise.after)),
            value_and_error(change.mean_rise.change, change.mean_rise.stderr),
            measured(change.metrics.curvature_centre.change),
            measured(change.metrics.centre.change),
            verdict_text(change),
        )
        for change in results.landscape_comparison
    )
    header = (
        "surface", "items", "directions", "relative scale", "rise before", "rise after", "change of rise", "curvature",
        "centre", "verdict",
    )  # fmt: skip
    note = (
        "rise: mean rise; relative scale: the adapter's norm in units of the distance's; verdict: Welch's 95% t interval of "
        "the change over the directions. No verdict where a rise is negative (not a minimum), or where the curvature moves "
        "the other way (measures disagree)."
    )
    return Table("Change of the landscape (nats)", header, rows, note if rows else "")


def verdict_text(change: LandscapeChange) -> str:
    """The verdict; runs older than it were judged by two standard errors, which is not shown."""
    return change.verdict or "not judged (older run)"
