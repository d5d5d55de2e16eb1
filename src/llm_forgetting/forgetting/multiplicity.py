"""Many tests, one claim: adjusted p-values."""

from collections.abc import Mapping


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down p-values: with p sorted, adj_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)) for m tests.

    Controls the chance of any false rejection whatever the dependence between tests (Holm 1979, Scandinavian Journal of
    Statistics 6:65). Raises ValueError for p-values outside [0, 1].
    """
    wrong = [name for name, p in p_values.items() if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"p-values must be in [0, 1]: {', '.join(wrong)}")
    adjusted, largest = {}, 0.0
    for step, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
