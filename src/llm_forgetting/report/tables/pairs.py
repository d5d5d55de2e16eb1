"""Tables of pairs of checkpoints: what changed from A to B, and what the landscape at A forecast of it."""

from llm_forgetting.forgetting.intervals import Interval, PairedProportionChange
from llm_forgetting.forgetting.mean_intervals import PairedMeanChange
from llm_forgetting.forgetting.paired_evaluation import SubjectChange, TaskChange
from llm_forgetting.report.tables.run import Table, display_name, measured, number, value_and_error
from llm_forgetting.report.tables.words import evaluated_name
from llm_forgetting.results import EvaluationResults, ForecastResults, PairForecast


def change_table(results: EvaluationResults) -> Table:
    """A row per subject, and one for every task of several: B minus A on the same items."""
    rows = []
    for task in results.changes or ():
        parts: list[tuple[str, SubjectChange | TaskChange]] = [
            (display_name(part.name), part) for part in task.subjects
        ]
        if len(parts) > 1:
            parts.append((f"{display_name(task.name)}, all", task))
        rows += [_row(name, part.accuracy, part.loss) for name, part in parts]
        if task.held_out is not None:
            rows.append(_row(f"{display_name(task.name)}, held out", task.held_out, None))
    note = (
        "B minus A on the same items; brackets: paired 95% intervals over items (over subjects, if a task has several), none "
        "below 40 items, then ± standard error; p: exact McNemar (of several subjects Student's t over them)."
    )
    header = (
        "change from A to B",
        "items",
        evaluated_name(results),
        "only A right",
        "only B right",
        "p",
        "loss (nats)",
    )
    return Table("What changed from A to B", header, tuple(rows), note)


def _row(name: str, accuracy: PairedProportionChange, loss: PairedMeanChange | None) -> tuple[str, ...]:
    return (
        name,
        str(accuracy.n),
        change_text(accuracy),
        str(accuracy.only_before),
        str(accuracy.only_after),
        number(accuracy.p_value),
        "" if loss is None else change_text(loss),
    )


def change_text(change: PairedProportionChange | PairedMeanChange) -> str:
    """`+0.12 [-0.05, +0.29]`, or with the standard error where there is no interval."""
    interval: Interval | None = change.interval
    if interval is not None:
        return f"{change.value:+z.3f} [{interval.low:+z.3f}, {interval.high:+z.3f}]"
    return value_and_error(change.value, change.stderr)


def pair_forecast_table(results: ForecastResults) -> Table:
    """Per task first and second order, what was observed, and how far the answers moved."""
    rows = tuple(
        (
            display_name(task),
            str(len(pair.forecast.items)),
            number(pair.forecast.loss),
            measured(pair.forecast.first_order),
            second_order(pair),
            value_and_error(pair.change.value, pair.change.stderr),
            value_and_error(pair.divergence.value, pair.divergence.stderr),
        )
        for task, pair in results.tasks.items()
    )
    norms = ", ".join(f"|delta W_{name}| = {number(norm)}" for name, norm in results.norms.items())
    note = (
        f"change of the mean loss from A to B, by slope and curvature at A along D = delta W_B - delta W_A: first order g.D, "
        f"second order g.D + D.HD / 2; observed ± standard error over items, paired; KL of the answers at A from those at B. "
        f"|D| = {number(results.update_norm)}, {norms}."
    )
    header = ("task", "items", "loss at A", "1st order", "2nd order", "observed", "KL")
    return Table("Forecast from A to B (nats)", header, rows, note)


def second_order(pair: PairForecast) -> str:
    """The second order with its error, where it is not exact."""
    error = pair.forecast.curvature_error
    value = pair.forecast.second_order
    return measured(value) if error is None else value_and_error(value, error / 2)
