"""results.json as flat rows: what data frames, trackers and model cards are made of. No torch, no pandas.

A row is one thing that was measured: its keys say where (checkpoint, task, split), then come the numbers with their errors. A
number that was not measured is None. Losses are in nats.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
Row = dict[str, Any]
SCORES = ("accuracy", "loss")


def score_rows(results: Results) -> list[Row]:
    """One row per split, checkpoint and task: accuracy and loss (each with standard error and 95% interval), letter mass."""
    return [
        {
            "checkpoint": checkpoint,
            "task": task,
            "split": split,
            **{key: value for measure in SCORES for key, value in _with_error(measure, found[measure]["cells"][i][j])},
            "letter_mass": _number(found["letter_mass"][i][j]),
            "items": found["accuracy"]["cells"][i][j]["n"],
        }
        for split, found in results["forgetting"].items()
        for i, checkpoint in enumerate(found["checkpoints"])
        for j, task in enumerate(results["task_names"])
    ]


def forgetting_rows(results: Results) -> list[Row]:
    """One row per split, measure and earlier task: before, after, what was lost (positive: forgotten) with its error."""
    rows = []
    for split, found in results["forgetting"].items():
        for measure in SCORES:
            cells = found[measure]["cells"]
            for task in found[measure]["tasks"]:
                j = task["task"] - 1
                rows.append(
                    {
                        "task": task["name"],
                        "split": split,
                        "measure": measure,
                        "before": _number(cells[j + 1][j]["value"]),
                        "after": _number(cells[-1][j]["value"]),
                        **dict(_with_error("forgetting", task["absolute"])),
                        "items": task["n"],
                    }
                )
    return rows


def landscape_rows(results: Results) -> list[Row]:
    """One row per checkpoint and task: the numbers of its loss surface; rises in nats at `distance` from the checkpoint."""
    return [
        {
            "checkpoint": checkpoint,
            "task": task,
            "space": landscape["space"],
            "distance": landscape["distance"],
            "centre_loss": _number(surface["metrics"]["centre"]),
            "mean_rise": _number(surface["mean_rise"]["value"]),
            "mean_rise_stderr": _number(surface["mean_rise"]["stderr"]),
            "curvature": _number(surface["metrics"]["curvature_centre"]),
            "curvature_error": _number(surface["metrics"].get("curvature_centre_error")),
            "range": _number(surface["metrics"]["range"]),
            "basin_radius": _number(surface["lines"]["basin_radius"]["value"]),
            "fit_error": _number((surface["error"] or {}).get("largest")),
            "converged": (landscape["fit"] or {}).get("converged"),
        }
        for checkpoint, landscape in results["landscapes"].items()
        for task, surface in landscape["surfaces"].items()
    ]


def curvature_rows(results: Results) -> list[Row]:
    """One row per checkpoint whose Hessian was looked at: extreme eigenvalues, trace, sharpness of the task just learnt."""
    return [
        {
            "checkpoint": checkpoint,
            "largest_eigenvalue": _number(found["largest"][0]["value"]),
            "largest_eigenvalue_residual": _number(found["largest"][0]["residual"]),
            "smallest_eigenvalue": _number(found["smallest"][0]["value"]),
            "trace": _number(found["trace"]["value"]),
            "trace_stderr": _number(found["trace"]["stderr"]),
            "gradient_norm": _number(found["gradient_norm"]),
            "average_sharpness": _number(found["sharpness"]["average_case"]["value"]),
            "average_sharpness_stderr": _number(found["sharpness"]["average_case"].get("stderr")),
            "worst_sharpness": _number(found["sharpness"]["worst_case"]["ascent"]),
        }
        for checkpoint, found in results["curvature"].items()
    ]


def forecast_rows(results: Results) -> list[Row]:
    """One row per step between checkpoints, earlier task and split: its forecast rise of the loss beside the observed."""
    return [
        {
            "from": forecast["from"],
            "to": forecast["to"],
            "task": task,
            "split": split,
            "first_order": _number(found["first_order"]),
            "second_order": _number(found["second_order"]),
            "curvature": _number(found["curvature"]),
            "observed": _number(found["observed"]),
        }
        for forecast in results["forecasts"]
        for task, splits in forecast["tasks"].items()
        for split, found in splits.items()
    ]


def training_rows(results: Results) -> list[Row]:
    """One row per optimiser step: task, epoch, step, loss, gradient norm, learning rate."""
    return [{"task": phase["task"], **entry} for phase in results["training"] for entry in phase["log"]]


def scalars(results: Results) -> list[dict[str, float]]:
    """Per checkpoint (the base model first) its numbers by slashed names, for trackers; forgetting stands at the last."""
    names = results["forgetting"]["train"]["checkpoints"]
    found: list[dict[str, float]] = [{} for _ in names]
    tables: Sequence[tuple[str, list[Row], tuple[str, ...]]] = (
        ("scores", score_rows(results), ("split", "task")),
        ("landscape", landscape_rows(results), ("task",)),
        ("curvature", curvature_rows(results), ()),
    )
    for table, rows, keys in tables:
        for row in rows:
            place = "/".join([table, *(row[key] for key in keys)])
            found[names.index(row["checkpoint"])] |= dict(_scalars(row, place))
    for row in forgetting_rows(results):
        found[-1] |= dict(_scalars(row, f"forgetting/{row['split']}/{row['task']}/{row['measure']}"))
    for row in forecast_rows(results):
        found[names.index(row["to"])] |= dict(_scalars(row, f"forecast/{row['split']}/{row['task']}"))
    return found


def _scalars(row: Row, place: str) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, float):
            yield f"{place}/{key}", value


def _with_error(name: str, estimate: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The columns of a value, its standard error and its 95% interval."""
    interval = estimate.get("interval") or {}
    yield name, _number(estimate["value"])
    yield f"{name}_stderr", _number(estimate.get("stderr"))
    yield f"{name}_low", _number(interval.get("low"))
    yield f"{name}_high", _number(interval.get("high"))


def _number(value: Any) -> float | None:
    """A number of results.json, in which those that are not finite are texts."""
    return None if value is None else float(value)
