"""The plane through three checkpoints of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats
from llm_forgetting.config.sections import LandscapeConfig
from llm_forgetting.experiment.analysis.landscape import (
    CHECK_POINTS,
    describe_error,
    describe_fit,
    objective_of,
    rule_of,
)
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.domains import Triangle
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.nodes import CachedEvaluator, Journal
from llm_forgetting.landscape.spectral import FIRST_DEGREE, SpectralSurface, fit_surface, terms
from llm_forgetting.models.language.answer_statistics import SURFACES
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.progress import Advance

# The three checkpoints' triangle is scanned with this share of its heights around it.
MARGIN = 0.1

Items = Sequence[tuple[str, Sequence[EncodedItem]]]


def plane_evaluations() -> int:
    """Fewest passes over the landscape items that the plane through three checkpoints costs."""
    return terms(FIRST_DEGREE) + CHECK_POINTS + 3


def analyse_checkpoint_plane(
    model: LanguageModel,
    items: Items,
    checkpoints: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
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
    with objective.evaluating() as values_at:
        nodes = CachedEvaluator(values_at, kept, lambda: advance(1, ""))

        def evaluate(places: Floats) -> Floats:
            return nodes.at("checkpoint plane", places, lambda row: plane.update(*row))

        rule = dataclasses.replace(rule_of(config), tolerance=config.plane_tolerance)
        found = fit_surface(evaluate, objective.losses, domain, rule)
        at_corners = objective.losses(evaluate(np.array(plane.corners)))

        def visit(number: int, load: Callable[[], WeightUpdate]) -> dict[str, Any]:
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
