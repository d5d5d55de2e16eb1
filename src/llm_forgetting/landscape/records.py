"""Records of loss landscapes: surfaces around a checkpoint, paths between two, the plane through three. No torch.

n items, k option letters, K tasks. Losses and rises are in nats; distances count in units of the reference checkpoint's
norm, those of paths and of the plane through checkpoints in the Frobenius norm of delta W.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from llm_forgetting.arrays import Floats1, Floats2, Floats3, Ints1
from llm_forgetting.files import OMITTED
from llm_forgetting.landscape.metrics import MeanRise, SurfaceMetrics
from llm_forgetting.landscape.results import Evaluations, ScanAxes, Surface

SURFACES = ("loss", "four_way_loss", "accuracy", "letter_mass")


@dataclass(frozen=True)
class FitSummary:
    """Fit of a surface or a path: its polynomial degree, points evaluated, how many of them were check points, the
    largest error allowed as a share of the loss's range (of 2 nats, if the range is larger), and whether it was met at
    the check points, which are all that was checked.
    """

    degree: int
    evaluations: int
    check_points: int
    tolerance: float
    converged: bool


@dataclass(frozen=True)
class FitError:
    """Error of a fit at its check points: the largest in nats, that as a share of min(range, 2 nats), and the share of
    items whose likeliest letter is wrong.
    """

    largest: float
    relative: float
    wrong_letters: float


@dataclass(frozen=True)
class BasinRadius:
    """Distance within which the mean loss over directions stays at most `tau` nats above the checkpoint's; None where
    it is not left within the steps.
    """

    tau: float
    value: float | None


@dataclass(frozen=True, eq=False)
class LineProfiles:
    """Losses (directions, s) in nats at `steps` (s,) along random directions, with mean and stderr (s,) over
    directions; `nodes` are the steps that were evaluated on lines off the plane.
    """

    steps: Floats1
    losses: Floats2
    mean: Floats1
    stderr: Floats1
    nodes: Floats1
    basin_radius: BasinRadius


@dataclass(frozen=True, eq=False)
class TaskSurface:
    """Surface of one task around a checkpoint: (a, b) cells at alphas[i], betas[j]; p points were evaluated.

    loss, four_way_loss: nats; accuracy, letter_mass: shares; measured_loss: (p,) nats. `error` is None for a grid.
    Only in the phase's artifact: letter_logits (p, n, k) and rest (p, n), logits of the letters and logsumexp of all
    others, and the right answers' places (n,).
    """

    items: tuple[str, ...]
    loss: Floats2
    four_way_loss: Floats2
    accuracy: Floats2
    letter_mass: Floats2
    error: FitError | None
    metrics: SurfaceMetrics
    mean_rise: MeanRise
    lines: LineProfiles
    measured_loss: Floats1
    letter_logits: Annotated[Floats3 | None, OMITTED] = None
    rest: Annotated[Floats2 | None, OMITTED] = None
    answers: Annotated[Ints1 | None, OMITTED] = None


@dataclass(frozen=True)
class GaugeSelfTest:
    """Self-test: a loss (nats) and a second difference (nats per squared distance) of the adapter as it is, and
    rewritten by random matrices; they must agree to `tolerance` of their size.
    """

    items: int
    value: tuple[float, float]
    value_relative_difference: float
    second_difference: tuple[float, float]
    second_difference_relative_difference: float
    tolerance: float
    passed: bool


@dataclass(frozen=True, eq=False)
class CheckpointLandscape:
    """Landscape around one checkpoint on [-distance, distance]^2, per task.

    alphas (a,), betas (b,): steps along the two directions; points (p, 2): what was evaluated; adapter_norm: of this
    checkpoint, reference_norm: the unit of distances, relative_scale: their ratio; update_norm: |delta W|_F. `fit` is
    None for a grid; `note` says why a grid was taken after all. An adapter that is not plain LoRA has no gauge self-test.
    """

    space: Literal["adapter", "weight", "raw"]
    method: Literal["spectral", "grid"]
    distance: float
    alphas: Floats1
    betas: Floats1
    adapter_norm: float
    reference_norm: float
    relative_scale: float
    update_norm: float
    direction_cosine: float
    evaluations: int
    fit: FitSummary | None
    note: str | None
    points: Floats2
    surfaces: dict[str, TaskSurface]
    gauge_self_test: Annotated[GaugeSelfTest | None, OMITTED] = None

    def surface(self, task: str, seed: int) -> Surface:
        """The mean loss of one task as a surface; `seed` is that of the directions."""
        record, fit = self.surfaces[task], self.fit
        error = record.error
        return Surface(
            alphas=np.array(self.alphas),
            betas=np.array(self.betas),
            losses=np.array(record.loss),
            evaluated=Evaluations(
                points=np.array(self.points),
                losses=np.array(record.measured_loss),
                degree=None if fit is None else fit.degree,
                checks=0 if fit is None else fit.check_points,
                error=None if error is None else error.largest,
                relative_error=None if error is None else error.relative,
                tolerance=0.0 if fit is None else fit.tolerance,
                converged=self.note is None if fit is None else fit.converged,
                note=self.note,
            ),
            along=ScanAxes(
                f"{self.space} space", self.adapter_norm, (self.reference_norm,) * 2, self.direction_cosine, seed
            ),
        )


@dataclass(frozen=True)
class MetricChange:
    """Metric of a surface at two checkpoints, and after minus before; in the metric's own unit."""

    before: float
    after: float
    change: float


@dataclass(frozen=True)
class ComparedMetrics:
    """Changes of a surface's metrics, nats (curvatures: nats per squared distance)."""

    centre: MetricChange
    maximum: MetricChange
    standard_deviation: MetricChange
    curvature_centre: MetricChange
    curvature_inner: MetricChange
    range: MetricChange


@dataclass(frozen=True)
class MeanRiseChange:
    """Mean rise at two checkpoints, after minus before (nats), with the stderr of that difference."""

    before: float
    after: float
    change: float
    stderr: float
    directions: int


@dataclass(frozen=True)
class ScaleChange:
    """Adapter norm in units of the reference norm, at two checkpoints."""

    before: float
    after: float


ChangeVerdict = Literal[
    "sharper", "flatter", "no difference shown", "no verdict: not a minimum", "no verdict: measures disagree"
]


@dataclass(frozen=True)
class LandscapeChange:
    """Change of one task's surface between two successive checkpoints. `sharper`: True and False as `verdict` says
    sharper or flatter, else None. `verdict` is None in runs older than it.
    """

    task: str
    before: str
    after: str
    metrics: ComparedMetrics
    mean_rise: MeanRiseChange
    sharper: bool | None
    relative_scale: ScaleChange
    verdict: ChangeVerdict | None = None
