"""Records between checkpoints: straight paths, the plane through three, the training's trajectory on it. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

from llm_forgetting.arrays import Bools2, Floats1, Floats2, Floats3, Ints1, Places2
from llm_forgetting.files import OMITTED, reshaped
from llm_forgetting.landscape.metrics import Barrier
from llm_forgetting.landscape.records import SURFACES, FitError, FitSummary


@dataclass(frozen=True, eq=False)
class NodeValues:
    """Values (p,) of one task at the evaluated points of a path: nats, and shares."""

    loss: Floats1
    four_way_loss: Floats1
    accuracy: Floats1
    letter_mass: Floats1


@dataclass(frozen=True)
class StartDerivatives:
    """Slope (nats) and curvature (nats) of a task's loss in t at the start of a path; errors are their change with the
    degree.
    """

    slope: float
    slope_error: float
    curvature: float
    curvature_error: float


@dataclass(frozen=True, eq=False)
class PathProfile:
    """Profile of one task along a path: (s,) values at the path's steps, nats and shares, and the barrier in between.

    Only in the phase's artifact: letter_logits (p, n, k), rest (p, n) at the nodes, and answers (n,).
    """

    items: tuple[str, ...]
    loss: Floats1
    four_way_loss: Floats1
    accuracy: Floats1
    letter_mass: Floats1
    at_nodes: NodeValues
    error: FitError
    at_start: StartDerivatives
    barrier: Barrier
    letter_logits: Annotated[Floats3 | None, OMITTED] = None
    rest: Annotated[Floats2 | None, OMITTED] = None
    answers: Annotated[Ints1 | None, OMITTED] = None


@dataclass(frozen=True)
class RepairPoint:
    """Best compromise t* of a path: the step of least mean loss (nats) over the choosing items of all tasks, and each
    task's loss there on all its landscape items, and on those that did not choose (None where all did).
    """

    t: float
    selection_items: tuple[int, ...]
    mean_loss_on_selection: float
    loss: dict[str, float]
    loss_on_the_others: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class PathScan:
    """Path from checkpoint `start` to checkpoint `to`, straight in delta W: t in steps (s,) from 0 to 1, nodes (p,)
    evaluated; update_norm is |delta W_2 - delta W_1|_F. degree to converged: see `FitSummary`.
    """

    start: Annotated[str, Field(alias="from")]
    to: str
    update_norm: float
    steps: Floats1
    nodes: Floats1
    degree: int
    evaluations: int
    check_points: int
    tolerance: float
    converged: bool
    tasks: dict[str, PathProfile]
    repair: RepairPoint


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaneSurface:
    """Surface of one task on the plane through three checkpoints: (a, b) cells, NaN outside the triangle (null in
    JSON).

    loss, four_way_loss: nats; accuracy, letter_mass: shares; measured_loss (p,) nats; at_checkpoints: true losses,
    nats; error_at_checkpoints: the fit's largest error there. letter_logits, rest, answers: as in `TaskSurface`.
    """

    items: tuple[str, ...]
    loss: Places2
    four_way_loss: Places2
    accuracy: Places2
    letter_mass: Places2
    error: FitError
    measured_loss: Floats1
    letter_logits: Annotated[Floats3 | None, OMITTED] = None
    rest: Annotated[Floats2 | None, OMITTED] = None
    answers: Annotated[Ints1 | None, OMITTED] = None
    at_checkpoints: dict[str, float]
    error_at_checkpoints: float


@dataclass(frozen=True)
class TrajectoryPoint:
    """Adapter at the end of an epoch, projected onto the plane: coordinates (a, b), distance from it, true loss per
    task (nats), and the loss of its image on the plane (None outside the triangle).
    """

    name: str
    a: float
    b: float
    residual: float
    loss: dict[str, float]
    in_plane_loss: dict[str, float] | None


@dataclass(frozen=True, eq=False)
class CheckpointPlaneScan:
    """Plane through three checkpoints, inside their triangle and a margin: alphas (a,), betas (b,) in units of delta W,
    the mask inside (a, b), the outline's corners (c, 2), coordinates of the checkpoints, and the evaluated points (p,
    2).
    """

    alphas: Floats1
    betas: Floats1
    inside: Bools2
    outline: Floats2
    checkpoints: dict[str, tuple[float, float]]
    fit: FitSummary
    points: Floats2
    surfaces: dict[str, PlaneSurface]
    trajectory: tuple[TrajectoryPoint, ...]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return reshaped(handler(source), _require_mask, _masked)


def _require_mask(plane: Mapping[str, Any]) -> Mapping[str, Any]:
    """`plane`, where its cells are null exactly outside the mask."""
    outside = [not cell for row in plane["inside"] for cell in row] if isinstance(plane.get("inside"), list) else []
    for task, surface in plane["surfaces"].items() if outside and isinstance(plane.get("surfaces"), Mapping) else ():
        for kind in SURFACES:
            rows = surface.get(kind) if isinstance(surface, Mapping) else None
            if isinstance(rows, list) and [cell is None for row in rows for cell in row] != outside:
                path = f"surfaces.{task}.{kind} must be null exactly where inside is false"
                raise PydanticCustomError("array", "{path}", {"path": path})
    return plane


def _masked(plane: CheckpointPlaneScan, content: dict[str, Any]) -> dict[str, Any]:
    """`content` with None in the cells outside the mask."""
    for surface in content["surfaces"].values():
        for kind in SURFACES:
            cells = np.array(surface[kind], dtype=object)
            cells[~plane.inside] = None
            surface[kind] = cells.tolist()
    return content


@dataclass(frozen=True, eq=False)
class BetweenCheckpoints:
    """Landscape between checkpoints: the paths, the plane (None where it was not scanned), and why something is
    missing.
    """

    paths: tuple[PathScan, ...]
    checkpoint_plane: CheckpointPlaneScan | None
    between_notes: tuple[str, ...]
