"""Views of the losses along random lines through checkpoints."""

from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.records import CheckpointLandscape, TaskSurface
from llm_forgetting.report.tables.run import Scanned, display_name, measured, value_and_error
from llm_forgetting.report.views.captions import Caption, space_alarms, together
from llm_forgetting.report.views.fit_quality import surface_quality
from llm_forgetting.report.views.surfaces import drawn_surfaces, split_word


@dataclass(frozen=True, eq=False)
class LineEnsemble:
    """Rises (directions, s) over the checkpoint's loss at `steps` (s,) along random lines, with mean and stderr (s,),
    nats; the basin of `tau` nats has `radius`, None where it is wider than the lines.
    """

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


def line_ensembles(results: Scanned) -> list[LineEnsemble]:
    """Every ensemble of random lines that is drawn, as surfaces are, checkpoint by checkpoint."""
    split = split_word(results)
    return [
        _line_ensemble(name, task, results.landscapes[name], results.landscapes[name].surfaces[task], split)
        for name, task in drawn_surfaces(results)
    ]


def _line_ensemble(
    checkpoint: str, task: str, landscape: CheckpointLandscape, surface: TaskSurface, split: str
) -> LineEnsemble:
    lines, rise, basin = surface.lines, surface.mean_rise, surface.lines.basin_radius
    centre = lines.mean[len(lines.steps) // 2]
    quality = surface_quality(landscape.fit, surface.error, surface.loss)
    mean_rise = value_and_error(rise.value, rise.stderr).replace("-", "\N{MINUS SIGN}")
    reach = f"basin wider than {landscape.distance:g}" if basin.value is None else f"basin radius {basin.value:.2g}"
    reach = "not a minimum" if rise.value < 0 else reach
    facts = (
        f"{len(surface.items)} {split} items, {together(f'loss {measured(centre)} at 0')}",
        f"plane: {quality.fact}",
        f"mean rise {mean_rise}, {together(reach)}",
    )
    with np.errstate(invalid="ignore"):
        return LineEnsemble(
            checkpoint=checkpoint,
            task=task,
            space=landscape.space,
            steps=lines.steps,
            rises=lines.losses - centre,
            mean=lines.mean - centre,
            stderr=lines.stderr,
            tau=basin.tau,
            radius=basin.value,
            caption=Caption(
                f"{display_name(checkpoint)}: loss of {display_name(task)}",
                facts,
                (*quality.alarms, *space_alarms(landscape.space)),
            ),
        )
