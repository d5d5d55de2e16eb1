"""Differences of updates of one module, in factors, accurate where the two are nearly equal."""

import torch

from llm_forgetting.landscape.gauge import Factors


def difference(pair: Factors, start: Factors) -> Factors:
    """Factors of B A - B0 A0, with a graph where they have one.

    With ranks that are equal it is exactly

        B A - B0 A0 = [B - B0, B0] [A; A - A0]:

    the large terms have been subtracted before anything is squared, so that float32 is accurate close to the start, too. With
    other ranks it is [B, -B0] [A; A0].
    """
    if pair.A.shape != start.A.shape:
        return Factors(B=torch.cat([pair.B, -start.B], dim=1), A=torch.cat([pair.A, start.A]))
    return Factors(B=torch.cat([pair.B - start.B, start.B], dim=1), A=torch.cat([pair.A, pair.A - start.A], dim=0))
