"""Measures that may forecast forgetting, and outcomes, as a study keeps them of a run, with their standard errors.

All are read off a run's `Results`; losses and rises are in nats. They concern the first task: measures at the checkpoint
after it, on its landscape items; what concerns the step to the next checkpoint (D, forecasts) from there to the one after
task 2; outcomes at the last checkpoint. Every row says where its number is made. A reader returns None where the run did not
measure its number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, TypeVar

from llm_forgetting.curvature.records import ForecastRecord, RivalPredictors, SpectrumRecord, TaskForecast
from llm_forgetting.experiment.artifacts.phase_artifacts import checkpoint_name
from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.scores import MEASURES as SCORED
from llm_forgetting.forgetting.scores import Measure
from llm_forgetting.landscape.metrics import SurfaceMetrics
from llm_forgetting.landscape.records import TaskSurface
from llm_forgetting.results import Results

FIRST = checkpoint_name(1)
Place = Literal["first checkpoint", "later"]
AT_FIRST: Place = "first checkpoint"
"""Made at the checkpoint after the first task: one number for all runs that share it."""
LATER: Place = "later"
"""Made at a later checkpoint, or on the way to it: a number of the task pair."""


@dataclass(frozen=True)
class Number:
    """Number of a run with its standard error; either is None where it was measured and does not exist."""

    value: float | None
    stderr: float | None = None


class _Uncertain(Protocol):
    @property
    def value(self) -> float | None: ...
    @property
    def stderr(self) -> float | None: ...


@dataclass(frozen=True)
class FrontierRecord:
    """What was learnt of the last task and forgotten of the first at points of the last training, in a share or in nats.

    `end`: both after a method had moved the model when the training was over; None where none did.
    """

    learning: tuple[float, ...]
    forgetting: tuple[float, ...]
    end: Annotated[tuple[float, float] | None, OMITTED] = None


Reader = Callable[[Results], Number | None]
Part = TypeVar("Part")


@dataclass(frozen=True)
class RunNumbers:
    """Numbers of a run by name; what was not measured is absent, what was measured and does not exist is None."""

    measures: dict[str, float | None] = field(default_factory=dict)
    outcomes: dict[str, float | None] = field(default_factory=dict)
    stderrs: dict[str, float] = field(default_factory=dict)


def _number(estimate: _Uncertain) -> Number:
    return Number(estimate.value, estimate.stderr)


def _of(part: Callable[[Results], Part | None], read: Callable[[Part], Number | float | None]) -> Reader:
    """The reader of a number of `part`, which a run may lack."""

    def reader(results: Results) -> Number | None:
        there = part(results)
        if there is None:
            return None
        number = read(there)
        return number if isinstance(number, Number) else Number(number)

    return reader


def _surface(results: Results) -> TaskSurface | None:
    landscape = results.landscapes.get(FIRST)
    return None if landscape is None else landscape.surfaces.get(results.task_names[0])


def _metrics(results: Results) -> SurfaceMetrics | None:
    surface = _surface(results)
    return None if surface is None else surface.metrics


def _spectrum(results: Results) -> SpectrumRecord | None:
    return results.curvature.get(FIRST)


def _forecast(results: Results) -> ForecastRecord | None:
    return next((forecast for forecast in results.forecasts if forecast.start == FIRST), None)


def _task_forecast(results: Results) -> TaskForecast | None:
    forecast = _forecast(results)
    splits = {} if forecast is None else forecast.tasks.get(results.task_names[0], {})
    return splits.get(results.config.landscape.items)


def _rivals(results: Results) -> RivalPredictors | None:
    forecast = _forecast(results)
    return None if forecast is None else forecast.rivals


def _relative_critical(results: Results) -> Number | None:
    forecast = _forecast(results)
    critical = None if forecast is None else forecast.relative_critical
    return None if critical is None else Number(critical.value)


def _largest(spectrum: SpectrumRecord) -> Number:
    return Number(spectrum.largest[0].value, spectrum.largest[0].residual)


def _drift(results: Results) -> Number | None:
    changes = list(results.text.change.values())
    return _number(changes[-1]) if changes else None


def _learning(measure: Measure, task: int) -> Reader:
    return lambda results: _number(results.forgetting.train.measure(measure).learning[task].learning)


def _forgetting(measure: Measure, split: Literal["train", "test"] = "train") -> Reader:
    def reader(results: Results) -> Number | None:
        trained, held_out = results.forgetting.splits
        tasks = (trained if split == "train" else held_out).measure(measure).tasks
        return _number(tasks[0].absolute) if tasks else None

    return reader


def _last(measure: Measure) -> Reader:
    return lambda results: _number(results.forgetting.train.measure(measure).cells[-1][0])


def _rise_at_the_end(task: int) -> Reader:
    def reader(results: Results) -> Number | None:
        if not results.landscapes:
            return None
        surface = list(results.landscapes.values())[-1].surfaces.get(results.task_names[task])
        return None if surface is None else _number(surface.mean_rise)

    return reader


MEASURES: dict[str, tuple[str, Place, Reader]] = {
    "mean_rise": ("mean rise of the loss", AT_FIRST, _of(_surface, lambda s: _number(s.mean_rise))),
    "curvature_centre": ("curvature on the plane", AT_FIRST, _of(_metrics, lambda m: m.curvature_centre)),
    "standard_deviation": ("s.d. of the plane's loss", AT_FIRST, _of(_metrics, lambda m: m.standard_deviation)),
    "maximum_rise": ("largest rise on the plane", AT_FIRST, _of(_metrics, lambda m: m.maximum - m.centre)),
    "centre_loss": ("loss at the checkpoint", AT_FIRST, _of(_metrics, lambda m: m.centre)),
    "adapter_norm": ("|delta W| after task 1", AT_FIRST, _of(lambda r: r.landscapes.get(FIRST), lambda c: c.update_norm)),
    "largest_eigenvalue": ("largest eigenvalue", AT_FIRST, _of(_spectrum, _largest)),
    "trace": ("Hessian trace", AT_FIRST, _of(_spectrum, lambda s: _number(s.trace))),
    "gradient_norm": ("gradient norm", AT_FIRST, _of(_spectrum, lambda s: s.gradient_norm)),
    "average_sharpness": ("average-case sharpness", AT_FIRST, _of(_spectrum, lambda s: _number(s.sharpness.average_case))),
    "worst_sharpness": ("worst-case (SAM) sharpness", AT_FIRST, _of(_spectrum, lambda s: s.sharpness.worst_case.ascent)),
    "critical_sharpness": ("critical sharpness", AT_FIRST, _of(_spectrum, lambda s: s.sharpness.critical.value)),
    "relative_critical_sharpness": ("relative critical sharpness", LATER, _relative_critical),
    "update_norm": ("|D|", LATER, _of(_forecast, lambda f: f.update_norm)),
    "divergence": ("KL on new items", LATER, _of(_forecast, lambda f: _number(f.divergence))),
    "first_order": ("g.D", LATER, _of(_task_forecast, lambda f: f.first_order)),
    "second_order": ("forecast g.D + D.HD / 2", LATER, _of(_task_forecast, lambda f: f.second_order)),
    "curvature_along": ("D.HD", LATER, _of(_task_forecast, lambda f: f.curvature)),
    "quadratic_bound": ("lambda_max |D|^2 / 2", LATER, _of(_rivals, lambda p: p.quadratic_bound)),
    "average_rise": ("random step of |D|", LATER, _of(_rivals, lambda p: _number(p.average_rise))),
    "alignment": ("alignment of D", LATER, _of(_rivals, lambda p: p.alignment)),
}  # fmt: skip

OUTCOMES: dict[str, tuple[str, Place, Reader]] = {
    "forgetting_loss": ("forgetting", LATER, _forgetting("loss")),
    "forgetting_accuracy": ("forgetting in accuracy", LATER, _forgetting("accuracy")),
    "forgetting_test_loss": ("forgetting of held-out items", LATER, _forgetting("loss", "test")),
    "observed": ("forgetting of the landscape items", LATER, _of(_task_forecast, lambda f: f.observed)),
    "retention_loss": ("loss on task 1 at the end", LATER, _last("loss")),
    "retention_accuracy": ("accuracy on task 1 at the end", LATER, _last("accuracy")),
    "first_learning_loss": ("learning of task 1", AT_FIRST, _learning("loss", 0)),
    "learning_loss": ("learning of the last task", LATER, _learning("loss", -1)),
    "learning_accuracy": ("learning of the last task in accuracy", LATER, _learning("accuracy", -1)),
    "text_drift": ("change of loss on unrelated text", LATER, _drift),
    "mean_rise_after": ("mean rise of task 1's loss at the end", LATER, _rise_at_the_end(0)),
    "mean_rise_new": ("mean rise of the last task's loss at the end", LATER, _rise_at_the_end(-1)),
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


MADE_AT_FIRST = frozenset(name for name, (_, place, _) in {**MEASURES, **OUTCOMES}.items() if place == AT_FIRST)
"""The measures and outcomes that are made at the first checkpoint."""


def title(name: str) -> str:
    """Display name of a measure or outcome."""
    return {**MEASURES, **OUTCOMES}[name][0]


def numbers_of(results: Results) -> RunNumbers:
    """All measures and outcomes of a run, with their standard errors."""
    numbers = RunNumbers()
    for values, readers in ((numbers.measures, MEASURES), (numbers.outcomes, OUTCOMES)):
        for name, (_, _, read) in readers.items():
            number = read(results)
            if number is None:
                continue
            values[name] = number.value
            if number.stderr is not None:
                numbers.stderrs[name] = number.stderr
    return numbers


def frontiers_of(results: Results) -> dict[str, FrontierRecord]:
    """The frontiers of the last training and the first task, by measure; empty where it was not scored on the way."""
    during = results.training[-1].during
    if during is None or len(during.tasks) < 2:
        return {}
    first, found = during.tasks[0], dict[str, FrontierRecord]()
    for measure in SCORED:
        path = during.frontier(first, measure)
        end = during.end(first, measure) if during.moved else None
        found[measure] = FrontierRecord(tuple(path.learning.tolist()), tuple(path.forgetting.tolist()), end)
    return found
