"""Which runs of a study may stand for one another where nothing goes with the outcome.

Runs are alike for more reasons than their task pair: those of one first checkpoint are, and those of a pair that share a
setting (a seed, a learning rate, an arm). So runs are not exchanged one by one. Within a first task the values of a setting
exchange their places, for all its pairs at once: what the runs of one value have in common moves with them, and so do the runs
of one checkpoint. Every first task exchanges its own. What no two runs share, such as a seed of each run's own, is exchanged
freely.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.seeding import generator
from llm_forgetting.study.statistics.runs import Indices

ENUMERATED = 20_000
"""Up to so many arrangements all are enumerated, beyond it `PERMUTATIONS` are drawn."""

PERMUTATIONS = 9999

_PAIR = 0


@dataclass(frozen=True, eq=False)
class Orders:
    """Orders of runs, rows (m, n), that keep every run in its block (n,); exact: all there are, each once."""

    rows: Indices
    blocks: Indices
    exact: bool


@dataclass(frozen=True, eq=False)
class _Unit:
    """The runs (k,) of one first task with their places (k, 1 + factors): the pair, and a value of every setting.

    No two have one place. classes: (factor, values that may exchange their places), at least two values each.
    """

    runs: Indices
    places: Indices
    classes: tuple[tuple[int, Indices], ...]

    def runs_at(self, places: Indices) -> Indices:
        """The runs at places (m, k, 1 + factors), each of them one of `self.places`."""
        radix = np.cumprod([1, *(self.places.max(axis=0) + 1)])[:-1]
        keys = self.places @ radix
        by_key = np.argsort(keys)
        return np.asarray(self.runs[by_key[np.searchsorted(keys, places @ radix, sorter=by_key)]])


def orders_within(
    pairs: Indices,
    *,
    seed: int,
    draws: int = PERMUTATIONS,
    first_tasks: Indices | None = None,
    checkpoints: Indices | None = None,
    settings: Indices | None = None,
) -> Orders:
    """The orders of runs in which values of settings have exchanged their places: all, or seeded draws.

    pairs, first_tasks and checkpoints: (n,); settings: (n, n_factors), numbers of what was set. Without them every pair has its
    own first task, every run its own checkpoint, and nothing is set, so that the runs of a pair are exchanged freely.
    """
    n = pairs.size
    firsts = pairs if first_tasks is None else first_tasks
    points = np.arange(n) if checkpoints is None else checkpoints
    set_to = np.empty((n, 0), dtype=np.intp) if settings is None else settings
    units = [_unit(np.flatnonzero(firsts == first), pairs, points, set_to) for first in np.unique(firsts)]
    counts = [math.factorial(values.size) for unit in units for _, values in unit.classes]
    exact = math.prod(counts) <= ENUMERATED
    m = math.prod(counts) if exact else draws
    chosen = iter(np.unravel_index(np.arange(m), counts or [1]) if exact else ())
    rng = generator(seed, "permutations within task pairs")
    rows = np.empty((m, n), dtype=np.intp)
    for unit in units:
        moved = np.repeat(unit.places[None], m, axis=0)
        for factor, values in unit.classes:
            if exact:
                exchanged = np.array(list(itertools.permutations(values)))[next(chosen)]
            else:
                exchanged = rng.permuted(np.tile(values, (m, 1)), axis=1)
            here = np.isin(unit.places[:, factor], values)
            moved[:, here, factor] = exchanged[:, np.searchsorted(values, unit.places[here, factor])]
        rows[:, unit.runs] = unit.runs_at(moved)
    return Orders(rows, pairs, exact)


def _unit(runs: Indices, pairs: Indices, checkpoints: Indices, settings: Indices) -> _Unit:
    points = checkpoints[runs]
    places = _places(pairs[runs], points, settings[runs])
    return _Unit(runs, places, tuple(_classes(places, points)))


def _places(pairs: Indices, points: Indices, settings: Indices) -> Indices:
    """The pair, every setting that checkpoints share, and two numbers that tell apart what agrees in all of these."""
    kept: list[Indices] = []
    for column in settings.T:
        values = _told_apart([()] * pairs.size, column.tolist())
        shared = any(np.unique(points[values == value]).size > 1 for value in range(values.max() + 1))
        if np.ptp(values) and shared and not any(np.array_equal(values, other) for other in kept):
            kept.append(values)
    agreeing = list(zip(*(column.tolist() for column in kept), strict=True)) or [()] * pairs.size
    checkpoint = _told_apart(agreeing, points.tolist())
    run = _told_apart(list(zip(pairs.tolist(), points.tolist(), agreeing, strict=True)), list(range(pairs.size)))
    return np.stack([pairs, *kept, checkpoint, run], axis=1)


def _told_apart(groups: Sequence[Hashable], labels: Sequence[int]) -> Indices:
    """The number of each label within its group."""
    known: dict[Hashable, dict[int, int]] = {}
    numbers = []
    for group, label in zip(groups, labels, strict=True):
        of_group = known.setdefault(group, {})
        numbers.append(of_group.setdefault(label, len(of_group)))
    return np.array(numbers, dtype=np.intp)


def _classes(places: Indices, points: Indices) -> list[tuple[int, Indices]]:
    """The values of each factor that occur at the same places of all others, and share checkpoints with the same values."""
    classes = []
    for factor in range(_PAIR + 1, places.shape[1]):
        column, others = places[:, factor], np.delete(places, factor, axis=1)
        alike: dict[Hashable, list[int]] = {}
        for value in range(column.max() + 1):
            here = np.flatnonzero(column == value)
            tied = {tuple(values) for p in points[here] if (values := np.unique(column[points == p])).size > 1}
            alike.setdefault((frozenset(map(tuple, others[here].tolist())), frozenset(tied)), []).append(value)
        classes += [(factor, np.array(values, dtype=np.intp)) for values in alike.values() if len(values) > 1]
    return classes
