"""Losses along random lines through every checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.fit_quality import quality, space_alarms
from llm_forgetting.report.figures.layout import Caption, axis_label, lay_out, panel_width, table_of, together
from llm_forgetting.report.figures.style import (
    CHECKPOINT,
    DASHES,
    LINE_COLOURS,
    QUIET,
    direction_ticks,
    even_ticks,
    step_unit,
)
from llm_forgetting.report.tables.run import SPLIT_WORDS, measured, spoken, value_and_error


@dataclass(frozen=True)
class Ensemble:
    """Losses (directions, steps) of one task along random lines through one checkpoint, as rises over the checkpoint's loss."""

    checkpoint: str
    task: str
    space: str
    steps: Floats
    rises: Floats
    mean: Floats
    stderr: Floats
    tau: float
    radius: float | None
    caption: Caption


def ensembles_of(results: Mapping[str, Any]) -> list[Ensemble]:
    """Every bundle of random lines in results.json, checkpoint by checkpoint."""
    split = SPLIT_WORDS[results["config"]["landscape"]["items"]]
    return [
        _ensemble(checkpoint, task, landscape, surface, split)
        for checkpoint, landscape in results["landscapes"].items()
        for task, surface in landscape["surfaces"].items()
    ]


def _ensemble(
    checkpoint: str, task: str, landscape: Mapping[str, Any], surface: Mapping[str, Any], split: str
) -> Ensemble:
    lines, rise = surface["lines"], surface["mean_rise"]
    steps, losses, mean, stderr = (np.array(lines[key], dtype=float) for key in ("steps", "losses", "mean", "stderr"))
    centre = mean[len(steps) // 2]
    basin = lines["basin_radius"]
    radius = None if basin["value"] is None else float(basin["value"])
    state = quality(landscape["fit"], surface["error"], np.array(surface["loss"], dtype=float))
    reach = f"basin wider than {landscape['distance']:g}" if radius is None else f"basin radius {radius:.2g}"
    facts = (
        f"{len(surface['items'])} {split} items, {together(f'loss {measured(centre)} at 0')}",
        f"plane: {state.fact}",
        f"mean rise {_signed(value_and_error(rise['value'], rise['stderr']))}, {together(reach)}",
    )
    with np.errstate(invalid="ignore"):
        return Ensemble(
            checkpoint=checkpoint,
            task=task,
            space=landscape["space"],
            steps=steps,
            rises=losses - centre,
            mean=mean - centre,
            stderr=stderr,
            tau=float(basin["tau"]),
            radius=radius,
            caption=Caption(
                f"{spoken(checkpoint)}: loss of {spoken(task)}",
                facts,
                (*state.alarms, *space_alarms(landscape["space"])),
            ),
        )


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def lines_figure(ensembles: Sequence[Ensemble]) -> Figure:
    """All bundles side by side, a row per task and a column per checkpoint, on one axis of rises."""
    places = table_of([(ensemble.task, ensemble.checkpoint) for ensemble in ensembles])
    rows, columns = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    panels = lay_out(
        {places[ensemble.task, ensemble.checkpoint]: ensemble.caption for ensemble in ensembles},
        aspect=0.62,
        x_label=axis_label("step along a random direction", step_unit(ensembles[0].space), panel_width(columns, 0.65)),
        y_labels=["rise of the loss (nats)"] * rows,
        right=0.1,
        below=0.24 if columns > 1 else 0.38,
    )
    for ensemble in ensembles:
        _bundle(panels.axes[places[ensemble.task, ensemble.checkpoint]], ensemble)
    panels.level(range(rows))
    handles = [
        Line2D([], [], color=QUIET, linewidth=0.6),
        Line2D([], [], color=LINE_COLOURS[0], linewidth=1.8),
        Patch(color=LINE_COLOURS[0], alpha=0.25, linewidth=0),
        Line2D([], [], color=LINE_COLOURS[1], linewidth=0.9, linestyle=DASHES[1]),
    ]
    names = ["one direction", "mean", "± one standard error", f"basin: mean rise ≤ {ensembles[0].tau:g} nats"]
    panels.figure.legend(handles, names, loc="lower center", ncols=4 if columns > 1 else 2, handlelength=2.2)
    return panels.figure


def _bundle(axes: Axes, ensemble: Ensemble) -> None:
    """Every line thin, their mean bold, one standard error around it as a band; the basin between dashed lines."""
    mean = ensemble.mean
    axes.plot(ensemble.steps, ensemble.rises.T, color=QUIET, linewidth=0.5, alpha=0.8, zorder=2)
    axes.fill_between(
        ensemble.steps, mean - ensemble.stderr, mean + ensemble.stderr, color=LINE_COLOURS[0], alpha=0.25, linewidth=0
    )
    axes.plot(ensemble.steps, mean, color=LINE_COLOURS[0], linewidth=1.8, zorder=3)
    axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
    axes.plot(0, 0, zorder=4, **CHECKPOINT)
    if ensemble.radius is not None:
        for side in (-ensemble.radius, ensemble.radius):
            axes.axvline(side, color=LINE_COLOURS[1], linewidth=0.9, linestyle=DASHES[1], zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(ensemble.steps[0], ensemble.steps[-1])
    direction_ticks(axes.xaxis)
    even_ticks(axes.yaxis, 5)
