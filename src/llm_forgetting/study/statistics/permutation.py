"""Tests that hold for the runs at hand: outcomes permuted within task pairs, signs flipped per unit.

Runs that share their first checkpoint are permuted together: what is measured there is one number, and their outcomes
resemble one another.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_forgetting.seeding import generator
from llm_forgetting.study.statistics.runs import Floats, Indices, exchangeable

ENUMERATED = 20_000
"""Up to so many arrangements all are enumerated, beyond it `PERMUTATIONS` are drawn."""

PERMUTATIONS = 9999

_ROUNDING = 1e-9
_BATCH = 500

Statistic = Callable[[Indices], Floats]


@dataclass(frozen=True, eq=False)
class Orders:
    """Orders of runs, rows (m, n), that keep every run in its block (n,); exact: all there are, each once.

    groups: of checkpoints that are exchanged, each (checkpoints, runs of one).
    """

    rows: Indices
    blocks: Indices
    exact: bool
    groups: tuple[Indices, ...]


@dataclass(frozen=True)
class PermutationTest:
    """A two-sided test against all arrangements (exact) or a seeded draw of them.

    p_value: share of arrangements at least as extreme as the data; drawn ones by (b + 1) / (m + 1), which never
    understates it (Phipson & Smyth 2010). smallest: the least p-value that these values could have given under any
    arrangement; where it exceeds the significance level, nothing could have been shown.
    """

    p_value: float
    smallest: float
    arrangements: int
    exact: bool


def orders_within(
    blocks: Indices, *, seed: int, draws: int = PERMUTATIONS, checkpoints: Indices | None = None
) -> Orders:
    """The orders of runs that keep every run in its block and move those of one checkpoint together: all, or seeded draws."""
    groups = tuple(exchangeable(blocks, checkpoints))
    if math.prod(math.factorial(len(group)) for group in groups) <= ENUMERATED:
        rows = [
            _spliced(groups, chosen)
            for chosen in itertools.product(*(itertools.permutations(range(len(g))) for g in groups))
        ]
        return Orders(np.array(rows, dtype=np.intp), blocks, True, groups)
    rng = generator(seed, "permutations within task pairs")
    orders = np.empty((draws, len(blocks)), dtype=np.intp)
    for group in groups:
        orders[:, group] = group[rng.permuted(np.tile(np.arange(len(group)), (draws, 1)), axis=1)]
    return Orders(orders, blocks, False, groups)


def permutation_test(x: Floats, y: Floats, statistic: Statistic, orders: Orders) -> PermutationTest:
    """The test of `statistic`, which maps orders of the runs' y (m, n) to numbers (m,) around 0.

    x and y, shape (n,), tell which arrangements are the most extreme: both sorted alike, or oppositely; or one of those
    that were tried, where checkpoints of several runs have no common order.
    """
    rows = orders.rows
    drawn = np.concatenate([statistic(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)])
    observed = abs(float(statistic(np.arange(x.size)[None, :])[0]))
    most = max(float(np.abs(statistic(_extreme_orders(x, y, orders.groups))).max()), float(np.abs(drawn).max()))
    return _test(drawn, observed, most, orders.exact)


def spearman_statistic(x: Floats, y: Floats) -> Statistic:
    """Spearman's rho up to a constant, of centred ranks x and y (n,)."""
    return lambda orders: np.asarray(y[orders] @ x)


def kendall_statistic(x: Floats, y: Floats, blocks: Indices) -> Statistic:
    """Kendall's tau-b within blocks up to a constant: concordant less discordant comparisons; x, y (n, n)."""
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]

    def counted(orders: Indices) -> Floats:
        total: Floats = np.zeros(len(orders))
        for block in members:
            rows = orders[:, block]
            total += np.einsum("ij,mij->m", x[np.ix_(block, block)], y[rows[:, :, None], rows[:, None, :]])
        return total

    return counted


def partial_statistic(x: Floats, y: Floats, covariates: Floats) -> Statistic:
    """The partial correlation under the permutation of residuals of Freedman & Lane (1983).

    x and y (n,) are the residuals of centred ranks given covariates (n, c), centred ranks too. Permuted residuals of y
    are taken free of the covariates again before they are correlated with x.
    """
    basis = np.linalg.qr(covariates)[0]

    def correlated(orders: Indices) -> Floats:
        permuted = y[orders]
        permuted = permuted - (permuted @ basis) @ basis.T
        lengths = np.linalg.norm(permuted, axis=1) * np.linalg.norm(x)
        correlations: Floats = np.zeros(len(orders))
        np.divide(permuted @ x, lengths, out=correlations, where=lengths > _ROUNDING)
        return correlations

    return correlated


def sign_flip(values: Floats, *, seed: int, draws: int = PERMUTATIONS) -> PermutationTest:
    """The two-sided test that values of shape (k,) are as likely positive as negative, on their mean.

    Exact for 2^k <= `ENUMERATED` sign patterns, else seeded draws. The least p-value of k values is 2 / 2^k.
    """
    k = values.size
    exact = 2**k <= ENUMERATED
    if exact:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=k)))
    else:
        signs = generator(seed, "sign flips").choice([-1.0, 1.0], (draws, k))
    return _test(signs @ values, abs(float(values.sum())), float(np.abs(values).sum()), exact)


def _spliced(groups: Sequence[Indices], chosen: Sequence[Sequence[int]]) -> Indices:
    order = np.empty(sum(group.size for group in groups), dtype=np.intp)
    for group, permuted in zip(groups, chosen, strict=True):
        order[group] = group[list(permuted)]
    return order


def _extreme_orders(x: Floats, y: Floats, groups: Sequence[Indices]) -> Indices:
    orders = np.empty((2, x.size), dtype=np.intp)
    for group in groups:
        by_x, by_y = (group[np.argsort(values[group].sum(axis=1))] for values in (x, y))
        orders[0, by_x], orders[1, by_x] = by_y, by_y[::-1]
    return orders


def _test(drawn: Floats, observed: float, most: float, exact: bool) -> PermutationTest:
    def share(bound: float) -> float:
        extreme = int((np.abs(drawn) >= bound - _ROUNDING * most).sum())
        return extreme / len(drawn) if exact else (extreme + 1) / (len(drawn) + 1)

    return PermutationTest(share(observed), share(most), len(drawn), exact)
