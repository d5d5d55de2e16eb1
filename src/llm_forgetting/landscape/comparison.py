"""How the loss surface of each task changed from one checkpoint to the next; numbers only."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

COMPARED = ("centre", "maximum", "standard_deviation", "curvature_centre", "curvature_inner", "range")


def compare_landscapes(landscapes: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """For every pair of successive checkpoints and every task: each metric before, after, and their difference.

    `landscapes` holds (checkpoint name, result of the landscape phase) in order. The mean rise carries the standard error
    of its difference, its two sides taken as independent. `sharper` says whether the mean rise grew by more than two such
    errors (True), fell by more (False), or neither (None): one random direction is one sample.
    """
    compared = []
    for (first, before), (second, after) in pairwise(landscapes):
        for task, surface in before["surfaces"].items():
            metrics, later = surface["metrics"], after["surfaces"][task]["metrics"]
            rise, later_rise = surface["mean_rise"], after["surfaces"][task]["mean_rise"]
            # float(): what is not finite comes out of an artifact as "nan", "inf" or "-inf".
            change = float(later_rise["value"]) - float(rise["value"])
            stderr = (float(rise["stderr"]) ** 2 + float(later_rise["stderr"]) ** 2) ** 0.5
            compared.append(
                {
                    "task": task,
                    "before": first,
                    "after": second,
                    "metrics": {
                        name: {
                            "before": metrics[name],
                            "after": later[name],
                            "change": float(later[name]) - float(metrics[name]),
                        }
                        for name in COMPARED
                    },
                    "mean_rise": {
                        "before": rise["value"],
                        "after": later_rise["value"],
                        "change": change,
                        "stderr": stderr,
                        "directions": rise["directions"],
                    },
                    "sharper": True if change > 2 * stderr else False if change < -2 * stderr else None,
                    "relative_scale": {"before": before["relative_scale"], "after": after["relative_scale"]},
                }
            )
    return compared
