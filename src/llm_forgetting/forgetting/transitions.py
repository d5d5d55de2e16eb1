"""Items that turned from right to wrong and from wrong to right, less what guessing alone would turn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.clusters import error_of_mean, pooled_error
from llm_forgetting.forgetting.intervals import LEVEL, MINIMUM_ITEMS, Interval, normal_quantile, over_subjects


@dataclass(frozen=True)
class Transition:
    """`count` of n items went one way: `share` = count / n of them, `by_chance` of them expected of guessing.

    value: max(0, share - by_chance), the chance-adjusted share; stderr and interval are those of share - by_chance, the
    interval cut to [0, 1]. Without an interval below `MINIMUM_ITEMS`, without a stderr of one item.
    """

    count: int
    share: float
    by_chance: float
    value: float
    stderr: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Transitions:
    """Transitions of the same n items between two checkpoints: `lost` were right and are wrong, `gained` the reverse."""

    n: int
    lost: Transition
    gained: Transition


def transitions(
    before: ArrayLike, after: ArrayLike, options: Sequence[int], *, clusters: Sequence[object] | None = None
) -> Transitions:
    """Sample-wise forgetting and gain, raw and chance-adjusted.

    With a and b the accuracies before and after, F the share of items that went from right to wrong (1 -> 0), G that of
    the reverse (0 -> 1), and k options:

        F_adj = max(0, F - c),   G_adj = max(0, G - c),   c = (1 - a) (1 - b) / (k - 1)

    An item that is not known is guessed, and guessed right with 1 / k, so that (1 - a) k / (k - 1) of the items are guessed
    before, and (1 - b) k / (k - 1) after. Of those guessed both times (independently) 1 / k (1 - 1 / k) turn either way, which
    is c. Harmon et al. 2026 (ICLR, arXiv 2510.17776), as their published code computes it ("Adj. Abs. Forgetting").
    Where items have different numbers of options the mean of 1 / (k - 1) is taken; completions cannot be guessed: 0.

    The interval is the linearised one, from the 2 x 2 table with one item added to each discordant cell, as in
    `bonett_price_paired`. It covers at least 0.938 for n = 40 to 400 and k = 2, 4, 10, over 48 mixtures of known, lost and
    learnt items each (without the added items 0.19 to 0.92). Of several subjects it is Student's t over them.

    Args:
        before: (n,) 0 or 1 per item.
        after: (n,) of the same items in the same order.
        options: Options of every item, 0 for a completion.
        clusters: One label per item, the subject.

    Returns:
        Both transitions.

    Raises:
        ValueError: Unequal lengths, no items, or an item of one option.
    """
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    k = np.asarray(options, dtype=float)
    if x.ndim != 1 or not x.size or x.shape != y.shape or x.shape != k.shape:
        raise ValueError(f"before, after and options must hold the same items, got {x.shape}, {y.shape}, {k.shape}")
    if (k == 1).any() or (k < 0).any():
        raise ValueError("every item needs 0 options (a completion) or 2 and more")
    odds = float(np.mean(np.where(k > 0, 1 / np.maximum(k - 1, 1), 0.0)))
    return Transitions(x.size, _transition(x, y, odds, clusters), _transition(y, x, odds, clusters))


def _transition(x: Floats, y: Floats, odds: float, clusters: Sequence[object] | None) -> Transition:
    """Of items right in x and wrong in y; `odds` = 1 / (k - 1)."""
    lost = x * (1 - y)
    by_chance = float((1 - x.mean()) * (1 - y.mean()) * odds)
    excess = float(lost.mean()) - by_chance
    influence = lost + odds * ((1 - y.mean()) * x + (1 - x.mean()) * y)
    pooled = pooled_error(influence, clusters)
    added = _linearised(np.append(x, [1, 0]), np.append(y, [0, 1]), odds)
    interval = added if pooled is None else over_subjects(excess, pooled)
    cut = Interval(max(interval.low, 0.0), min(max(interval.high, 0.0), 1.0), method=interval.method)
    return Transition(
        count=int(lost.sum()),
        share=float(lost.mean()),
        by_chance=by_chance,
        value=max(0.0, excess),
        stderr=error_of_mean(influence, clusters),
        interval=cut if x.size >= MINIMUM_ITEMS else None,
    )


def _linearised(x: Floats, y: Floats, odds: float) -> Interval:
    wrong_before, wrong_after = 1 - x.mean(), 1 - y.mean()
    lost = x * (1 - y)
    influence = lost + odds * (wrong_after * x + wrong_before * y)
    centre = float(lost.mean() - wrong_before * wrong_after * odds)
    half_width = normal_quantile(LEVEL) * float(influence.std()) / math.sqrt(x.size)
    return Interval(centre - half_width, centre + half_width, method="linearised, one item added to discordant cells")
