"""Tables of what the landscape at a checkpoint forecasts, and of its curvature."""

from llm_forgetting.curvature.records import RivalPredictors, TaskForecast, Validity
from llm_forgetting.report.tables.run import (
    SPLIT_WORDS,
    Table,
    display_name,
    eigenvalue_text,
    measured,
    number,
    value_and_error,
)
from llm_forgetting.results import Results


def forecast_table(results: Results) -> Table:
    """Per step, earlier task and split: first and second order, what happened, and how far the quadratic held."""
    rows, notes = [], []
    for step in results.forecasts:
        ends = f"{display_name(step.start)} to {display_name(step.to)}"
        for task, splits in step.tasks.items():
            for split, forecast in splits.items():
                rows.append(
                    (
                        f"{display_name(task)}, {SPLIT_WORDS[split]}, {ends}",
                        str(len(forecast.items)),
                        measured(forecast.first_order),
                        _second_order(forecast),
                        measured(forecast.observed),
                        "-" if forecast.path is None else _holds_until(forecast.path.validity),
                    )
                )
        notes.append(
            f"{ends}: |D| = {number(step.update_norm)}, KL on the new task's items "
            f"{value_and_error(step.divergence.value, step.divergence.stderr)}."
        )
        if step.rivals is not None:
            notes.append(_describe_baselines(step.rivals))
    note = (
        "change of the mean loss, from slope and curvature at the earlier checkpoint along the path to the later one: first "
        "order g.D, second order g.D + D.HD / 2; holds until: the fraction of the path up to which the second order is within "
        f"{results.config.landscape.tau:g} nats."
    )
    header = ("forecast of forgetting", "items", "1st order", "2nd order", "observed", "holds until")
    return Table("Forecast from the landscape (nats)", header, tuple(rows), " ".join([note, *notes]))


def _second_order(forecast: TaskForecast) -> str:
    error = forecast.curvature_error
    return measured(forecast.second_order) if error is None else value_and_error(forecast.second_order, error / 2)


def _holds_until(validity: Validity) -> str:
    return "the end" if validity.fraction >= 1 else f"t = {validity.fraction:.2f}"


def _describe_baselines(predictors: RivalPredictors) -> str:
    average = value_and_error(predictors.average_rise.value, predictors.average_rise.stderr)
    alignment, critical = (
        None if value is None else f"{value:.3g}"
        for value in (predictors.alignment, predictors.relative_critical_sharpness)
    )
    return (
        f"{display_name(predictors.task)}: lambda_max |D|^2 / 2 = {predictors.quadratic_bound:.3g}, which a quadratic at "
        f"its minimum would not exceed; a random step of this length {average}; curvature along the step over the average: "
        f"{alignment or 'too uncertain to say'}; relative critical sharpness: {critical or '-'}."
    )


def curvature_table(results: Results) -> Table:
    """Extreme eigenvalues, trace and sharpness of every checkpoint's own task."""
    rows = []
    for name, spectrum in results.curvature.items():
        average, critical = spectrum.sharpness.average_case, spectrum.sharpness.critical.value
        rows.append(
            (
                display_name(name),
                f"{eigenvalue_text(spectrum.smallest[0])} to {eigenvalue_text(spectrum.largest[0])}",
                value_and_error(spectrum.trace.value, spectrum.trace.stderr),
                measured(spectrum.sharpness.worst_case.ascent),
                value_and_error(average.value, average.stderr),
                "-" if critical is None else measured(critical),
            )
        )
    header = ("own task", "eigenvalues", "trace", "worst case", "average", "critical")
    note = (
        "extreme eigenvalues and trace of the Hessian in canonical adapter coordinates; worst and average case: rise of the "
        f"loss at {results.config.curvature.radius:g} of the adapter's norm; critical: 2 / the first step against the "
        "gradient that does not pay."
    )
    return Table("Curvature (nats)", header, tuple(rows), note)
