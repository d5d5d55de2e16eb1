"""Tests that hold for the runs at hand: outcomes permuted within task pairs, signs flipped per unit."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llm_forgetting.forgetting.intervals import LEVEL, Interval
from llm_forgetting.seeding import generator
from llm_forgetting.study.statistics.exchangeability import ENUMERATED, PERMUTATIONS, Orders
from llm_forgetting.study.statistics.runs import Floats, Indices

_ROUNDING = 1e-9
_BATCH = 500
# Beyond this the z of an arrangement that happens to agree perfectly would decide the width alone.
_LARGEST = 0.999

Statistic = Callable[[Indices], Floats]


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


@dataclass(frozen=True, eq=False)
class Arrangements:
    """A statistic of the data, and of all their arrangements (m,) or a seeded draw of them."""

    observed: float
    drawn: Floats
    exact: bool

    def test(self) -> PermutationTest:
        """The two-sided test."""
        most = max(float(np.abs(self.drawn).max()), abs(self.observed))
        return PermutationTest(
            self._share(abs(self.observed), most), self._share(most, most), self.drawn.size, self.exact
        )

    def interval(self, method: str) -> Interval | None:
        """The interval of a correlation that excludes 0 exactly where the test rejects; None where it never could.

        tanh(atanh r +- z), z the largest |atanh r*| of an arrangement that the test does not reject: the arrangements show how
        far r strays from 0, and Fisher's transformation that it strays as far from any other value.
        Coverage of the coefficient's mean at correlations 0 / 0.5 / 0.8, independent runs (500 studies each, +-0.02;
        benchmarks/study_statistics.py):

            6 pairs x 8 runs      Spearman 0.946 / 0.958 / 0.944
            4 pairs x 3 runs      Spearman 0.956 / 0.958 / 0.962
            1 pair x 9 runs       Spearman 0.968 / 0.950 / 0.916
        """
        sizes = np.sort(np.abs(self.drawn))[::-1]
        significant = math.floor((1 - LEVEL) * sizes.size if self.exact else (1 - LEVEL) * (sizes.size + 1) - 1)
        if sizes[significant] > sizes[0] - _ROUNDING:
            return None
        z, centre = (math.atanh(min(max(r, -_LARGEST), _LARGEST)) for r in (float(sizes[significant]), self.observed))
        low, high = math.tanh(centre - z), math.tanh(centre + z)
        return Interval(min(low, self.observed), max(high, self.observed), method=method)

    def _share(self, bound: float, most: float) -> float:
        extreme = int((np.abs(self.drawn) >= bound - _ROUNDING * most).sum())
        return extreme / self.drawn.size if self.exact else (extreme + 1) / (self.drawn.size + 1)


def arrange(statistic: Statistic, orders: Orders) -> Arrangements:
    """`statistic`, which maps orders of the runs' outcomes (m, n) to numbers (m,) around 0, of the data and of all orders."""
    rows = orders.rows
    drawn = np.concatenate([statistic(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)])
    observed = float(statistic(np.arange(rows.shape[1])[None, :])[0])
    return Arrangements(observed, drawn, orders.exact)


def spearman_statistic(x: Floats, y: Floats) -> Statistic:
    """Spearman's rho within blocks, of ranks x and y (n,) centred within blocks."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return lambda orders: np.asarray(y[orders] @ x / scale)


def kendall_statistic(x: Floats, y: Floats, blocks: Indices) -> Statistic:
    """Kendall's tau-b within blocks, of comparisons x and y (n, n)."""
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    scale = math.prod(math.sqrt(sum((s[np.ix_(b, b)] ** 2).sum() for b in members)) for s in (x, y))

    def correlated(orders: Indices) -> Floats:
        total: Floats = np.zeros(len(orders))
        for block in members:
            rows = orders[:, block]
            total += np.einsum("ij,mij->m", x[np.ix_(block, block)], y[rows[:, :, None], rows[:, None, :]])
        return total / scale

    return correlated


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
    return Arrangements(float(values.sum()), signs @ values, exact).test()
