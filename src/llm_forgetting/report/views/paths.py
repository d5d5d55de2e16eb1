"""Views of the losses along the straight path from one checkpoint to the next."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.records import PathForecast
from llm_forgetting.landscape.between_records import PathProfile, PathScan
from llm_forgetting.report.tables.run import Scanned, display_name, measured
from llm_forgetting.report.views.captions import Caption, together
from llm_forgetting.report.views.fit_quality import fit_quality
from llm_forgetting.report.views.surfaces import MOST_TASKS, split_word
from llm_forgetting.results import Results


@dataclass(frozen=True, eq=False)
class ProfileView:
    """Profile of one task along a path, and the quadratic forecast (s,) of its loss, nats; None without a forecast.

    `role` is what a legend of several paths calls it, and `number` the place of that among all roles.
    """

    task: str
    role: str
    number: int
    profile: PathProfile
    quadratic: Floats | None

    @property
    def has_barrier(self) -> bool:
        """Whether the barrier is higher than the fit's own error; else it is not told from none."""
        return self.profile.barrier.value > self.profile.error.largest


@dataclass(frozen=True, eq=False)
class PathView:
    """Path from one checkpoint to the next, t from 0 to 1."""

    scan: PathScan
    profiles: tuple[ProfileView, ...]
    caption: Caption

    @property
    def between(self) -> NDArray[np.bool_]:
        """Which nodes lie on the way itself; the fit also uses some beyond its ends."""
        return (self.scan.nodes >= -1e-9) & (self.scan.nodes <= 1 + 1e-9)

    @property
    def forecast(self) -> bool:
        """Whether any task has a forecast."""
        return any(view.quadratic is not None for view in self.profiles)


def path_views(results: Scanned) -> list[PathView]:
    """Every measured path."""
    split = split_word(results)
    forecasts = {step.start: step.tasks for step in results.forecasts} if isinstance(results, Results) else {}
    roles = [_roles(path, results) for path in results.paths]
    every = sorted({place for each in roles for place in each.values()})
    return [
        _path_view(
            path,
            split,
            {task: (name, every.index((place, name))) for task, (place, name) in named.items()},
            {
                task: forecast.path
                for task, splits in forecasts.get(path.start, {}).items()
                for forecast in splits.values()
                if forecast.path is not None
            },
        )
        for path, named in zip(results.paths, roles, strict=True)
    ]


def _roles(path: PathScan, results: Scanned) -> dict[str, tuple[int, str]]:
    """Place and name of every task of a path in a legend of all paths; of many tasks by their part in this path."""
    tasks = list(results.task_names) if isinstance(results, Results) else list(path.tasks)
    places = {task: tasks.index(task) for task in path.tasks}
    if not isinstance(results, Results) or len(tasks) <= MOST_TASKS:
        return {task: (place, display_name(task)) for task, place in places.items()}
    checkpoints = {f"after_task{k}": k - 1 for k in range(1, len(tasks) + 1)}
    parts = {
        checkpoints.get(path.to): (2, "the task learnt next"),
        checkpoints.get(path.start): (1, "the task learnt before"),
    }
    parts = {len(tasks) - 1: (3, "the last task"), **parts, 0: (0, "the first task")}
    return {task: parts.get(place, (4 + place, display_name(task))) for task, place in places.items()}


def _path_view(
    path: PathScan, split: str, roles: Mapping[str, tuple[str, int]], forecasts: Mapping[str, PathForecast]
) -> PathView:
    profiles = tuple(
        ProfileView(task, *roles[task], profile, forecasts[task].quadratic if task in forecasts else None)
        for task, profile in path.tasks.items()
    )
    valid = [
        together(f"{display_name(task)} to t = {forecast.validity.fraction:.2f}")
        for task, forecast in forecasts.items()
    ]
    # One fit stands behind all tasks: it is judged by the one on which it errs most.
    worst = max(path.tasks.values(), key=lambda profile: profile.error.relative)
    quality = fit_quality(worst.error, worst.loss, evaluations=len(path.nodes), tolerance=path.tolerance)
    counts = sorted({len(profile.items) for profile in path.tasks.values()})
    barriers = [
        together(f"{measured(view.profile.barrier.value)} nats ({display_name(view.task)})")
        for view in profiles
        if view.has_barrier
    ]
    facts = (
        f"{' or '.join(map(str, counts))} {split} items per task",
        quality.fact,
        f"barrier: {', '.join(barriers)}" if barriers else "no barrier",
        *([f"quadratic forecast holds for {', '.join(valid)}"] if valid else []),
    )
    heading = f"{display_name(path.start)} to {display_name(path.to)}"
    return PathView(path, profiles, Caption(heading, facts, quality.alarms, above=14))
