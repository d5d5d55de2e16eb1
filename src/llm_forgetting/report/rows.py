"""Results as flat rows: what data frames, trackers and model cards are made of. No torch, no pandas.

A row is one thing that was measured: its keys say where (checkpoint, task, split), then come the numbers with their errors. A
number that was not measured is None. Losses are in nats.
"""

from collections.abc import Sequence

from llm_forgetting.files import to_plain
from llm_forgetting.forgetting.frontier import ScoresDuring, TaskScoresDuring
from llm_forgetting.forgetting.intervals import Proportion
from llm_forgetting.forgetting.mean_intervals import Mean
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.forgetting.scores import MEASURES, Measure
from llm_forgetting.results import Results

Row = dict[str, float | str | None]


def score_rows(results: Results) -> list[Row]:
    """One row per split, checkpoint and task: accuracy and loss (each with standard error and 95% interval), letter mass."""
    return [
        {
            "checkpoint": checkpoint,
            "task": task,
            "split": scores.split,
            **_with_error("accuracy", scores.accuracy.cells[i][j]),
            **_with_error("loss", scores.loss.cells[i][j]),
            "letter_mass": float(scores.letter_mass[i, j]),
            "items": scores.accuracy.cells[i][j].n,
        }
        for scores in results.forgetting.splits
        for i, checkpoint in enumerate(scores.checkpoints)
        for j, task in enumerate(results.task_names)
    ]


def forgetting_rows(results: Results) -> list[Row]:
    """One row per split, measure and earlier task: before, after, what was lost (positive: forgotten) with its error."""
    return [
        {
            "task": task.name,
            "split": scores.split,
            "measure": measured.measure,
            "before": measured.cells[task.task][task.task - 1].value,
            "after": measured.cells[-1][task.task - 1].value,
            **_with_error("forgetting", task.absolute),
            "items": task.n,
        }
        for scores in results.forgetting.splits
        for measured in (scores.accuracy, scores.loss)
        for task in measured.tasks
    ]


def probe_rows(results: Results) -> list[Row]:
    """One row per probe and checkpoint: score and loss, and of the score what changed from there to the last checkpoint."""
    rows: list[Row] = []
    for probe in results.probes or ():
        changes = {change.start: change for change in probe.changes}
        for checkpoint, score in probe.score.items():
            change, loss = changes.get(checkpoint), probe.loss.get(checkpoint)
            transitions = None if change is None else change.transitions
            rows.append(
                {
                    "checkpoint": checkpoint,
                    "probe": probe.name,
                    "measure": probe.measure,
                    **_with_error("score", score),
                    "loss": None if loss is None else loss.value,
                    "change": None if change is None else change.score.value,
                    "lost": None if transitions is None else transitions.lost.value,
                    "gained": None if transitions is None else transitions.gained.value,
                    "items": probe.n,
                }
            )
    return rows


def landscape_rows(results: Results) -> list[Row]:
    """One row per checkpoint and task: the numbers of its loss surface; rises in nats at `distance` from the checkpoint."""
    return [
        {
            "checkpoint": checkpoint,
            "task": task,
            "space": landscape.space,
            "distance": landscape.distance,
            "centre_loss": surface.metrics.centre,
            "mean_rise": surface.mean_rise.value,
            "mean_rise_stderr": surface.mean_rise.stderr,
            "curvature": surface.metrics.curvature_centre,
            "curvature_error": surface.metrics.curvature_centre_error,
            "range": surface.metrics.range,
            "basin_radius": surface.lines.basin_radius.value,
            "fit_error": None if surface.error is None else surface.error.largest,
            "converged": None if landscape.fit is None else landscape.fit.converged,
        }
        for checkpoint, landscape in results.landscapes.items()
        for task, surface in landscape.surfaces.items()
    ]


def curvature_rows(results: Results) -> list[Row]:
    """One row per checkpoint whose Hessian was looked at: extreme eigenvalues, trace, sharpness of the task just learnt."""
    return [
        {
            "checkpoint": checkpoint,
            "largest_eigenvalue": spectrum.largest[0].value,
            "largest_eigenvalue_residual": spectrum.largest[0].residual,
            "smallest_eigenvalue": spectrum.smallest[0].value,
            "trace": spectrum.trace.value,
            "trace_stderr": spectrum.trace.stderr,
            "gradient_norm": spectrum.gradient_norm,
            "average_sharpness": spectrum.sharpness.average_case.value,
            "average_sharpness_stderr": spectrum.sharpness.average_case.stderr,
            "worst_sharpness": spectrum.sharpness.worst_case.ascent,
        }
        for checkpoint, spectrum in results.curvature.items()
    ]


def forecast_rows(results: Results) -> list[Row]:
    """One row per step between checkpoints, earlier task and split: its forecast rise of the loss beside the observed."""
    return [
        {
            "from": step.start,
            "to": step.to,
            "task": task,
            "split": split,
            "first_order": forecast.first_order,
            "second_order": forecast.second_order,
            "curvature": forecast.curvature,
            "observed": forecast.observed,
        }
        for step in results.forecasts
        for task, splits in step.tasks.items()
        for split, forecast in splits.items()
    ]


def training_rows(results: Results) -> list[Row]:
    """One row per optimiser step: task, epoch, step, loss, gradient norm, learning rate."""
    return [{"task": training.task, **to_plain(step)} for training in results.training for step in training.log]


def during_rows(results: Results) -> list[Row]:
    """One row per point of a training and task that was scored there: accuracy and loss, means over its items."""
    return [
        {
            "learnt": training.task,
            "task": task.task,
            "step": step,
            "fraction": step / training.during.total,
            "accuracy": float(task.correct[n].mean()),
            "loss": float(task.loss[n].mean()),
            "items": len(task.items),
        }
        for training in results.training
        if training.during is not None
        for n, step in enumerate(training.during.steps)
        for task in (*training.during.old, training.during.tasks[-1])
    ]


def frontier_rows(results: Results) -> list[Row]:
    """One row per point of every learning-forgetting frontier: of each training, earlier task or probe, and measure.

    `moved`: the point is a run's end after a method had moved the model, and no part of the frontier.
    """
    return [
        {
            "learnt": training.task,
            "forgotten": task.task,
            "measure": measure,
            "step": float(step),
            "learning": learning,
            "forgetting": forgetting,
            "moved": float(moved),
        }
        for training in results.training
        if (during := training.during) is not None
        for task in during.old
        for measure in MEASURES
        for step, learning, forgetting, moved in _points(during, task, measure)
    ]


def _points(during: ScoresDuring, task: TaskScoresDuring, measure: Measure) -> list[tuple[int, float, float, bool]]:
    path = during.frontier(task, measure)
    points = zip(during.steps, path.learning.tolist(), path.forgetting.tolist(), strict=False)
    end = [(during.total, *during.end(task, measure), True)] if during.moved else []
    return [*((*point, False) for point in points), *end]


def scalars(results: Results) -> list[dict[str, float]]:
    """Per checkpoint (the base model first) its numbers by slashed names, for trackers; forgetting stands at the last."""
    checkpoints = results.forgetting.train.checkpoints
    numbers: list[dict[str, float]] = [{} for _ in checkpoints]
    last: Row = {"checkpoint": checkpoints[-1]}
    tables: Sequence[tuple[str, list[Row], tuple[str, ...]]] = (
        ("scores", score_rows(results), ("split", "task")),
        ("landscape", landscape_rows(results), ("task",)),
        ("curvature", curvature_rows(results), ()),
        ("forgetting", [{**row, **last} for row in forgetting_rows(results)], ("split", "task", "measure")),
        ("probes", probe_rows(results), ("probe", "measure")),
        ("forecast", [{**row, "checkpoint": row["to"]} for row in forecast_rows(results)], ("split", "task")),
    )
    for table, rows, keys in tables:
        for row in rows:
            place = "/".join([table, *(str(row[key]) for key in keys)])
            step = numbers[checkpoints.index(str(row["checkpoint"]))]
            step |= {f"{place}/{name}": value for name, value in row.items() if isinstance(value, float)}
    return numbers


def _with_error(name: str, estimate: Estimate | Proportion | Mean) -> Row:
    """The columns of a value, its standard error and its 95% interval."""
    low, high = (None, None) if estimate.interval is None else (estimate.interval.low, estimate.interval.high)
    return {name: estimate.value, f"{name}_stderr": estimate.stderr, f"{name}_low": low, f"{name}_high": high}
