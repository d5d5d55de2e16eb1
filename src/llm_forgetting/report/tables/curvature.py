"""Tables of what the landscape at a checkpoint forecasts, and of its curvature."""

from collections.abc import Mapping
from typing import Any

from llm_forgetting.report.tables.run import (
    SPLIT_WORDS,
    Table,
    eigenvalue_text,
    measured,
    number,
    spoken,
    value_and_error,
)


def forecast_table(results: Mapping[str, Any]) -> Table:
    """Per step, earlier task and split: first and second order, what happened, and how far the quadratic held."""
    rows, notes = [], []
    for entry in results["forecasts"]:
        for task, splits in entry["tasks"].items():
            for split, found in splits.items():
                path = found["path"]
                rows.append(
                    (
                        f"{spoken(task)}, {SPLIT_WORDS[split]}, {spoken(entry['from'])} to {spoken(entry['to'])}",
                        str(len(found["items"])),
                        *(measured(found[key]) for key in ("first_order", "second_order", "observed")),
                        "-" if path is None else _holds(path["validity"]),
                    )
                )
        divergence = entry["divergence"]
        notes.append(
            f"{spoken(entry['from'])} to {spoken(entry['to'])}: |D| = {number(entry['update_norm'])}, KL on the new task's "
            f"items {value_and_error(divergence['value'], divergence['stderr'])}."
        )
        if entry["rivals"] is not None:
            notes.append(_rivals(entry["rivals"]))
    note = (
        "change of the mean loss, from slope and curvature at the earlier checkpoint along the way to the later one: first "
        "order g.D, second order g.D + D.HD / 2; holds until: the share of the way up to which the second order is within "
        f"{results['config']['landscape']['tau']:g} nats."
    )
    header = ("forecast of forgetting", "items", "1st order", "2nd order", "observed", "holds until")
    return Table("Forecast from the landscape (nats)", header, tuple(rows), " ".join([note, *notes]))


def _holds(validity: Mapping[str, Any]) -> str:
    fraction = float(validity["fraction"])
    return "the end" if fraction >= 1 else f"t = {fraction:.2f}"


def _rivals(found: Mapping[str, Any]) -> str:
    average = value_and_error(found["average_rise"]["value"], found["average_rise"]["stderr"])
    bound, alignment, critical = (
        None if found[key] is None else f"{float(found[key]):.3g}"
        for key in ("quadratic_bound", "alignment", "relative_critical_sharpness")
    )
    return (
        f"{spoken(found['task'])}: lambda_max |D|^2 / 2 = {bound}, which a quadratic at its minimum would not exceed; a "
        f"random step of this length {average}; how many times more curved the way taken is: "
        f"{alignment or 'too uncertain to say'}; relative critical sharpness: {critical or '-'}."
    )


def curvature_table(results: Mapping[str, Any]) -> Table:
    """Extreme eigenvalues, trace and sharpness of every checkpoint's own task."""
    rows = []
    for name, found in results["curvature"].items():
        sharpness = found["sharpness"]
        average, critical = sharpness["average_case"], sharpness["critical"]["value"]
        rows.append(
            (
                spoken(name),
                " to ".join(eigenvalue_text(found[end][0]) for end in ("smallest", "largest")),
                value_and_error(found["trace"]["value"], found["trace"]["stderr"]),
                measured(sharpness["worst_case"]["ascent"]),
                value_and_error(average["value"], average["stderr"]),
                "-" if critical is None else measured(critical),
            )
        )
    header = ("own task", "eigenvalues", "trace", "worst case", "average", "critical")
    radius = results["config"]["curvature"]["radius"]
    note = (
        "extreme eigenvalues and trace of the Hessian in canonical adapter coordinates; worst and average case: rise of the "
        f"loss at {radius:g} of the adapter's norm; critical: 2 / the first step against the gradient that does not pay."
    )
    return Table("Curvature (nats)", header, tuple(rows), note)
