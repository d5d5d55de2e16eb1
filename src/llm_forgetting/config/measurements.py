"""Sections of a configuration that say what is measured, and how."""

from dataclasses import dataclass
from typing import Literal

from llm_forgetting.config.rules import above, at_least

Arithmetic = Literal["float32", "tf32", "native"]
MOST_SEED = 2**53
"""Largest seed: a configuration's fingerprint writes numbers as floats, which tell no larger ones apart."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring of every checkpoint on every task and split.

    Args:
        batch_size: Items per forward pass; null takes as many as make some thousand tokens. Halved where memory runs out;
            does not change a number beyond rounding.
        rotations: Also score every earlier task's trained items with their options rotated through all places, after that task
            and after the last.
        recovery_items: Trained items of every earlier task on which the last checkpoint is fine-tuned again, to see what comes
            back on the others (at most half of the task's); 0 for no such test.
        recovery_epochs: Passes over them.
        recovery_control: Also fine-tune the base model on the same few items: what they teach by themselves.
        text: File of passages that belong to no task, blank lines between them, whose loss is followed from checkpoint to
            checkpoint; null takes twelve short ones that come along.
        quantised: Also score every checkpoint with its weights rounded, to `8bit`, `4bit` or both: what quantisation costs
            every task, beside what later tasks cost. Needs the extra `quantised`.
        during: Also score the task that is learnt, all earlier ones and the probes while it is trained, at so many equal
            fractions of every training (8: 0, 1/8, ..., 1): learning curves, and what was forgotten by the time that so much
            was learnt.
        during_items: Items per task for it, the same ones at every fraction; null takes as many as cost some 15% of the
            training.
        during_split: Split that those items are of; `train` where held-out items are not learnt, as MMLU's are not by a small
            model.
    """

    batch_size: int | None = at_least(1, default=None)
    rotations: bool = True
    recovery_items: int = at_least(0, default=10)
    recovery_epochs: int = at_least(1, default=3)
    recovery_control: bool = False
    text: str | None = None
    quantised: tuple[Literal["8bit", "4bit"], ...] = ()
    during: int = at_least(0, default=0, most=1_000)
    during_items: int | None = at_least(1, default=None)
    during_split: Literal["test", "train"] = "test"


@dataclass(frozen=True)
class LandscapeConfig:
    """The loss surfaces around every checkpoint and between them.

    Args:
        space: `adapter`: the adapter's own reachable set in gauge-invariant coordinates. `weight`: the merged weights, with
            filter-normalised directions. `raw`: A and B as written, not comparable between adapters.
        method: `spectral`: smooth fits from few evaluations, with a measured error. `grid`: every cell evaluated.
        directions: Random directions; the first two span the plane, all of them enter the mean rise and its error.
        distance: Half the side of the plane, in units of the reference checkpoint's norm; null is 1 in adapter and raw
            space, 0.05 in weight space.
        tolerance: A fit is good if its largest error at fresh random points is at most this share of the loss's range
            (of 2 nats, if the range is larger).
        max_evaluations: Most evaluations per fitted surface; one that needs more is marked as not converged.
        resolution: Points along each side of the surface that is kept; odd, so that the checkpoint itself is one. `grid`
            evaluates every one of them. null is 41 for spectral, 11 for grid.
        tau: Rise of the loss, in nats, that bounds the basin.
        checkpoint_plane: Also scan the plane through the initial, the first and the last checkpoint.
        plane_tolerance: `tolerance` of that plane, which is drawn and not measured on.
        paths: Also measure the straight paths from each trained checkpoint to the next, and the point of repair on them.
        tasks: Whose loss is measured where. `first_own_last`: surfaces of the first, the checkpoint's own and the last task;
            on a path also of both ends' tasks; forecasts of the first and the own one: a sequence of T tasks costs T times
            one task's. `all`: of every task everywhere, T^2 (of two tasks that is the same). `learnt`: surfaces only of those
            learnt by then, `first`: only of the first; what is measured around a checkpoint then does not depend on what
            comes after it. `none`: no surfaces around checkpoints; paths, the plane through three checkpoints and forecasts
            have options of their own.
        trajectory: Also project the adapter at the end of every epoch onto that plane, with its distance from the plane and
            its true loss; an evaluation per epoch.
        items: Split whose items define the loss: `train` (the minimum that was reached) or `test`.
        num_items: Items per task; the same ones at every point and checkpoint.
        batch_size: Items per forward pass.
        points_per_forward: Points of a scan that share one forward pass of the backbone (low-rank spaces only); null is 1 on
            a CPU, on a GPU as many as make some thousand tokens.
        arithmetic: Precision of everything that is measured around checkpoints, over weights of any precision. `float32`;
            `tf32`: faster on a GPU, rough at about 1e-4 nats; `native`: the weights' own, in bfloat16 too rough for a
            landscape.
        self_test_items: Items used to check that the numbers do not depend on the gauge of the adapter; at most num_items.
        seed: Seeds directions, check points and the choice of items.
    """

    space: Literal["adapter", "weight", "raw"] = "adapter"
    method: Literal["spectral", "grid"] = "spectral"
    directions: int = at_least(2, default=4, most=1_000)
    distance: float | None = above(0, default=None, most=1_000)
    tolerance: float = above(0, default=0.01)
    max_evaluations: int = at_least(23, default=60, most=2_000)
    resolution: int | None = at_least(3, default=None, most=501)
    tau: float = above(0, default=0.1)
    checkpoint_plane: bool = True
    plane_tolerance: float = above(0, default=0.1)
    paths: bool = True
    tasks: Literal["first_own_last", "all", "learnt", "first", "none"] = "first_own_last"
    trajectory: bool = False
    items: Literal["train", "test"] = "train"
    num_items: int = at_least(1, default=8)
    batch_size: int = at_least(1, default=16)
    points_per_forward: int | None = at_least(1, default=None)
    arithmetic: Arithmetic = "float32"
    self_test_items: int = at_least(1, default=8)
    seed: int = at_least(0, default=0, most=MOST_SEED)

    @property
    def resolved_distance(self) -> float:
        """`distance`, or what null stands for."""
        default = 0.05 if self.space == "weight" else 1.0
        return default if self.distance is None else self.distance

    @property
    def resolved_resolution(self) -> int:
        """`resolution`, or what null stands for."""
        default = 11 if self.method == "grid" else 41
        return default if self.resolution is None else self.resolution

    def tasks_around(self, k: int, tasks: int) -> list[int]:
        """Numbers of the tasks of which surfaces are taken around the checkpoint after task k of `tasks`, from 1 on."""
        last = {"all": tasks, "learnt": k, "first": 1, "none": 0}
        return list(range(1, last[self.tasks] + 1)) if self.tasks in last else sorted({1, k, tasks})

    def tasks_between(self, start: int, end: int, tasks: int) -> list[int]:
        """Numbers of the tasks that are measured between the checkpoints after tasks `start` and `end`."""
        return sorted({1, start, end, tasks}) if self.tasks == "first_own_last" else list(range(1, tasks + 1))

    def tasks_forecast(self, k: int) -> list[int]:
        """Numbers of the tasks whose losses are forecast at the checkpoint after task k."""
        return sorted({1, k}) if self.tasks == "first_own_last" else list(range(1, k + 1))


@dataclass(frozen=True)
class CurvatureConfig:
    """Second derivatives of the loss of the landscape items.

    Args:
        forecast: Forecast how every earlier task's loss changes on the way to the next checkpoint, from slope and curvature at
            its start; two Hessian-vector products per task.
        spectrum: Also eigenvalues, trace, spectral density and sharpness at every checkpoint; a product costs about four
            forward passes, and there are as many as the numbers below add up to.
        checkpoints: `all`, or only the `first` trained one.
        products: `exact` Hessian-vector products; or `differences` of gradients, for kernels and sharded models that have no
            second derivative (their error is reported).
        micro_batch: Items per pass; smaller takes less memory and changes no number beyond rounding.
        lanczos_steps: Products of the run behind the extreme eigenvalues and most of the trace.
        eigenvalues: How many of the largest and of the smallest are reported.
        density_runs: Further, shorter runs for the spectral density.
        density_steps: Products of each of those.
        trace_probes: Products for what is left of the trace, and its standard error.
        weight_probes: Products for the trace in the merged weights; 0 leaves trace and largest eigenvalue there out.
        power_steps: Products for the largest eigenvalue in the merged weights; keeps four copies of the adapted
            weights.
        radius: Distance of worst-case and average-case sharpness, in units of the adapter's norm.
        ascent_steps: Projected gradient steps of the worst case.
        sharpness_directions: Random directions of the average case.
        seed: Seeds starting vectors, probes and directions.
    """

    forecast: bool = True
    spectrum: bool = False
    checkpoints: Literal["all", "first"] = "all"
    products: Literal["exact", "differences"] = "exact"
    micro_batch: int = at_least(1, default=16)
    lanczos_steps: int = at_least(2, default=30, most=10_000)
    eigenvalues: int = at_least(1, default=3)
    density_runs: int = at_least(0, default=2, most=10_000)
    density_steps: int = at_least(2, default=12, most=10_000)
    trace_probes: int = at_least(2, default=10)
    weight_probes: int = at_least(0, default=8)
    power_steps: int = at_least(1, default=8)
    radius: float = above(0, default=0.05, most=1_000)
    ascent_steps: int = at_least(0, default=4)
    sharpness_directions: int = at_least(2, default=8, most=10_000)
    seed: int = at_least(0, default=0, most=MOST_SEED)
