"""What scans of one's own model return: plain records with axes, losses, what was evaluated, and the measured error."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.files import encode_json, write_text
from llm_forgetting.landscape.metrics import SurfaceMetrics, fitted_curvature, surface_metrics
from llm_forgetting.landscape.spectral import Fit


class Saved:
    """Records that write themselves."""

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """All fields as JSON, atomically; arrays as lists, numbers that are not finite as "nan", "inf" and "-inf"."""
        what = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())
        write_text(Path(path), encode_json({"what": what, **_plain(self)}))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value) if field.name != "fits")
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


@dataclass(frozen=True)
class ScanAxes:
    """What the axes are: `description` in words, `norm` of what is moved, `units`: the length of a step of 1 along every
    direction (Frobenius norms in the same coordinates), and the `cosine` of the first two.
    """

    description: str
    norm: float
    units: tuple[float, ...]
    cosine: float | None
    seed: int


@dataclass(frozen=True)
class Evaluations:
    """What a surface or line rests on.

    `points` (p, axes) and `losses` (p,) are all evaluations, in order. A fit of total degree `degree` was made to them; None:
    every cell was evaluated. `error` is the fit's largest error (nats) at `checks` fresh random points, the last ones, which no
    coefficient has seen; `relative_error` is its share of min(range, 2 nats), `converged` whether that is at most `tolerance`:
    what was checked is these points and no others. `note` says why there is no fit where one was asked for: values that are
    not finite, between which a grid can miss others, so it is not `converged`.
    """

    points: Floats
    losses: Floats
    degree: int | None
    checks: int
    error: float | None
    relative_error: float | None
    tolerance: float
    converged: bool
    note: str | None


class _Scan(Saved):
    """A record with the evaluations that it rests on."""

    losses: Floats
    evaluated: Evaluations

    def __repr__(self) -> str:
        """Shape, losses and error."""
        shape = " x ".join(map(str, self.losses.shape))
        finite = self.losses[np.isfinite(self.losses)]
        losses = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "none finite"
        error = "" if self.error is None else f", error {self.error:.2g}"
        return f"<{type(self).__name__} {shape}, losses {losses}{error}{'' if self.converged else ', not converged'}>"

    @property
    def evaluations(self) -> int:
        """How often the loss was evaluated."""
        return len(self.evaluated.points)

    @property
    def error(self) -> float | None:
        """Largest error at fresh random points, nats; None without a fit."""
        return self.evaluated.error

    @property
    def converged(self) -> bool:
        """Whether that error is within the tolerance at those points; True where every cell was evaluated, as asked."""
        return self.evaluated.converged


@dataclass(frozen=True, repr=False)
class Surface(_Scan):
    """losses[i, j] = L(theta + alphas[i] d + betas[j] e), mean loss (nats, if the loss is in nats) around a checkpoint theta.

    The first axis belongs to the first direction. `surface[i, j]` is `surface.losses[i, j]`; the centre is the checkpoint.
    `fits` are the polynomial behind the losses and the one of a degree less, if there are any.
    """

    alphas: Floats
    betas: Floats
    losses: Floats
    evaluated: Evaluations
    along: ScanAxes
    fits: tuple[Fit, Fit] | None = None

    def __getitem__(self, cell: Any) -> Any:
        """L(theta + alphas[i] d + betas[j] e)."""
        return self.losses[cell]

    @property
    def centre(self) -> float:
        """Loss at the checkpoint itself."""
        return float(self.losses[len(self.alphas) // 2, len(self.betas) // 2])

    def metrics(self, tau: float = 0.1) -> SurfaceMetrics:
        """The numbers of this surface; `tau` is the rise that bounds the basin. Curvatures come from the fit, with their change
        between its last two degrees as error, else from differences between cells.

        Returns:
            Numbers of the surface, nats; curvatures in nats per squared distance.
        """
        distance = float(self.alphas[-1])
        curvature, coarser = (
            (None, None)
            if self.fits is None
            else (fitted_curvature(lambda points, fit=fit: fit(points)[:, 0], distance) for fit in self.fits)  # type: ignore[misc]
        )
        return surface_metrics(self.alphas, self.betas, self.losses, tau=tau, curvature=curvature, coarser=coarser)


@dataclass(frozen=True, repr=False)
class Line(_Scan):
    """losses[i] = L(theta + steps[i] d), mean loss along one direction through a checkpoint theta.

    `line[i]` is `line.losses[i]`.
    """

    steps: Floats
    losses: Floats
    evaluated: Evaluations
    along: ScanAxes

    def __getitem__(self, cell: Any) -> Any:
        """L(theta + steps[i] d)."""
        return self.losses[cell]


@dataclass(frozen=True, repr=False)
class CheckpointSurface(_Scan):
    """losses[i, j] = L(origin + alphas[i] u + betas[j] v) on the plane through three checkpoints; NaN outside their triangle.

    The origin is the first checkpoint, u points to the second; u and v are orthonormal, so distances are Frobenius distances
    of the parameters (of delta W for LoRA). `inside` marks the cells of the triangle and the margin around it. `checkpoints`
    are their coordinates, `at_checkpoints` the losses measured there, `error_at_checkpoints` the fit's largest error at them
    (None without a fit).
    """

    alphas: Floats
    betas: Floats
    losses: Floats
    inside: np.ndarray
    checkpoints: dict[str, tuple[float, float]]
    at_checkpoints: dict[str, float]
    error_at_checkpoints: float | None
    evaluated: Evaluations
    description: str

    def __getitem__(self, cell: Any) -> Any:
        """L(origin + alphas[i] u + betas[j] v)."""
        return self.losses[cell]


@dataclass(frozen=True)
class Flatness(Saved):
    """How much the loss rises around a checkpoint, from several random directions; one direction is one sample.

    `mean_rise` is the mean over the directions of (L(+distance) + L(-distance)) / 2 - L(0), `mean_rise_stderr` its standard
    error, `rises` the directions' own. `basin_radius` is how far the mean profile stays within `tau` of the centre, None where
    it is not left within `distance`. `losses[k, i]` is L(theta + steps[i] d_k).
    """

    centre: float
    mean_rise: float
    mean_rise_stderr: float
    rises: tuple[float, ...]
    basin_radius: float | None
    tau: float
    distance: float
    steps: Floats
    losses: Floats
    along: ScanAxes
    evaluations: int

    def log(self, prefix: str = "landscape/") -> dict[str, float]:
        """The numbers that a training script logs; no basin radius where the basin is not left."""
        numbers = {
            "loss": self.centre,
            "mean_rise": self.mean_rise,
            "mean_rise_stderr": self.mean_rise_stderr,
            "basin_radius": self.basin_radius,
            "norm": self.along.norm,
        }
        return {f"{prefix}{name}": number for name, number in numbers.items() if number is not None}


@dataclass(frozen=True)
class Trajectory(Saved):
    """Where recorded points of a training lie on the plane through three checkpoints, and how well the plane stands for them.

    Point k, after `steps[k]` optimiser steps, has the `coordinates[k]` (a, b) and lies `residuals[k]` off the plane (distances
    as in `CheckpointSurface`). `losses[k]` is its true loss, `in_plane_losses[k]` that at (a, b) on the plane.
    """

    steps: np.ndarray
    coordinates: Floats
    residuals: Floats
    losses: Floats
    in_plane_losses: Floats
    checkpoints: dict[str, tuple[float, float]]
    description: str
