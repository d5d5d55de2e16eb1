"""The landscape phase of an experiment: surfaces, their numbers, and the proof that they do not depend on the gauge."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_forgetting.config.sections import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise, regauged, update_norm
from llm_forgetting.landscape.metrics import Curvature, basin_radius, fitted_curvature, mean_rise, surface_metrics
from llm_forgetting.landscape.nodes import CachedEvaluator, Journal
from llm_forgetting.landscape.scan import LINE_NODES, LineScan, PlaneScan, scan_lines, scan_plane
from llm_forgetting.landscape.spaces import AdapterSpace, RawSpace, Space, WeightSpace
from llm_forgetting.landscape.spectral import FIRST_DEGREE, Fit, Rule, SpectralSurface, terms
from llm_forgetting.models.language.answer_statistics import SURFACES
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.progress import Advance
from llm_forgetting.seeding import derive_seed

SELF_TEST_TOLERANCE = 1e-4
CHECK_POINTS = 8


def evaluations(config: LandscapeConfig) -> int:
    """Fewest passes over the landscape items that one checkpoint costs, the (smaller) passes of the self-test not counted."""
    plane = config.cells**2 if config.method == "grid" else terms(FIRST_DEGREE) + CHECK_POINTS
    return plane + len(LINE_NODES) * (config.directions - 2)


def rule_of(config: LandscapeConfig) -> Rule:
    """When a fitted surface of this configuration is good enough."""
    return Rule(tolerance=config.tolerance, checks=CHECK_POINTS, budget=config.max_evaluations, seed=config.seed)


def space_of(model: LanguageModel, config: LandscapeConfig, factors: WeightUpdate | None = None) -> Space:
    """The configured direction space at the live adapter, or at the same adapter written as `factors`."""
    written = model.adapter_factors() if factors is None else factors
    if config.space == "raw":
        return RawSpace(written)
    if config.space == "weight":
        if not model.can_merge:
            raise UserError(
                "landscape.space=weight needs adapted weights in float32 (model.dtype=float32) that no other module shares; in "
                "lower precision a small step would be rounded away. Or use landscape.space=adapter"
            )
        return WeightSpace(written, model.weight_row_norms())
    return AdapterSpace(canonicalise(written))


def objective_of(
    model: LanguageModel, groups: Sequence[Sequence[EncodedItem]], config: LandscapeConfig
) -> LandscapeObjective:
    """The landscape objective; on a GPU several points share a forward of the backbone, unless told otherwise."""
    default = 8 if model.device.type == "cuda" else 1
    rows = default if config.points_per_forward is None else config.points_per_forward
    return LandscapeObjective(model, groups, config.batch_size, 1 if config.space == "weight" else rows)


def analyse_landscape(
    model: LanguageModel,
    items: Sequence[tuple[str, Sequence[EncodedItem]]],
    config: LandscapeConfig,
    *,
    reference_norm: float | None,
    advance: Advance,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Plane, lines and gauge self-test at the live adapter, for the tasks (name, items), as plain JSON values.

    `reference_norm` is |P| of the reference checkpoint, in units of which distances are counted; None: this one's own.
    Every evaluation is written to `journal` when it is made, and one that stands there already is not made again.
    """
    objective = objective_of(model, [group for _, group in items], config)
    space = space_of(model, config)
    own, distance = space.norm, config.reach
    length = own if reference_norm is None else reference_norm
    directions = space.directions(config.seed, max(config.directions, 2), length)
    d, e = directions[:2]
    kept = Journal(journal)
    with objective.evaluating() as values_at:
        nodes = CachedEvaluator(values_at, kept, lambda: advance(1, ""))
        plane = scan_plane(
            nodes,
            lambda row: space.point([(row[0], d), (row[1], e)]),
            objective.losses,
            distance=distance,
            cells=config.cells,
            method=config.method,
            rule=rule_of(config),
        )
        lines = scan_lines(nodes, space, directions, plane, objective.losses, distance=distance)
    return {
        "space": config.space,
        "method": "grid" if plane.surface is None else "spectral",
        "distance": distance,
        "alphas": plane.alphas.tolist(),
        "betas": plane.betas.tolist(),
        "adapter_norm": own,
        "reference_norm": length,
        "relative_scale": own / length,
        "update_norm": update_norm(canonicalise(model.adapter_factors())),
        "direction_cosine": space.cosine(d, e),
        "evaluations": nodes.evaluations,
        "fit": None if plane.surface is None else describe_fit(plane.surface, config.tolerance),
        "note": plane.note,
        "points": plane.points.tolist(),
        "surfaces": {
            name: {"items": [item.item.id for item in group], **_surface(index, objective, plane, lines, config)}
            for index, (name, group) in enumerate(items)
        },
        "gauge_self_test": gauge_self_test(model, items[0][1], config, length),
    }


def describe_fit(surface: SpectralSurface, tolerance: float) -> dict[str, Any]:
    """Degree, cost and verdict of a fit."""
    return {
        "degree": surface.fit.degree,
        "evaluations": surface.evaluations,
        "check_points": surface.checks,
        "tolerance": tolerance,
        "converged": surface.converged,
    }


def describe_error(index: int, objective: LandscapeObjective, surface: SpectralSurface) -> dict[str, float]:
    """Measured at the check points, for task number `index`: largest error of the loss, in nats and as a share of
    min(range, 2 nats), and the share of items whose likeliest letter is wrong.
    """
    truth, predicted = (
        objective.statistics(values)[index]
        for values in (
            surface.values[-surface.checks :],
            surface.fit(surface.points[-surface.checks :]),
        )
    )
    return {
        "largest": float(surface.error[index]),
        "relative": float(surface.relative_error[index]),
        "wrong_letters": float((truth.predictions != predicted.predictions).mean()),
    }


def _surface(
    index: int, objective: LandscapeObjective, plane: PlaneScan, lines: LineScan, config: LandscapeConfig
) -> dict[str, Any]:
    """Everything about task number `index` on a scanned plane and its lines."""
    scan, measured = (objective.statistics(values)[index] for values in (plane.values, plane.measured))
    loss, surface, half = scan.surface("loss"), plane.surface, len(plane.alphas) // 2

    def curvature(fit: Fit) -> Curvature:
        return fitted_curvature(lambda points: objective.losses(fit(points))[:, index], config.reach)

    profiles = lines.losses[:, :, index]
    count = len(profiles)
    with np.errstate(invalid="ignore"):
        stderr = profiles.std(axis=0, ddof=1) / count**0.5
    return {
        **{kind: scan.surface(kind).tolist() for kind in SURFACES},
        "error": None if surface is None else describe_error(index, objective, surface),
        "metrics": dataclasses.asdict(
            surface_metrics(
                plane.alphas,
                plane.betas,
                loss,
                tau=config.tau,
                curvature=None if surface is None else curvature(surface.fit),
                coarser=None if surface is None else curvature(surface.previous),
            )
        ),
        "mean_rise": dataclasses.asdict(mean_rise(float(loss[half, half]), profiles[:, [0, -1]])),
        "lines": {
            "steps": lines.steps.tolist(),
            "losses": profiles.tolist(),
            "mean": profiles.mean(axis=0).tolist(),
            "stderr": stderr.tolist(),
            "nodes": lines.nodes.tolist(),
            "basin_radius": {"tau": config.tau, "value": basin_radius(lines.steps, profiles, config.tau)},
        },
        "measured_loss": measured.surface("loss").tolist(),
        "letter_logits": measured.letter_logits.tolist(),
        "rest": measured.rest.tolist(),
        "answers": measured.answers.tolist(),
    }


def gauge_self_test(
    model: LanguageModel, items: Sequence[EncodedItem], config: LandscapeConfig, length: float
) -> dict[str, Any]:
    """One landscape value and one second difference, for the adapter as it is and rewritten by random M per module.

    Both adapters are the same function, so both numbers must agree; in raw coordinates they would not.
    `relative_difference` is of each number's own size. A second difference of a nearly flat line is a difference of equal
    numbers, so `passed` allows it the rounding of the loss too: float32's, or the backbone's own where that is lower.
    """
    factors, h = model.adapter_factors(), config.reach
    objective = objective_of(model, [list(items[: config.self_test_items])], config)
    points = []
    for written in (factors, WeightUpdate(regauged(factors, derive_seed(config.seed, "gauge self-test")))):
        space = space_of(model, config, written)
        (direction,) = space.directions(config.seed, 1, length)
        points += [space.point([(step, direction)]) for step in (-h, 0.0, h)]
    with objective.evaluating() as values_at:
        losses = [float(objective.losses(values)[0]) for values in values_at(points)]
    found = [(high, (low - 2 * centre + high) / h**2, centre) for low, centre, high in (losses[:3], losses[3:])]
    (value, second, centre), (value_other, second_other, _) = found
    low = model.dtype in (torch.bfloat16, torch.float16)
    precision = torch.finfo(model.dtype if low else torch.float32).eps
    tolerance = max(SELF_TEST_TOLERANCE, 4 * precision) if low else SELF_TEST_TOLERANCE
    rounding = (4 if low else 64) * precision * (abs(centre) + abs(value)) / h**2
    return {
        "items": len(items[: config.self_test_items]),
        "value": [value, value_other],
        "value_relative_difference": _relative(value, value_other),
        "second_difference": [second, second_other],
        "second_difference_relative_difference": _relative(second, second_other),
        "tolerance": tolerance,
        "passed": bool(
            _relative(value, value_other) < tolerance
            and abs(second - second_other) < tolerance * abs(second) + rounding
        ),
    }


def _relative(a: float, b: float) -> float:
    scale = max(abs(a), abs(b))
    return abs(a - b) / scale if scale else 0.0
