"""The runs of a study: what was set, what was measured, what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
TASK_PAIR, FIRST_TASK = "task pair", "first task"


@dataclass(frozen=True, eq=False)
class Run:
    """One run (cell) of a study.

    pair: the task pair, the block within which runs resemble one another; factors: what was set (seed, learning rate,
    optimiser); measures: what might predict forgetting (sharpness, forecast, |D|); outcomes: what came out (forgetting
    in loss and in accuracy, learning of task 2); stderrs: standard errors of any measure or outcome, where known.
    first_task: the task learnt first, None for a pair that shares it with no other; first_checkpoint: names the checkpoint
    after it, equal for runs that share it, None for one of its own.
    The mappings are copied and read-only. Raises ValueError if a name is both a measure and an outcome.
    """

    pair: str
    factors: Mapping[str, object] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    outcomes: Mapping[str, float | None] = field(default_factory=dict)
    stderrs: Mapping[str, float | None] = field(default_factory=dict)
    first_task: str | None = None
    first_checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("factors", "measures", "outcomes", "stderrs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        twice = sorted(set(self.measures) & set(self.outcomes))
        if twice:
            raise ValueError(f"a name is either a measure or an outcome, not both: {', '.join(twice)}")

    def number(self, name: str) -> float:
        """The measure or outcome `name`; NaN where this run does not have it."""
        value = self.measures.get(name, self.outcomes.get(name))
        return float("nan") if value is None else float(value)


@dataclass(frozen=True, eq=False)
class Columns:
    """The runs in which every asked-for number is finite.

    values: (n_runs, n_names) in the order asked for; pairs: (n_runs,), the number of each run's task pair; rows: (n_runs,),
    the position of each run among those given; pair_names: (n_pairs,); excluded: how many runs were left out because a
    number was missing, NaN or infinite; first_tasks and checkpoints: (n_runs,), the numbers of each run's first task and first
    checkpoint; settings: (n_runs, n_factors), the numbers of what was set. The units are the first tasks: pairs that share one
    share its checkpoints, and their numbers are alike.
    """

    values: Floats
    pairs: Indices
    rows: Indices
    pair_names: tuple[str, ...]
    excluded: int
    first_tasks: Indices
    checkpoints: Indices
    settings: Indices

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return len(self.values)

    @property
    def unit(self) -> str:
        """What a unit is."""
        return unit_of(self.pairs, self.first_tasks)

    @property
    def n_units(self) -> int:
        """Number of distinct first tasks."""
        return np.unique(self.first_tasks).size

    @property
    def n_points(self) -> int:
        """Number of distinct first checkpoints."""
        return np.unique(self.checkpoints).size

    @property
    def n_pairs(self) -> int:
        """Number of task pairs."""
        return len(self.pair_names)


def columns(runs: Sequence[Run], names: Sequence[str]) -> Columns:
    """The numbers `names` of all runs that have them.

    Raises ValueError if there are no runs, or if no run knows one of the names (a misspelt name must not pass for missing
    values).
    """
    if not runs:
        raise ValueError("a study needs at least one run")
    for name in names:
        if not any(name in run.measures or name in run.outcomes for run in runs):
            raise ValueError(f"no run has a measure or outcome called {name!r}")
    table = np.array([[run.number(name) for name in names] for run in runs], dtype=np.float64)
    kept = np.asarray(np.isfinite(table).all(axis=1))
    rows = np.flatnonzero(kept)
    some = [run for run, keep in zip(runs, kept, strict=True) if keep]
    pairs, pair_names = numbered([run.pair for run in some])
    first_tasks, _ = numbered([run.first_task or run.pair for run in some])
    checkpoints, _ = numbered([run.first_checkpoint or f"of run {row}" for row, run in zip(rows, some, strict=True)])
    factors = sorted({name for run in some for name in run.factors})
    settings = np.zeros((len(some), len(factors)), dtype=np.intp)
    for column, name in enumerate(factors):
        settings[:, column] = numbered([repr(run.factors.get(name)) for run in some])[0]
    return Columns(table[kept], pairs, rows, pair_names, int((~kept).sum()), first_tasks, checkpoints, settings)


def partners(
    runs: Sequence[Run],
    usable: Sequence[bool],
    *,
    factor: str,
    arm: object,
    baseline: object,
    matched_on: Sequence[str],
) -> list[tuple[int, int]]:
    """Positions of runs of `arm` and of `baseline` that agree in task pair and in the factors `matched_on`, of `usable` ones.

    Raises ValueError if two runs of one arm agree in all of these: then name more factors.
    """
    ours: dict[tuple[object, ...], int] = {}
    base: dict[tuple[object, ...], int] = {}
    for level, keyed in ((arm, ours), (baseline, base)):
        for n, run in enumerate(runs):
            if run.factors.get(factor) != level or not usable[n]:
                continue
            key = (run.pair, *(run.factors.get(name) for name in matched_on))
            if key in keyed:
                raise ValueError(f"two runs with {factor} = {level!r} agree in {key}: match on more factors")
            keyed[key] = n
    return [(ours[key], base[key]) for key in base if key in ours]


def unit_of(pairs: Indices, first_tasks: Indices) -> str:
    """What a unit is: a first task where pairs share one, else a task pair."""
    return FIRST_TASK if np.unique(first_tasks).size < np.unique(pairs).size else TASK_PAIR


def numbered(labels: Sequence[str]) -> tuple[Indices, tuple[str, ...]]:
    """Labels as numbers 0, 1, ... in order of first appearance, and the labels so numbered."""
    known: dict[str, int] = {}
    numbers = [known.setdefault(label, len(known)) for label in labels]
    return np.array(numbers, dtype=np.intp), tuple(known)
