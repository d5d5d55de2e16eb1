"""Views of the plane through three checkpoints: each task's loss inside their triangle."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RBFInterpolator

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.between_records import CheckpointPlaneScan, PlaneSurface
from llm_forgetting.report.tables.run import Scanned, display_name
from llm_forgetting.report.views.captions import Caption
from llm_forgetting.report.views.fit_quality import surface_quality
from llm_forgetting.report.views.surfaces import split_word


@dataclass(frozen=True, eq=False)
class PlaneView:
    """Loss of one task on the plane through three checkpoints."""

    plane: CheckpointPlaneScan
    task: str
    surface: PlaneSurface
    caption: Caption

    @property
    def corners(self) -> Floats:
        """Coordinates (3, 2) of the checkpoints."""
        return np.array(list(self.plane.checkpoints.values()), dtype=float)

    @property
    def trajectory(self) -> Floats:
        """Coordinates (t, 2) of the training, projected onto the plane."""
        return np.array([(point.a, point.b) for point in self.plane.trajectory], dtype=float).reshape(-1, 2)

    def continued(self) -> Floats:
        """The loss (a, b), nats, and outside a smooth continuation: cells that the outline cuts need all their corners
        to be drawn.
        """
        grid = np.stack(np.meshgrid(self.plane.alphas, self.plane.betas, indexing="ij"), axis=-1)
        inside, values = self.plane.inside, self.surface.loss.copy()
        known = inside & np.isfinite(values)
        if known.any() and np.linalg.matrix_rank(grid[known] - grid[known][0]) == 2:
            values[~inside] = RBFInterpolator(grid[known], values[known], neighbors=12)(grid[~inside])
        return values


def plane_views(results: Scanned) -> list[PlaneView]:
    """Every task's loss on the plane, or nothing where the plane was not scanned."""
    plane = results.checkpoint_plane
    if plane is None:
        return []
    split = split_word(results)
    return [_plane_view(plane, task, surface, split) for task, surface in plane.surfaces.items()]


def _plane_view(plane: CheckpointPlaneScan, task: str, surface: PlaneSurface, split: str) -> PlaneView:
    quality = surface_quality(plane.fit, surface.error, surface.loss[plane.inside])
    training = ["thin line: training, projected"] if plane.trajectory else []
    facts = (f"{len(surface.items)} {split} items", quality.fact, *training)
    return PlaneView(plane, task, surface, Caption(f"loss of {display_name(task)}", facts, quality.alarms))
