"""Views of the loss surfaces around checkpoints."""

from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.records import CheckpointLandscape, TaskSurface
from llm_forgetting.report.tables.run import SPLIT_WORDS, Scanned, display_name
from llm_forgetting.report.views.captions import Caption, space_alarms
from llm_forgetting.report.views.fit_quality import surface_quality
from llm_forgetting.results import Results

# Of more tasks not every surface is drawn: figures would grow as the square of the tasks.
MOST_TASKS = 3


@dataclass(frozen=True, eq=False)
class SurfaceView:
    """Loss surface to draw: values[i, j] nats at (alphas[i], betas[j]); `points` (p, 2) were evaluated for a fit."""

    checkpoint: str
    task: str
    space: str
    alphas: Floats
    betas: Floats
    values: Floats
    points: Floats
    caption: Caption

    @property
    def rise(self) -> float:
        """Highest minus lowest finite value, nats."""
        finite = self.values[np.isfinite(self.values)]
        return float(np.ptp(finite)) if finite.size else 0.0

    @property
    def centre(self) -> float:
        """Loss at the checkpoint, nats."""
        return float(self.values[len(self.alphas) // 2, len(self.betas) // 2])


def drawn_surfaces(results: Scanned) -> list[tuple[str, str]]:
    """Checkpoint and task of every surface that is drawn: of more than `MOST_TASKS` tasks the first's and the own ones."""
    surfaces = [(name, task) for name, landscape in results.landscapes.items() for task in landscape.surfaces]
    if not isinstance(results, Results) or len(results.task_names) <= MOST_TASKS:
        return surfaces
    own = {f"after_task{k}": task for k, task in enumerate(results.task_names, start=1)}
    return [(name, task) for name, task in surfaces if task in (results.task_names[0], own.get(name))]


def left_out_sentence(results: Scanned) -> str:
    """What is not drawn, and how to get it; empty where every task is drawn around every checkpoint."""
    if not isinstance(results, Results):
        return ""
    drawn, tasks = len(drawn_surfaces(results)), len(results.task_names)
    measured = sum(len(landscape.surfaces) for landscape in results.landscapes.values())
    if drawn == tasks * len(results.landscapes):
        return ""
    rest = (
        f"{measured - drawn} more were measured: lf.open_run(RUN).surface(CHECKPOINT, TASK) gives them. "
        if measured > drawn
        else ""
    )
    every = "" if results.config.landscape.tasks == "all" else "--landscape.tasks all measures every task everywhere."
    what = (
        "the first task and of each checkpoint's own" if tasks > MOST_TASKS else "the first, the own and the last task"
    )
    return f"Drawn are the surfaces of {what}. {rest}{every}".strip()


def surface_views(results: Scanned) -> list[SurfaceView]:
    """Every loss surface that is drawn, checkpoint by checkpoint."""
    split = split_word(results)
    return [
        _surface_view(name, task, results.landscapes[name], results.landscapes[name].surfaces[task], split)
        for name, task in drawn_surfaces(results)
    ]


def split_word(results: Scanned) -> str:
    """Word for the items whose loss the landscape is."""
    return SPLIT_WORDS[results.config.landscape.items]


def _surface_view(
    checkpoint: str, task: str, landscape: CheckpointLandscape, surface: TaskSurface, split: str
) -> SurfaceView:
    quality = surface_quality(landscape.fit, surface.error, surface.loss)
    return SurfaceView(
        checkpoint=checkpoint,
        task=task,
        space=landscape.space,
        alphas=landscape.alphas,
        betas=landscape.betas,
        values=surface.loss,
        points=landscape.points if landscape.fit else np.empty((0, 2)),
        caption=Caption(
            f"{display_name(checkpoint)}: loss of {display_name(task)}",
            (f"{len(surface.items)} {split} items", quality.fact),
            (*quality.alarms, *space_alarms(landscape.space)),
        ),
    )
