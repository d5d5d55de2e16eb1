"""results.md: every table of a run, its figures, and how to do it again."""

from collections.abc import Iterator, Sequence

from llm_forgetting.forgetting.records import Line
from llm_forgetting.report.set_up import model_name, set_up
from llm_forgetting.report.tables.closing import landscape_sentence
from llm_forgetting.report.tables.curvature import curvature_table, forecast_table
from llm_forgetting.report.tables.frontier import frontier_table
from llm_forgetting.report.tables.landscape import between_table, comparison_table, flatness_table, landscape_table
from llm_forgetting.report.tables.probes import probe_rows, probes_table
from llm_forgetting.report.tables.quantised import quantised_table
from llm_forgetting.report.tables.run import (
    Table,
    accuracy_matrix,
    display_name,
    forgetting_table,
    measured,
    summary_table,
)
from llm_forgetting.report.tables.spurious import spurious_table
from llm_forgetting.report.tables.transitions import transitions_table
from llm_forgetting.report.views.forecasts import compared_forecasts, forecast_sentence
from llm_forgetting.results import InterventionRecord, Results


def all_tables(results: Results) -> list[Table]:
    """Every table, in reading order."""
    makers = (
        accuracy_matrix,
        forgetting_table,
        *([transitions_table] if transitions_table(results).rows else []),
        summary_table,
        *([frontier_table] if any(training.during for training in results.training) else []),
        *([probes_table] if probe_rows(results) else []),
        *([quantised_table] if results.quantised else []),
        *([spurious_table] if results.spurious else []),
        *([landscape_table, flatness_table, comparison_table] if results.landscapes else []),
        *([between_table] if results.paths or results.checkpoint_plane or results.between_notes else []),
        *([forecast_table] if results.forecasts else []),
        *([curvature_table] if results.curvature else []),
    )
    return [make(results) for make in makers]


def results_markdown(results: Results, items: Sequence[Line] = ()) -> str:
    """results.md: the answer, every table, the figures, the warnings, and how to do it again; `items` judge the forecast."""
    parts = [f"# {results.answer}", "", set_up(results), ""]
    for said in (landscape_sentence(results), forecast_sentence(compared_forecasts(results, items))):
        parts += [said, ""] if said else []
    for table in all_tables(results):
        parts += [f"## {table.title}", "", *markdown_rows(table), "", *([table.note, ""] if table.note else [])]
    if results.figures:
        parts += ["## Figures", "", *(f"![{name}]({name})" for name in results.figures), ""]
    if results.warnings:
        parts += ["## Warnings", "", *(f"- {warning}" for warning in results.warnings), ""]
    model, protocol = results.model, results.protocol
    parts += [
        "## How",
        "",
        f"- Data: {results.source}",
        f"- Model: {model_name(model)} ({model.architecture}, {model.parameters:,} parameters, {model.precision}), LoRA on "
        f"{model.adapted_modules} modules ({model.adapter_parameters:,} parameters)",
        *([f"- Arithmetic: {model.arithmetic}"] if model.arithmetic else []),
        f"- {protocol.train_split}",
        f"- {protocol.optimizer}; {protocol.adapter}",
        *(
            f"- Training on {display_name(training.task)}: {text}"
            for training in results.training
            if (text := describe_interventions(training.interventions))
        ),
        "- Again: `llm-forgetting run --config config.yaml` with the `config.yaml` beside this file",
        "",
    ]
    return "\n".join(parts)


def describe_interventions(interventions: InterventionRecord) -> str:
    """What intervened in the training on one task; empty if nothing did."""
    return "; ".join(_interventions(interventions))


def _interventions(record: InterventionRecord) -> Iterator[str]:
    if record.rescale != 1:
        yield f"B multiplied and A divided by {record.rescale:g} before it"
    if record.sam is not None:
        yield f"{'ASAM' if record.sam.adaptive else 'SAM'} with radius {record.sam.rho:g}"
    for task, ids in record.replayed.items():
        yield f"{len(ids)} items of {display_name(task)} replayed"
    if record.anchor is not None:
        yield f"L2 anchor of strength {record.anchor.strength:g}, in the end {measured(record.anchor.penalty)} nats"
    for name, method in (record.methods or {}).items():
        options = ", ".join(f"{option} {value}" for option, value in method.options.items())
        numbers = ", ".join(
            f"{what.replace('_', ' ')} {value:,.0f}" if value.is_integer() else f"{what.replace('_', ' ')} {value:.3g}"
            for what, value in method.measured.items()
        )
        yield f"{name}{f' ({options})' if options else ''}{f': {numbers}' if numbers else ''}"


def markdown_rows(table: Table) -> Sequence[str]:
    """The lines of a table in Markdown; none of an empty one."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    head = [line(table.header), line(["---"] * len(table.header))] if table.rows else []
    return [*head, *(line(row) for row in table.rows)]
