"""results.md: every table of a run, its figures, and how to do it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forgetting.report.tables.curvature import curvature_table, forecast_table
from llm_forgetting.report.tables.run import (
    Table,
    accuracy_matrix,
    between_table,
    comparison_table,
    flatness_table,
    forgetting_table,
    landscape_table,
    measured,
    spoken,
    summary_table,
)
from llm_forgetting.report.tables.spurious import spurious_table


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """Every table, in reading order."""
    makers = (
        accuracy_matrix,
        forgetting_table,
        summary_table,
        *([spurious_table] if results["spurious"] else []),
        landscape_table,
        flatness_table,
        comparison_table,
        *([between_table] if results["paths"] or results["checkpoint_plane"] or results["between_notes"] else []),
        *([forecast_table] if results["forecasts"] else []),
        *([curvature_table] if results["curvature"] else []),
    )
    return [make(results) for make in makers]


def results_markdown(results: Mapping[str, Any]) -> str:
    """results.md: the answer, every table, the figures, the warnings, and how to do it again."""
    parts = [f"# {results['answer']}", ""]
    for table in all_tables(results):
        parts += [f"## {table.title}", "", *_markdown_rows(table), "", *([table.note, ""] if table.note else [])]
    if results["figures"]:
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
        *(f"- Training on {spoken(phase['task'])}: {text}" for phase in results["training"] for text in changed(phase)),
        "- Again: `llm-forgetting run --config config.yaml` with the `config.yaml` beside this file",
        "",
    ]
    return "\n".join(parts)


def changed(phase: Mapping[str, Any]) -> Sequence[str]:
    """What intervened in the training on one task, as one text; none if nothing did."""
    found, parts = phase["interventions"], []
    if found["rescale"] != 1:
        parts.append(f"B multiplied and A divided by {found['rescale']:g} before it")
    if found["sam"] is not None:
        parts.append(f"{'ASAM' if found['sam']['adaptive'] else 'SAM'} with radius {found['sam']['rho']:g}")
    parts += [f"{len(ids)} items of {spoken(task)} replayed" for task, ids in found["replayed"].items()]
    if found["anchor"] is not None:
        anchor = found["anchor"]
        parts.append(f"L2 anchor of strength {anchor['strength']:g}, in the end {measured(anchor['penalty'])} nats")
    return ["; ".join(parts)] if parts else []


def _markdown_rows(table: Table) -> Sequence[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(table.header), line(["---"] * len(table.header)), *(line(row) for row in table.rows)]
