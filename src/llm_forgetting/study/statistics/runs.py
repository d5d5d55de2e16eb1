"""The runs of a study: what was set, what was measured, what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Run:
    """One run (cell) of a study.

    pair: the task pair, the block within which runs resemble one another; factors: what was set (seed, learning rate,
    optimiser); measures: what might predict forgetting (sharpness, forecast, |D|); outcomes: what came out (forgetting
    in loss and in accuracy, learning of task 2); stderrs: standard errors of any measure or outcome, where known.
    The mappings are copied and read-only. Raises ValueError if a name is both a measure and an outcome.
    """

    pair: str
    factors: Mapping[str, object] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    outcomes: Mapping[str, float | None] = field(default_factory=dict)
    stderrs: Mapping[str, float | None] = field(default_factory=dict)

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
    number was missing, NaN or infinite.
    """

    values: Floats
    pairs: Indices
    rows: Indices
    pair_names: tuple[str, ...]
    excluded: int

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return len(self.values)

    @property
    def n_pairs(self) -> int:
        """Number of task pairs."""
        return len(self.pair_names)


def columns(runs: Sequence[Run], names: Sequence[str]) -> Columns:
    """The numbers `names` of all runs that have them.

    Raises ValueError if there are no runs, or if no run knows one of the names (a misspelt name must not pass for
    missing values).
    """
    if not runs:
        raise ValueError("a study needs at least one run")
    for name in names:
        if not any(name in run.measures or name in run.outcomes for run in runs):
            raise ValueError(f"no run has a measure or outcome called {name!r}")
    table = np.array([[run.number(name) for name in names] for run in runs], dtype=np.float64)
    kept = np.asarray(np.isfinite(table).all(axis=1))
    pairs, pair_names = numbered([run.pair for run, keep in zip(runs, kept, strict=True) if keep])
    return Columns(table[kept], pairs, np.flatnonzero(kept), pair_names, int((~kept).sum()))


def numbered(labels: Sequence[str]) -> tuple[Indices, tuple[str, ...]]:
    """Labels as numbers 0, 1, ... in order of first appearance, and the labels so numbered."""
    known: dict[str, int] = {}
    numbers = [known.setdefault(label, len(known)) for label in labels]
    return np.array(numbers, dtype=np.intp), tuple(known)
