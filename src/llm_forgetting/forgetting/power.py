"""What a number of items could have shown."""

import numpy as np
from scipy import stats
from scipy.optimize import brentq


def detectable_drop(n: int, discordant: float = 0.10, *, power: float = 0.80, significance: float = 0.05) -> float:
    """The smallest paired drop in accuracy (a share, 0 to 1) that McNemar's exact test sees with the given power.

    m ~ Binomial(n, discordant) pairs are discordant, each of them a loss with probability (1 + drop / discordant) / 2. A drop
    cannot exceed that share; where the share is too small for the power, the drop returned is the smallest share that is
    enough if every discordant pair is a loss, 1 where none is. n = 100 at 10% discordant pairs: 0.088. Raises ValueError
    outside n >= 1 and 0 <= discordant <= 1.
    """
    if n < 1 or not 0 <= discordant <= 1:
        raise ValueError(f"needs n >= 1 and a share of discordant pairs in [0, 1], got {n} and {discordant}")
    m = np.arange(n + 1)
    critical = stats.binom.isf(significance / 2, m, 0.5)  # rejected by more losses than this

    def surplus(share: float, losses: float) -> float:
        return float(stats.binom.pmf(m, n, share) @ stats.binom.sf(critical, m, losses)) - power

    if discordant and surplus(discordant, 1.0) >= 0:
        return discordant * float(brentq(lambda excess: surplus(discordant, (1 + excess) / 2), 0.0, 1.0))
    return float(brentq(lambda share: surplus(share, 1.0), discordant, 1.0)) if surplus(1.0, 1.0) >= 0 else 1.0
