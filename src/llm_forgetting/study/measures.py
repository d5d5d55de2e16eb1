"""What a study keeps of a run: the numbers that might foretell forgetting, and those that came out, with their errors.

All are read off results.json; losses and rises are in nats. They concern the first task: measures at the checkpoint after it,
on its landscape items; what concerns the way to the next checkpoint (D, forecasts) from there to the one after task 2;
outcomes at the last checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Any]
Number = tuple[Any, Any]  # value and standard error, either of which may be missing
FIRST = "after_task1"


def _surface(results: Results) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results["landscapes"][FIRST]["surfaces"][results["task_names"][0]]
    return found


def _estimate(found: Mapping[str, Any]) -> Number:
    return found["value"], found.get("stderr")


def _curvature(results: Results) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results["curvature"][FIRST]
    return found


def _forecast(results: Results) -> Mapping[str, Any]:
    return next(entry for entry in results["forecasts"] if entry["from"] == FIRST)


def _foreseen(results: Results) -> Mapping[str, Any]:
    splits = _forecast(results)["tasks"][results["task_names"][0]]
    found: Mapping[str, Any] = splits[results["config"]["landscape"]["items"]]
    return found


def _rivals(results: Results) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _forecast(results)["rivals"]
    return found


def _metric(name: str) -> Callable[[Results], Number]:
    return lambda results: (_surface(results)["metrics"][name], None)


def _largest(results: Results) -> Number:
    found = _curvature(results)["largest"][0]
    return found["value"], found["residual"]


def _drift(results: Results) -> Number:
    return _estimate(list(results["text"]["change"].values())[-1])


def _rise(results: Results) -> Number:
    metrics = _surface(results)["metrics"]
    return float(metrics["maximum"]) - float(metrics["centre"]), None


def _learning(measure: str, task: int, split: str = "train") -> Callable[[Results], Number]:
    return lambda results: _estimate(results["forgetting"][split][measure]["learning"][task]["learning"])


def _forgetting(measure: str, kind: str, split: str = "train") -> Callable[[Results], Number]:
    return lambda results: _estimate(results["forgetting"][split][measure]["tasks"][0][kind])


def _last(measure: str) -> Callable[[Results], Number]:
    return lambda results: _estimate(results["forgetting"]["train"][measure]["cells"][-1][0])


def _rise_at_the_end(task: int) -> Callable[[Results], Number]:
    def found(results: Results) -> Number:
        landscape = list(results["landscapes"].values())[-1]
        return _estimate(landscape["surfaces"][results["task_names"][task]]["mean_rise"])

    return found


MEASURES: dict[str, tuple[str, Callable[[Results], Number]]] = {
    "mean_rise": ("mean rise of the loss", lambda r: _estimate(_surface(r)["mean_rise"])),
    "curvature_centre": ("curvature on the plane", _metric("curvature_centre")),
    "standard_deviation": ("s.d. of the plane's loss", _metric("standard_deviation")),
    "maximum_rise": ("largest rise on the plane", _rise),
    "centre_loss": ("loss at the checkpoint", _metric("centre")),
    "adapter_norm": ("|delta W| after task 1", lambda r: (r["landscapes"][FIRST]["update_norm"], None)),
    "largest_eigenvalue": ("largest eigenvalue", _largest),
    "trace": ("Hessian trace", lambda r: _estimate(_curvature(r)["trace"])),
    "gradient_norm": ("gradient norm", lambda r: (_curvature(r)["gradient_norm"], None)),
    "average_sharpness": ("average-case sharpness", lambda r: _estimate(_curvature(r)["sharpness"]["average_case"])),
    "worst_sharpness": ("worst-case (SAM) sharpness", lambda r: (_curvature(r)["sharpness"]["worst_case"]["ascent"], None)),
    "critical_sharpness": ("critical sharpness", lambda r: (_curvature(r)["sharpness"]["critical"]["value"], None)),
    "relative_critical_sharpness": (
        "relative critical sharpness",
        lambda r: (_forecast(r)["relative_critical"]["value"], None),
    ),
    "update_norm": ("|D|", lambda r: (_forecast(r)["update_norm"], None)),
    "divergence": ("KL on new items", lambda r: _estimate(_forecast(r)["divergence"])),
    "first_order": ("g.D", lambda r: (_foreseen(r)["first_order"], None)),
    "second_order": ("forecast g.D + D.HD / 2", lambda r: (_foreseen(r)["second_order"], None)),
    "curvature_along": ("D.HD", lambda r: (_foreseen(r)["curvature"], None)),
    "quadratic_bound": ("lambda_max |D|^2 / 2", lambda r: (_rivals(r)["quadratic_bound"], None)),
    "average_rise": ("random step of |D|", lambda r: _estimate(_rivals(r)["average_rise"])),
    "alignment": ("alignment of D", lambda r: (_rivals(r)["alignment"], None)),
}  # fmt: skip

OUTCOMES: dict[str, tuple[str, Callable[[Results], Number]]] = {
    "forgetting_loss": ("forgetting", _forgetting("loss", "absolute")),
    "forgetting_accuracy": ("forgetting in accuracy", _forgetting("accuracy", "absolute")),
    "forgetting_test_loss": ("forgetting of held-out items", _forgetting("loss", "absolute", "test")),
    "observed": ("forgetting of the landscape items", lambda r: (_foreseen(r)["observed"], None)),
    "retention_loss": ("loss on task 1 at the end", _last("loss")),
    "retention_accuracy": ("accuracy on task 1 at the end", _last("accuracy")),
    "first_learning_loss": ("learning of task 1", _learning("loss", 0)),
    "learning_loss": ("learning of the last task", _learning("loss", -1)),
    "learning_accuracy": ("learning of the last task in accuracy", _learning("accuracy", -1)),
    "text_drift": ("change of loss on unrelated text", _drift),
    "mean_rise_after": ("mean rise of task 1's loss at the end", _rise_at_the_end(0)),
    "mean_rise_new": ("mean rise of the last task's loss at the end", _rise_at_the_end(-1)),
}  # fmt: skip


NATS = frozenset(
    {
        "mean_rise", "standard_deviation", "maximum_rise", "centre_loss", "average_sharpness", "worst_sharpness",
        "first_order", "second_order", "quadratic_bound", "average_rise", "divergence",
        "forgetting_loss", "forgetting_test_loss", "observed", "retention_loss", "first_learning_loss", "learning_loss",
        "text_drift", "mean_rise_after", "mean_rise_new",
    }
)  # fmt: skip
"""The measures and outcomes that are losses."""


def title(name: str) -> str:
    """A measure or outcome for people."""
    return {**MEASURES, **OUTCOMES}[name][0]


def numbers_of(results: Results) -> dict[str, dict[str, float | None]]:
    """`measures`, `outcomes` and `stderrs` of a run; None for what was not measured, or has no number."""
    found: dict[str, dict[str, float | None]] = {"measures": {}, "outcomes": {}, "stderrs": {}}
    for kind, table in (("measures", MEASURES), ("outcomes", OUTCOMES)):
        for name, (_, read) in table.items():
            try:
                value, stderr = read(results)
            except (KeyError, IndexError, StopIteration, TypeError):  # this run did not measure it
                continue
            found[kind][name] = None if value is None else float(value)
            if stderr is not None:
                found["stderrs"][name] = float(stderr)
    return found
