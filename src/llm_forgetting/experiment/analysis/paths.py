"""The landscape between checkpoints: paths from one to the next, the point that keeps both tasks, and the plane of three."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.checkpoint_plane import analyse_checkpoint_plane, plane_evaluations
from llm_forgetting.experiment.analysis.landscape import CHECK_POINTS, fit_error, fit_summary, objective_of, rule_of
from llm_forgetting.landscape.between_records import BetweenCheckpoints, NodeValues, PathProfile, PathScan, RepairPoint
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.path import PATH_FIRST_DEGREE, FittedPath, scan_path, selection_mask
from llm_forgetting.landscape.spectral import NotSmoothError, terms
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import Items, LandscapeObjective
from llm_forgetting.progress import Advance, Progress


def path_evaluations() -> int:
    """Fewest passes over the landscape items that one path costs."""
    return terms(PATH_FIRST_DEGREE, 1) + CHECK_POINTS


def path_objective(model: LanguageModel, items: Items, config: LandscapeConfig) -> LandscapeObjective:
    """The landscape objective of updates delta W, whatever space directions around a checkpoint are drawn in."""
    return objective_of(model, items, replace(config, space="adapter"))


def analyse_between(
    objective: LandscapeObjective,
    checkpoints: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    pools: Sequence[int] | None = None,
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
    concerned: Callable[[str, str], Sequence[int]] | None = None,
) -> BetweenCheckpoints:
    """The paths between successive checkpoints after the first, and the plane through the first, the second and the last.

    What cannot be measured is left out, and `between_notes` says why.

    Args:
        objective: Losses of the tasks' landscape items.
        checkpoints: delta W by name; the first is where training began.
        config: Which scans, and how.
        progress: Where bars are shown.
        journal: From a scan's name to the file that keeps its evaluations.
        pools: Per task the number of items that its own were drawn from (see `selection_mask`).
        trajectory: Updates that are projected onto the plane, by name, loaded one at a time.
        concerned: From two checkpoints' names to the places of the tasks that are measured between them; None: all.
    """
    origin, *trained = checkpoints
    parts = []
    for start, end in pairwise(trained) if config.paths else ():
        ends = {name: checkpoints[name] for name in (start, end)}
        tasks = None if concerned is None else concerned(start, end)
        part = objective if tasks is None else objective.only(tasks)
        own = pools if pools is None or tasks is None else [pools[place] for place in tasks]
        parts.append(path_between(part, ends, config, progress=progress, journal=journal, pools=own))
    if config.checkpoint_plane and len(trained) > 1:
        three = {name: checkpoints[name] for name in (origin, trained[0], trained[-1])}
        part = objective if concerned is None else objective.only(concerned(trained[0], trained[-1]))
        parts.append(plane_through(part, three, config, progress=progress, journal=journal, trajectory=trajectory))
    return joined(parts)


def path_between(
    objective: LandscapeObjective,
    ends: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    pools: Sequence[int] | None = None,
) -> BetweenCheckpoints:
    """The path between two checkpoints by name; or, where it cannot be measured, the note that says why."""
    start, end = ends
    file = journal(f"path_to_{end}")
    with progress.bar(f"path from {start} to {end}", path_evaluations()) as advance:
        try:
            path = analyse_path(objective, ends, config, advance=advance, journal=file, pools=pools)
        except (NotSmoothError, UserError) as error:
            return BetweenCheckpoints((), None, (f"the path from {start} to {end} could not be measured: {error}",))
    return BetweenCheckpoints((path,), None, ())


def plane_through(
    objective: LandscapeObjective,
    three: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    progress: Progress,
    journal: Callable[[str], Path],
    trajectory: Mapping[str, Callable[[], WeightUpdate]] | None = None,
) -> BetweenCheckpoints:
    """The plane through three checkpoints by name; or, where it cannot be measured, the note that says why."""
    file = journal("checkpoint_plane")
    with progress.bar("plane through the checkpoints", plane_evaluations()) as advance:
        try:
            plane = analyse_checkpoint_plane(
                objective, three, config, advance=advance, journal=file, trajectory=trajectory
            )
        except (NotSmoothError, UserError) as error:
            return BetweenCheckpoints((), None, (f"the plane through the checkpoints could not be measured: {error}",))
    return BetweenCheckpoints((), plane, ())


def joined(parts: Sequence[BetweenCheckpoints]) -> BetweenCheckpoints:
    """Paths and plane that were measured apart, together."""
    return BetweenCheckpoints(
        tuple(path for part in parts for path in part.paths),
        next((part.checkpoint_plane for part in parts if part.checkpoint_plane is not None), None),
        tuple(note for part in parts for note in part.between_notes),
    )


def analyse_path(
    objective: LandscapeObjective,
    ends: Mapping[str, WeightUpdate],
    config: LandscapeConfig,
    *,
    advance: Advance,
    journal: Path | None = None,
    pools: Sequence[int] | None = None,
) -> PathScan:
    """Every task's loss along the straight path in delta-W space, its barrier, and the best compromise t*.

    `ends` are the two checkpoints by name. t* minimises the mean of the tasks' losses on the items of `selection_mask`.
    """
    (start, first), (to, second) = ends.items()
    path = scan_path(objective, first, second, rule_of(config), journal=journal, advance=lambda: advance(1, ""))
    fit, profiles = fit_summary(path.surface, config.tolerance), objective.statistics(path.values)
    return PathScan(
        start=start,
        to=to,
        update_norm=path.update_norm,
        steps=path.steps,
        nodes=np.sort(path.surface.points[:, 0]),
        degree=fit.degree,
        evaluations=fit.evaluations,
        check_points=fit.check_points,
        tolerance=fit.tolerance,
        converged=fit.converged,
        tasks={name: _profile(index, objective, path) for index, name in enumerate(objective.names)},
        repair=_best_compromise(objective.items, path.steps, profiles, pools),
    )


def _profile(index: int, objective: LandscapeObjective, path: FittedPath) -> PathProfile:
    """Task number `index` along the path, and what was evaluated in the order of t."""
    fitted, measured = (objective.statistics(values)[index] for values in (path.values, path.surface.values))
    order = np.argsort(path.surface.points[:, 0])
    return PathProfile(
        items=objective.item_ids(index),
        loss=fitted.surface("loss"),
        four_way_loss=fitted.surface("four_way_loss"),
        accuracy=fitted.surface("accuracy"),
        letter_mass=fitted.surface("letter_mass"),
        at_nodes=NodeValues(
            loss=measured.surface("loss")[order],
            four_way_loss=measured.surface("four_way_loss")[order],
            accuracy=measured.surface("accuracy")[order],
            letter_mass=measured.surface("letter_mass")[order],
        ),
        error=fit_error(index, objective, path.surface),
        at_start=path.at_start[index],
        barrier=path.barriers[index],
        letter_logits=measured.letter_logits[order],
        rest=measured.rest[order],
        answers=measured.answers,
    )


def _best_compromise(
    items: Items, steps: Floats, profiles: Sequence[AnswerStatistics], pools: Sequence[int] | None
) -> RepairPoint:
    """t* by the selecting items, and each task's loss there on its other landscape items."""
    sizes = [len(group) for _, group in items]
    masks = [selection_mask(size, pool) for size, pool in zip(sizes, sizes if pools is None else pools, strict=True)]
    selection = np.mean([p.mean_loss_of(mask) for p, mask in zip(profiles, masks, strict=True)], axis=0)
    best = int(np.argmin(selection))
    return RepairPoint(
        t=float(steps[best]),
        selection_items=tuple(int(mask.sum()) for mask in masks),
        mean_loss_on_selection=float(selection[best]),
        loss={name: float(p.surface("loss")[best]) for (name, _), p in zip(items, profiles, strict=True)},
        loss_on_the_others={
            name: float(p.mean_loss_of(~mask, best)) if (~mask).any() else None
            for (name, _), p, mask in zip(items, profiles, masks, strict=True)
        },
    )
