"""The plane through three checkpoints of a run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.experiment.analysis.landscape import CHECK_POINTS, fit_error, fit_summary, rule_of
from llm_forgetting.landscape.between_records import CheckpointPlaneScan, PlaneSurface
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane, ScannedPlane, scan_checkpoint_plane
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.spectral import FIRST_DEGREE, SpectralSurface, terms
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.progress import Advance

# The three checkpoints' triangle is scanned with this share of its heights around it.
MARGIN = 0.1


def plane_evaluations() -> int:
    """Fewest passes over the landscape items that the plane through three checkpoints costs."""
    return terms(FIRST_DEGREE) + CHECK_POINTS + 3


def analyse_checkpoint_plane(
    objective: LandscapeObjective,
    checkpoints: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
) -> CheckpointPlaneScan:
    """Every task's loss on the plane through three checkpoints, inside their triangle and a margin around it.

    The corner at the first is left out: within a tenth of the way from an untrained adapter the loss falls by more than
    anywhere else, which no surface from few points follows, and nothing of the tasks' bowls lies there.

    Axes are of unit length in the Frobenius norm of delta W: the first from the first checkpoint to the second.
    """
    plane = CheckpointPlane(*checkpoints.values())
    domain = Triangle(plane.corners, truncated=True).widened(MARGIN)
    scan = scan_checkpoint_plane(
        objective,
        plane,
        domain,
        cells=config.resolved_resolution,
        rule=replace(rule_of(config), tolerance=config.plane_tolerance),
        trajectory=trajectory,
        journal=journal,
        advance=lambda: advance(1, ""),
    )
    assert scan.surface is not None  # where nothing can be fitted the scan raises
    return CheckpointPlaneScan(
        alphas=scan.cells.alphas,
        betas=scan.cells.betas,
        inside=scan.cells.inside,
        outline=domain.outline,
        checkpoints=dict(zip(checkpoints, plane.corners, strict=True)),
        fit=fit_summary(scan.surface, config.plane_tolerance),
        points=scan.points,
        surfaces={
            name: _surface(index, objective, scan, scan.surface, list(checkpoints))
            for index, name in enumerate(objective.names)
        },
        trajectory=scan.trajectory,
    )


def _surface(
    index: int, objective: LandscapeObjective, scan: ScannedPlane, surface: SpectralSurface, checkpoints: list[str]
) -> PlaneSurface:
    """Task number `index` on the cells inside the triangle, its measured error and what was evaluated."""
    fitted, measured = (objective.statistics(values)[index] for values in (scan.values, scan.measured))
    errors = scan.error_at_checkpoints
    assert errors is not None
    return PlaneSurface(
        items=objective.item_ids(index),
        loss=scan.cells.spread(fitted.surface("loss")),
        four_way_loss=scan.cells.spread(fitted.surface("four_way_loss")),
        accuracy=scan.cells.spread(fitted.surface("accuracy")),
        letter_mass=scan.cells.spread(fitted.surface("letter_mass")),
        error=fit_error(index, objective, surface),
        measured_loss=measured.surface("loss"),
        letter_logits=measured.letter_logits,
        rest=measured.rest,
        answers=measured.answers,
        at_checkpoints=dict(zip(checkpoints, map(float, scan.at_checkpoints[:, index]), strict=True)),
        error_at_checkpoints=float(errors[index]),
    )
