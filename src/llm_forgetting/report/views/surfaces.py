"""Views of the loss surfaces around checkpoints."""

from dataclasses import dataclass

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.records import CheckpointLandscape, TaskSurface
from llm_forgetting.report.tables.run import SPLIT_WORDS, Scanned, display_name
from llm_forgetting.report.views.captions import Caption, space_alarms
from llm_forgetting.report.views.fit_quality import surface_quality


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


def surface_views(results: Scanned) -> list[SurfaceView]:
    """Every loss surface, checkpoint by checkpoint."""
    split = split_word(results)
    return [
        _surface_view(checkpoint, task, landscape, surface, split)
        for checkpoint, landscape in results.landscapes.items()
        for task, surface in landscape.surfaces.items()
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
