"""Difference of a number between two independent runs, from each run's own interval."""

import math

from llm_forgetting.forgetting.intervals import Interval


def independent_difference(first: float, second: float, of_first: Interval, of_second: Interval) -> Interval:
    """Interval for `second - first`, two independent estimates with 95% intervals (l, u) of their own:

        low = second - first - sqrt((second - l_second)^2 + (u_first - first)^2)
        high = second - first + sqrt((u_second - second)^2 + (first - l_first)^2)

    Zou & Donner 2008, Statistics in Medicine 27:1693 (MOVER). With Wilson's intervals it is Newcombe's method 10 for two
    proportions (1998, Statistics in Medicine 17:873). Of runs with the same items it is wider than it need be, as what both
    find hard or easy alike is not taken out.
    """
    change = second - first
    return Interval(
        change - math.hypot(second - of_second.low, of_first.high - first),
        change + math.hypot(of_second.high - second, first - of_first.low),
        method="Zou & Donner 2008 (MOVER)",
    )
