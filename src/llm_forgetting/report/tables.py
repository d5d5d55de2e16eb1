"""The tables of a run, as rows of text: shared by the terminal and results.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text, and a note below."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def spoken(name: str) -> str:
    """A checkpoint's or task's name for people."""
    return {"initial": "base model"}.get(name, name.replace("after_task", "after task ").replace("_", " "))


def number(value: float | str | None, digits: int = 2) -> str:
    """A number to `digits` decimals; "-" for none, "inf" and "nan" spelt out."""
    if value is None:
        return "-"
    value = float(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def _with_error(estimate: Mapping[str, Any], digits: int) -> str:
    """value, and its interval or else its standard error."""
    if estimate["value"] is None:
        return "-"
    text = number(estimate["value"], digits)
    if estimate.get("interval"):
        return f"{text} [{number(estimate['interval']['low'], digits)}, {number(estimate['interval']['high'], digits)}]"
    return f"{text} ± {number(estimate['stderr'], digits)}" if estimate.get("stderr") is not None else text


def accuracy_matrix(results: Mapping[str, Any]) -> Table:
    """R[i, j]: accuracy and loss of every checkpoint on every task and split."""
    names = results["task_names"]
    header = ["checkpoint"]
    columns: list[list[str]] = []
    for j, name in enumerate(names):
        for split, word in (("train", "trained"), ("test", "held-out")):
            cells = results["forgetting"][split]
            count = cells["accuracy"]["cells"][0][j]["n"]
            header.append(f"{spoken(name)}, {word} (n={count})")
            columns.append(
                [
                    f"{number(a[j]['value'])} / {number(b[j]['value'])}"
                    for a, b in zip(cells["accuracy"]["cells"], cells["loss"]["cells"], strict=True)
                ]
            )
    checkpoints = [spoken(name) for name in results["forgetting"]["train"]["checkpoints"]]
    rows = tuple((checkpoint, *(column[i] for column in columns)) for i, checkpoint in enumerate(checkpoints))
    return Table(
        "Accuracy / loss (nats)", tuple(header), rows, "trained items were fine-tuned on; held-out items never."
    )


def forgetting_table(results: Mapping[str, Any]) -> Table:
    """Every earlier task's forgetting, on both splits."""
    rows = []
    for split, word in (("train", "trained"), ("test", "held-out")):
        cells = results["forgetting"][split]
        for accuracy, loss in zip(cells["accuracy"]["tasks"], cells["loss"]["tasks"], strict=True):
            rows.append(
                (
                    f"{spoken(accuracy['name'])}, {word}",
                    str(accuracy["n"]),
                    _with_error(accuracy["absolute"], 2),
                    _percent(accuracy["relative"]["value"]),
                    _percent(accuracy["normalised"]["value"]),
                    _with_error(loss["absolute"], 2),
                )
            )
    header = ("task", "items", "accuracy lost", "relative", "of what was learnt", "loss gained (nats)")
    return Table(
        "Forgetting", header, tuple(rows), "brackets: 95% interval over items (none below 40 items); one seed."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def summary_table(results: Mapping[str, Any]) -> Table:
    """Average accuracy, backward transfer, Chaudhry's measure and forward transfer."""
    names = {
        "average": "average after the last task",
        "backward_transfer": "backward transfer",
        "forgetting_measure": "forgetting measure (Chaudhry)",
        "forward_transfer": "forward transfer",
    }
    rows = []
    for split, word in (("train", "trained"), ("test", "held-out")):
        cells = results["forgetting"][split]
        for key, label in names.items():
            rows.append(
                (f"{label}, {word}", _with_error(cells["accuracy"][key], 2), _with_error(cells["loss"][key], 2))
            )
    return Table("Over all tasks", ("measure", "accuracy", "loss (nats)"), tuple(rows))


def landscape_table(results: Mapping[str, Any]) -> Table:
    """The numbers of every surface."""
    rows = []
    for checkpoint, landscape in results["landscapes"].items():
        for task, surface in landscape["surfaces"].items():
            m, rise = surface["metrics"], surface["mean_rise"]
            rows.append(
                (
                    f"{spoken(checkpoint)}, {spoken(task)}",
                    number(m["centre"], 3),
                    number(m["maximum"], 3),
                    number(m["standard_deviation"], 3),
                    number(m["curvature_centre"], 3),
                    number(m["range"], 3),
                    f"{number(rise['value'], 3)} ± {number(rise['stderr'], 3)}",
                )
            )
    first = next(iter(results["landscapes"].values()))
    header = ("surface", "centre", "maximum", "std. dev.", "max. curvature", "range", "mean rise")
    cells = len(first["alphas"])
    note = (
        f"{first['space']} space (invariant under LoRA's GL(r)), distance {first['distance']:g}, {cells} x {cells} cells; "
        f"mean rise at that distance over {_directions(first)} directions."
    )
    return Table("Loss landscape (nats)", header, tuple(rows), note)


def _directions(landscape: Mapping[str, Any]) -> int:
    return int(next(iter(landscape["surfaces"].values()))["mean_rise"]["directions"])


def comparison_table(results: Mapping[str, Any]) -> Table:
    """How every task's surface changed between checkpoints."""
    words = {True: "sharper", False: "flatter", None: "no difference shown"}
    rows = tuple(
        (
            f"{spoken(entry['task'])}, {spoken(entry['before'])} to {spoken(entry['after'])}",
            f"{number(entry['mean_rise']['change'], 3)} ± {number(entry['mean_rise']['stderr'], 3)}",
            number(entry["metrics"]["curvature_centre"]["change"], 3),
            number(entry["metrics"]["centre"]["change"], 3),
            words[entry["sharper"]],
        )
        for entry in results["landscape_comparison"]
    )
    header = ("surface", "mean rise", "max. curvature", "centre", "verdict (2 stderr)")
    return Table("Change of the landscape (nats)", header, rows)


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """Every table, in reading order."""
    makers = (accuracy_matrix, forgetting_table, summary_table, landscape_table, comparison_table)
    return [make(results) for make in makers]


def results_markdown(results: Mapping[str, Any]) -> str:
    """results.md: the answer, every table, the figures, the warnings, and how to do it again."""
    parts = [f"# {results['answer']}", ""]
    for table in all_tables(results):
        parts += [f"## {table.title}", "", *_markdown_rows(table), "", *([table.note, ""] if table.note else [])]
    parts += ["## Figures", "", *(f"![{name}]({name})" for name in results["figures"]), ""]
    if results["warnings"]:
        parts += ["## Warnings", "", *(f"- {warning}" for warning in results["warnings"]), ""]
    model = results["model"]
    parts += [
        "## How",
        "",
        f"- Data: {results['source']}",
        f"- Model: {model['name']} ({model['architecture']}, {model['parameters']:,} parameters, {model['dtype']}), "
        f"LoRA on {model['adapted_modules']} modules ({model['adapter_parameters']:,} parameters)",
        f"- {results['protocol']['train_split']}",
        f"- {results['protocol']['optimizer']}; {results['protocol']['adapter']}",
        "- Again: `llm-forgetting run --config config.yaml` with the `config.yaml` beside this file",
        "",
    ]
    return "\n".join(parts)


def _markdown_rows(table: Table) -> Sequence[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(table.header), line(["---"] * len(table.header)), *(line(row) for row in table.rows)]
