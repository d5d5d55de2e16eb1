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
from llm_forgetting.landscape.metrics import barrier
from llm_forgetting.landscape.nodes import Journal, Nodes
from llm_forgetting.landscape.spectral import FIRST_DEGREE, NotSmoothError, SpectralSurface, fit_surface, terms
from llm_forgetting.landscape_analysis import CHECK_POINTS, describe_error, describe_fit, objective_of, rule_of
from llm_forgetting.landscape_objective import LandscapeObjective
from llm_forgetting.language_model import LanguageModel
from llm_forgetting.objective import SURFACES, AnswerStatistics, Floats
from llm_forgetting.progress import Advance, Progress

PATH_STEPS = 101
# The three checkpoints' triangle is scanned with this share of its heights around it.
MARGIN = 0.1

Items = Sequence[tuple[str, Sequence[EncodedItem]]]


def path_evaluations() -> int:
    """Fewest passes over the landscape items that one path costs."""
    return terms(FIRST_DEGREE, 1) + CHECK_POINTS


def plane_evaluations() -> int:
    """Fewest passes over the landscape items that the plane through three checkpoints costs."""
    return terms(FIRST_DEGREE) + CHECK_POINTS + 3


def along(first: Update, second: Update, t: float) -> Update:
    """delta W_1 + t (delta W_2 - delta W_1), of the two ranks together."""
    return combination([(1 - t, first), (t, second)]) if t != 1 else second


def selection_half(count: int) -> NDArray[np.bool_]:
    """Which of a task's landscape items choose the repair; the others judge it. Every second one, beginning with the first."""
    return np.asarray(np.arange(count) % 2 == 0)


def analyse_between(
    model: LanguageModel,
    items: Items,
    checkpoints: Mapping[str, Update],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    trajectory: Mapping[str, Callable[[], Update]] | None = None,
) -> dict[str, Any]:
    """The paths between successive checkpoints after the first, and the plane through the first, the second and the last.

    The first is where training began; `trajectory` names updates to project onto the plane, loaded one at a time.
    What cannot be measured is left out, and `between_notes` says why.
    """
    paths: list[dict[str, Any]] = []
    plane: dict[str, Any] | None = None
    notes: list[str] = []
    origin, *trained = checkpoints
    for start, end in pairwise(trained):
        ends = checkpoints[start], checkpoints[end]
        with progress.bar(f"path from {start} to {end}", path_evaluations()) as advance:
            try:
                found = analyse_path(model, items, *ends, config, advance=advance, journal=journal(f"path_to_{end}"))
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
) -> dict[str, Any]:
    """Every task's loss along the straight path in delta-W space, its barrier, and the best compromise t*.

    t* minimises the mean of the tasks' losses on the selection half of the items.
    """
    objective = objective_of(model, [group for _, group in items], dataclasses.replace(config, space="adapter"))
    kept = Journal(journal)
    with objective.moving() as values_at:
        nodes = Nodes(values_at, kept, lambda: advance(1, ""))
        found = fit_surface(
            lambda places: nodes.at("path", places, lambda row: along(first, second, row[0])),
            objective.losses,
            Segment(0.0, 1.0),
            rule_of(config),
        )
    steps = np.linspace(0, 1, PATH_STEPS)
    profiles, measured = (objective.statistics(v) for v in (found.fit(steps[:, None]), found.values))
    order = np.argsort(found.points[:, 0])
    difference = combination([(1.0, second), (-1.0, first)])
    return {
        "update_norm": norm(difference),
        "steps": steps.tolist(),
        "nodes": found.points[order, 0].tolist(),
        **describe_fit(found, config),
        "tasks": {
            name: {
                "items": [item.item.id for item in group],
                **{kind: profiles[index].surface(kind).tolist() for kind in SURFACES},
                "at_nodes": {kind: measured[index].surface(kind)[order].tolist() for kind in SURFACES},
                "error": describe_error(index, objective, found),
                "barrier": dataclasses.asdict(barrier(steps, profiles[index].surface("loss"))),
                "letter_logits": measured[index].letter_logits[order].tolist(),
                "rest": measured[index].rest[order].tolist(),
                "answers": measured[index].answers.tolist(),
            }
            for index, (name, group) in enumerate(items)
        },
        "repair": _best_compromise([name for name, _ in items], steps, profiles),
    }


def _best_compromise(names: Sequence[str], steps: Floats, profiles: Sequence[AnswerStatistics]) -> dict[str, Any]:
    """t* on the selection half, and each task's loss there on both halves."""
    halves = [selection_half(profile.losses.shape[-1]) for profile in profiles]
    chosen = np.mean([p.losses[:, half].mean(axis=1) for p, half in zip(profiles, halves, strict=True)], axis=0)
    best = int(np.argmin(chosen))
    return {
        "t": float(steps[best]),
        "selection_items": [int(half.sum()) for half in halves],
        "mean_loss_on_selection": float(chosen[best]),
        "loss_on_the_others": {
            name: float(profile.losses[best, ~half].mean()) if (~half).any() else None
            for name, profile, half in zip(names, profiles, halves, strict=True)
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

    Axes are of unit length in the Frobenius norm of delta W: the first from the first checkpoint to the second.
    """
    plane = CheckpointPlane(*checkpoints.values())
    domain = Triangle(plane.corners).widened(MARGIN)
    objective = objective_of(model, [group for _, group in items], dataclasses.replace(config, space="adapter"))
    kept, names = Journal(journal), [name for name, _ in items]
    with objective.moving() as values_at:
        nodes = Nodes(values_at, kept, lambda: advance(1, ""))

        def evaluate(places: Floats) -> Floats:
            return nodes.at("checkpoint plane", places, lambda row: plane.update(*row))

        found = fit_surface(evaluate, objective.losses, domain, rule_of(config))
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
    predicted = objective.losses(found.fit(np.array(plane.corners)))
    alphas, betas = domain.axes(config.cells)
    places = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    inside = domain.contains(places.reshape(-1, 2)).reshape(places.shape[:2])
    return {
        "alphas": alphas.tolist(),
        "betas": betas.tolist(),
        "inside": inside.tolist(),
        "checkpoints": {name: list(corner) for name, corner in zip(checkpoints, plane.corners, strict=True)},
        "fit": describe_fit(found, config),
        "points": found.points.tolist(),
        "surfaces": {
            name: {
                "items": [item.item.id for item in group],
                **_inside_surfaces(index, objective, found, places, inside),
                "at_checkpoints": dict(zip(checkpoints, at_corners[:, index].tolist(), strict=True)),
                "error_at_checkpoints": float(np.abs(predicted - at_corners)[:, index].max()),
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
