"""The landscape between checkpoints: paths from one to the next, the point that keeps both tasks, and the plane of three."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm_forgetting.batches import EncodedItem
from llm_forgetting.config import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.domains import Segment, Triangle
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.lowrank import Update, combination, norm
from llm_forgetting.landscape.metrics import barrier, second_derivative
from llm_forgetting.landscape.nodes import Journal, Nodes
from llm_forgetting.landscape.spectral import FIRST_DEGREE, NotSmoothError, SpectralSurface, fit_surface, terms
from llm_forgetting.landscape_analysis import CHECK_POINTS, describe_error, describe_fit, objective_of, rule_of
from llm_forgetting.landscape_objective import LandscapeObjective
from llm_forgetting.language_model import LanguageModel
from llm_forgetting.objective import SURFACES, AnswerStatistics, Floats
from llm_forgetting.progress import Advance, Progress

PATH_STEPS = 101
# The path is fitted from a little before its start, where it is to be differentiated: at the end of a fit its second derivative
# is the worst of it.
LEAD = 0.1
# Step of the differences that differentiate fitted paths, in t: fits are smooth, so their error is 1e-4 of what they differ.
DIFFERENCE = 1e-3
# From one bowl into another the loss is steep: lower degrees were never enough, and eight check points cost more than they.
PATH_FIRST_DEGREE = 12
# The three checkpoints' triangle is scanned with this share of its heights around it.
MARGIN = 0.1

Items = Sequence[tuple[str, Sequence[EncodedItem]]]


def path_evaluations() -> int:
    """Fewest passes over the landscape items that one path costs."""
    return terms(PATH_FIRST_DEGREE, 1) + CHECK_POINTS


def plane_evaluations() -> int:
    """Fewest passes over the landscape items that the plane through three checkpoints costs."""
    return terms(FIRST_DEGREE) + CHECK_POINTS + 3


def along(first: Update, second: Update, t: float) -> Update:
    """delta W_1 + t (delta W_2 - delta W_1), of the two ranks together."""
    return combination([(1 - t, first), (t, second)]) if t != 1 else second


def choosers(count: int, pool: int) -> NDArray[np.bool_]:
    """Which of a task's `count` landscape items, drawn from `pool`, choose the repair; the others of the pool judge it.

    All of them where at least as many others are left, else every second one, beginning with the first.
    """
    return np.ones(count, dtype=bool) if pool >= 2 * count else np.asarray(np.arange(count) % 2 == 0)


def analyse_between(
    model: LanguageModel,
    items: Items,
    checkpoints: Mapping[str, Update],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    pools: Sequence[int] | None = None,
    trajectory: Mapping[str, Callable[[], Update]] | None = None,
) -> dict[str, Any]:
    """The paths between successive checkpoints after the first, and the plane through the first, the second and the last.

    The first is where training began; `trajectory` names updates to project onto the plane, loaded one at a time. `pools` says
    from how many items those of each task were drawn (see `choosers`).
    What cannot be measured is left out, and `between_notes` says why.
    """
    paths: list[dict[str, Any]] = []
    plane: dict[str, Any] | None = None
    notes: list[str] = []
    origin, *trained = checkpoints
    for start, end in pairwise(trained) if config.paths else ():
        ends = checkpoints[start], checkpoints[end]
        with progress.bar(f"path from {start} to {end}", path_evaluations()) as advance:
            try:
                found = analyse_path(
                    model, items, *ends, config, advance=advance, journal=journal(f"path_to_{end}"), pools=pools
                )
                paths.append({"from": start, "to": end, **found})
            except (NotSmoothError, UserError) as error:
                notes.append(f"the path from {start} to {end} could not be measured: {error}")
    if config.checkpoint_plane and len(trained) > 1:
        three = {name: checkpoints[name] for name in (origin, trained[0], trained[-1])}
        with progress.bar("plane through the checkpoints", plane_evaluations()) as advance:
            try:
                plane = analyse_checkpoint_plane(
                    model, items, three, config, advance=advance, journal=journal("checkpoint_plane"),
                    trajectory=trajectory,
                )  # fmt: skip
            except (NotSmoothError, UserError) as error:
                notes.append(f"the plane through the checkpoints could not be measured: {error}")
    return {"paths": paths, "checkpoint_plane": plane, "between_notes": notes}


def analyse_path(
    model: LanguageModel,
    items: Items,
    first: Update,
    second: Update,
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    pools: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Every task's loss along the straight path in delta-W space, its barrier, and the best compromise t*.

    t* minimises the mean of the tasks' losses on the items that `choosers` names.
    """
    objective = objective_of(model, [group for _, group in items], dataclasses.replace(config, space="adapter"))
    kept = Journal(journal)
    with objective.moving() as values_at:
        nodes = Nodes(values_at, kept, lambda: advance(1, ""))
        found = fit_surface(
            lambda places: nodes.at("path", places, lambda row: along(first, second, row[0])),
            objective.losses,
            Segment(-LEAD, 1.0),
            dataclasses.replace(rule_of(config), first_degree=PATH_FIRST_DEGREE),
        )
    steps = np.linspace(0, 1, PATH_STEPS)
    profiles, measured = (objective.statistics(v) for v in (found.fit(steps[:, None]), found.values))
    order = np.argsort(found.points[:, 0])
    difference = combination([(1.0, second), (-1.0, first)])
    return {
        "update_norm": norm(difference),
        "steps": steps.tolist(),
        "nodes": found.points[order, 0].tolist(),
        **describe_fit(found, config.tolerance),
        "tasks": {
            name: {
                "items": [item.item.id for item in group],
                **{kind: profiles[index].surface(kind).tolist() for kind in SURFACES},
                "at_nodes": {kind: measured[index].surface(kind)[order].tolist() for kind in SURFACES},
                "error": describe_error(index, objective, found),
                "at_start": _derivatives(index, objective, found),
                "barrier": dataclasses.asdict(barrier(steps, profiles[index].surface("loss"))),
                "letter_logits": measured[index].letter_logits[order].tolist(),
                "rest": measured[index].rest[order].tolist(),
                "answers": measured[index].answers.tolist(),
            }
            for index, (name, group) in enumerate(items)
        },
        "repair": _best_compromise(items, steps, profiles, pools),
    }


def _derivatives(index: int, objective: LandscapeObjective, found: SpectralSurface) -> dict[str, float]:
    """First and second derivative of task number `index`'s loss at t = 0; errors: what one degree less makes of them."""
    places = np.array([[-DIFFERENCE], [0.0], [DIFFERENCE]])
    (slope, curvature), (other_slope, other_curvature) = (
        second_derivative(objective.losses(fit(places))[:, index], DIFFERENCE) for fit in (found.fit, found.previous)
    )
    return {
        "slope": slope,
        "slope_error": abs(slope - other_slope),
        "curvature": curvature,
        "curvature_error": abs(curvature - other_curvature),
    }


def _best_compromise(
    items: Items, steps: Floats, profiles: Sequence[AnswerStatistics], pools: Sequence[int] | None
) -> dict[str, Any]:
    """t* by the choosing items, and each task's loss there on its other landscape items."""
    sizes = [len(group) for _, group in items]
    masks = [choosers(size, pool) for size, pool in zip(sizes, sizes if pools is None else pools, strict=True)]
    chosen = np.mean([p.losses[:, mask].mean(axis=1) for p, mask in zip(profiles, masks, strict=True)], axis=0)
    best = int(np.argmin(chosen))
    return {
        "t": float(steps[best]),
        "selection_items": [int(mask.sum()) for mask in masks],
        "mean_loss_on_selection": float(chosen[best]),
        "loss": {name: float(p.surface("loss")[best]) for (name, _), p in zip(items, profiles, strict=True)},
        "loss_on_the_others": {
            name: float(p.losses[best, ~mask].mean()) if (~mask).any() else None
            for (name, _), p, mask in zip(items, profiles, masks, strict=True)
        },
    }


def analyse_checkpoint_plane(
    model: LanguageModel,
    items: Items,
    checkpoints: Mapping[str, Update],
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    trajectory: Mapping[str, Callable[[], Update]] | None = None,
) -> dict[str, Any]:
    """Every task's loss on the plane through three checkpoints, inside their triangle and a margin around it.

    The corner at the first is left out: within a tenth of the way from an untrained adapter the loss falls by more than
    anywhere else, which no surface from few points follows, and nothing of the tasks' bowls lies there.

    Axes are of unit length in the Frobenius norm of delta W: the first from the first checkpoint to the second.
    """
    plane = CheckpointPlane(*checkpoints.values())
    domain = Triangle(plane.corners, truncated=True).widened(MARGIN)
    objective = objective_of(model, [group for _, group in items], dataclasses.replace(config, space="adapter"))
    kept, names = Journal(journal), [name for name, _ in items]
    with objective.moving() as values_at:
        nodes = Nodes(values_at, kept, lambda: advance(1, ""))

        def evaluate(places: Floats) -> Floats:
            return nodes.at("checkpoint plane", places, lambda row: plane.update(*row))

        rule = dataclasses.replace(rule_of(config), tolerance=config.plane_tolerance)
        found = fit_surface(evaluate, objective.losses, domain, rule)
        at_corners = objective.losses(evaluate(np.array(plane.corners)))

        def visit(number: int, load: Callable[[], Update]) -> dict[str, Any]:
            where = plane.project(load())
            place = np.array([[where.a, where.b]])
            true = objective.losses(nodes.at("trajectory", np.array([[number]]), lambda row: load()))[0]
            there = objective.losses(found.fit(place))[0] if domain.contains(place)[0] else None
            return {
                **dataclasses.asdict(where),
                "loss": dict(zip(names, true.tolist(), strict=True)),
                "in_plane_loss": None if there is None else dict(zip(names, there.tolist(), strict=True)),
            }

        visited = [{"name": name, **visit(n, load)} for n, (name, load) in enumerate((trajectory or {}).items())]
    within = domain.contains(np.array(plane.corners))
    predicted = objective.losses(found.fit(np.array(plane.corners)[within]))
    alphas, betas = domain.axes(config.cells)
    places = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    inside = domain.contains(places.reshape(-1, 2)).reshape(places.shape[:2])
    return {
        "alphas": alphas.tolist(),
        "betas": betas.tolist(),
        "inside": inside.tolist(),
        "outline": domain.outline.tolist(),
        "checkpoints": {name: list(corner) for name, corner in zip(checkpoints, plane.corners, strict=True)},
        "fit": describe_fit(found, rule.tolerance),
        "points": found.points.tolist(),
        "surfaces": {
            name: {
                "items": [item.item.id for item in group],
                **_inside_surfaces(index, objective, found, places, inside),
                "at_checkpoints": dict(zip(checkpoints, at_corners[:, index].tolist(), strict=True)),
                "error_at_checkpoints": float(np.abs(predicted - at_corners[within])[:, index].max()),
            }
            for index, (name, group) in enumerate(items)
        },
        "trajectory": visited,
    }


def _inside_surfaces(
    index: int, objective: LandscapeObjective, found: SpectralSurface, places: Floats, inside: NDArray[np.bool_]
) -> dict[str, Any]:
    """Task number `index` on the cells inside the triangle (None elsewhere), its measured error and what was evaluated."""
    fitted, measured = (objective.statistics(v)[index] for v in (found.fit(places[inside]), found.values))

    def spread(values: Floats) -> list[list[float | None]]:
        surface = np.full(inside.shape, None, dtype=object)
        surface[inside] = values.tolist()
        cells: list[list[float | None]] = surface.tolist()
        return cells

    return {
        **{kind: spread(fitted.surface(kind)) for kind in SURFACES},
        "error": describe_error(index, objective, found),
        "measured_loss": measured.surface("loss").tolist(),
        "letter_logits": measured.letter_logits.tolist(),
        "rest": measured.rest.tolist(),
        "answers": measured.answers.tolist(),
    }


def no_update(like: Update) -> Update:
    """delta W = 0, of rank 1: a fresh adapter."""
    return {
        name: Factors(B=torch.zeros_like(pair.B[:, :1]), A=torch.zeros_like(pair.A[:1])) for name, pair in like.items()
    }
