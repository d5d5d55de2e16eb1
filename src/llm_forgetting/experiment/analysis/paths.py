"""The landscape between checkpoints: paths from one to the next, the point that keeps both tasks, and the plane of three."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.config.sections import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.checkpoint_plane import Items, analyse_checkpoint_plane, plane_evaluations
from llm_forgetting.experiment.analysis.landscape import (
    CHECK_POINTS,
    describe_error,
    describe_fit,
    objective_of,
    rule_of,
)
from llm_forgetting.landscape.domains import Segment
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.metrics import barrier, second_derivative
from llm_forgetting.landscape.nodes import CachedEvaluator, Journal
from llm_forgetting.landscape.path import DIFFERENCE, LEAD, PATH_FIRST_DEGREE, PATH_STEPS, interpolate, selection_mask
from llm_forgetting.landscape.spectral import NotSmoothError, SpectralSurface, fit_surface, terms
from llm_forgetting.models.language.answer_statistics import SURFACES, AnswerStatistics
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.progress import Advance, Progress


def path_evaluations() -> int:
    """Fewest passes over the landscape items that one path costs."""
    return terms(PATH_FIRST_DEGREE, 1) + CHECK_POINTS


def analyse_between(
    model: LanguageModel,
    items: Items,
    checkpoints: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    pools: Sequence[int] | None = None,
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
) -> dict[str, Any]:
    """The paths between successive checkpoints after the first, and the plane through the first, the second and the last.

    The first is where training began; `trajectory` names updates to project onto the plane, loaded one at a time. `pools` says
    from how many items those of each task were drawn (see `selection_mask`).
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
    first: WeightUpdate,
    second: WeightUpdate,
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    pools: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Every task's loss along the straight path in delta-W space, its barrier, and the best compromise t*.

    t* minimises the mean of the tasks' losses on the items that `selection_mask` names.
    """
    objective = objective_of(model, [group for _, group in items], dataclasses.replace(config, space="adapter"))
    kept = Journal(journal)
    with objective.evaluating() as values_at:
        nodes = CachedEvaluator(values_at, kept, lambda: advance(1, ""))
        found = fit_surface(
            lambda places: nodes.at("path", places, lambda row: interpolate(first, second, row[0])),
            objective.losses,
            Segment(-LEAD, 1.0),
            dataclasses.replace(rule_of(config), first_degree=PATH_FIRST_DEGREE),
        )
    steps = np.linspace(0, 1, PATH_STEPS)
    profiles, measured = (objective.statistics(v) for v in (found.fit(steps[:, None]), found.values))
    order = np.argsort(found.points[:, 0])
    difference = WeightUpdate.combine([(1.0, second), (-1.0, first)])
    return {
        "update_norm": difference.norm(),
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
    masks = [selection_mask(size, pool) for size, pool in zip(sizes, sizes if pools is None else pools, strict=True)]
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
