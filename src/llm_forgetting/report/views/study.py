"""Views of study.json: the runs as points, and the axes on which they can be told apart."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.files import Json
from llm_forgetting.report.views.axis_scale import AxisScale, choose_scale

StudyContent = Mapping[str, Json]


def columns(points: Sequence[StudyContent], x: str, y: str) -> tuple[Floats, Floats]:
    """Numbers `x` and `y` of the runs that have both, finite."""
    rows = [(point["numbers"].get(x), point["numbers"].get(y)) for point in points]
    pairs = np.array([(float(a), float(b)) for a, b in rows if a is not None and b is not None]).reshape(-1, 2)
    finite = pairs[np.isfinite(pairs).all(axis=1)]
    return finite[:, 0], finite[:, 1]


def axis_scales(study: StudyContent, x: str, y: str, *, same: bool) -> tuple[AxisScale, AxisScale]:
    """Axes of a scatter plot of all runs; with `same` both are the one that all its values need."""
    xs, ys = columns(study["points"], x, y)
    return (choose_scale(xs, ys),) * 2 if same else (choose_scale(xs), choose_scale(ys))


def by_pair(study: StudyContent) -> dict[str, list[StudyContent]]:
    """Runs of every task pair."""
    return _grouped(study, "pair", dict.fromkeys(point["pair"] for point in study["points"]))


def by_arm(study: StudyContent) -> dict[str, list[StudyContent]]:
    """Runs of every arm."""
    return _grouped(study, "arm", study["arms"])


def _grouped(study: StudyContent, key: str, names: Iterable[str]) -> dict[str, list[StudyContent]]:
    return {name: [point for point in study["points"] if point[key] == name] for name in names}


def primary_first(study: StudyContent) -> list[str]:
    """Names of the measures, the primary one first."""
    measures = study["associations"]["measures"]
    return sorted(measures, key=lambda name: not measures[name]["primary"])


def title(study: StudyContent, name: str) -> str:
    """Title of a number."""
    return str(study["titles"].get(name, name))


def unit(study: StudyContent, name: str) -> str:
    """Unit of a number, "" for none."""
    return str(study.get("units", {}).get(name) or "")


def estimate_ends(estimate: StudyContent) -> tuple[float, float]:
    """Ends of an estimate's interval, both its value where it has none."""
    interval, value = estimate["interval"], float(estimate["value"])
    return (value, value) if interval is None else (float(interval["low"]), float(interval["high"]))
