"""What the terminal shows of a finished run: narrow tables and a sentence about the landscape."""

from collections.abc import Sequence
from dataclasses import replace

from llm_forgetting.report.tables.curvature import forecast_table
from llm_forgetting.report.tables.landscape import curvature_text, verdict_text
from llm_forgetting.report.tables.probes import closing_probes_table, probe_rows
from llm_forgetting.report.tables.quantised import closing_quantised_table
from llm_forgetting.report.tables.run import (
    SPLIT_WORDS,
    Table,
    accuracy_text,
    chance_text,
    counts,
    display_name,
    estimate_text,
    measured,
    number,
    sampled,
    sentence,
)
from llm_forgetting.report.tables.words import capital, measure_name
from llm_forgetting.results import Results


def closing_tables(results: Results) -> list[Table]:
    """Accuracy and forgetting, the landscape's metrics, and the forecast; tasks are called by their numbers."""
    tables = [_accuracies(results), *([closing_quantised_table(results)] if results.quantised else [])]
    tables += [closing_probes_table(results)] if probe_rows(results) else []
    tables += [
        *([_metrics(results)] if results.landscapes else []),
        *([_forecast(results)] if results.forecasts else []),
    ]
    named = "; ".join(f"task {k}: {display_name(name)}" for k, name in enumerate(results.task_names, start=1))
    tables[0] = replace(tables[0], note=f"{sentence(named)} {tables[0].note}".strip())
    return tables


def landscape_sentence(results: Results) -> str:
    """What became of the loss around the checkpoint for the task learnt first; empty if there is nothing to compare."""
    for change in results.landscape_comparison:
        if change.task == results.task_names[0]:
            rise, items = change.mean_rise, len(results.landscapes[change.before].surfaces[change.task].items)
            return (
                f"Loss landscape of {display_name(change.task)}: the mean rise went from {measured(rise.before)} nats "
                f"{display_name(change.before)} to {measured(rise.after)} {display_name(change.after)}, "
                f"{verdict_text(change)} ({rise.directions} directions, {items} items)."
            )
    return ""


def _accuracies(results: Results) -> Table:
    """Accuracy before, right after and long after a task's training, and what was lost."""
    rows = []
    for j, _ in enumerate(results.task_names):
        for scores in results.forgetting.splits:
            cells = scores.accuracy.cells
            ends = (cells[0][j], cells[j + 1][j], cells[-1][j])
            lost = next((task for task in scores.accuracy.tasks if task.task == j + 1), None)
            gained = next((task for task in scores.loss.tasks if task.task == j + 1), None)
            rows.append(
                (
                    f"task {j + 1}, {SPLIT_WORDS[scores.split]}",
                    str(cells[0][j].n),
                    *(number(cell.value) for cell in ends),
                    "-" if lost is None else _lost(counts(lost.change), estimate_text(lost.absolute)),
                    "-" if gained is None else number(gained.absolute.value),
                )
            )
    name = measure_name(results)
    header = (name, "items", "base", "tuned", "end", "lost", "loss gained")
    note = (
        f"tuned: after the task's own training; lost: brackets are 95% intervals over {sampled(results)}, below 40 items "
        f"counts of right answers; loss gained: nats. {sentence(accuracy_text(results))} {sentence(chance_text(results))}"
    )
    return Table(f"{capital(name)} and forgetting", header, tuple(rows), " ".join(note.split()))


def _lost(right: str, estimate: str) -> str:
    """The counts without the number of items, which has a column of its own."""
    return right.replace(" right before, ", " then ").partition(" after")[0] if right else estimate


def _metrics(results: Results) -> Table:
    """The five metrics of every surface; what did not converge is said below."""
    rows, poor = [], []
    for checkpoint, landscape in results.landscapes.items():
        for task, surface in landscape.surfaces.items():
            m = surface.metrics
            label = f"{_task(task, results.task_names)}, {display_name(checkpoint).replace('after task', 'after')}"
            metrics = (measured(m.centre), measured(m.maximum), measured(m.standard_deviation), curvature_text(m))
            rows.append((label, str(len(surface.items)), *metrics, measured(m.range)))
            if surface.error and landscape.fit and not surface.error.relative <= landscape.fit.tolerance:
                poor.append(label)
    first = next(iter(results.landscapes.values()))
    note = f"{first.space} space, distance {first.distance:g}; one plane of two random directions."
    note += f" Fit not converged: {'; '.join(poor)}." if poor else ""
    header = ("loss of", "items", "centre", "maximum", "std. dev.", "curvature", "range")
    return Table("Loss landscape (nats)", header, tuple(rows), note)


def _forecast(results: Results) -> Table:
    table, names = forecast_table(results), results.task_names
    rows = tuple((_short(label, names), *cells) for label, *cells in table.rows)
    note = "change of the mean loss; 2nd order: from slope and curvature at the earlier checkpoint."
    return Table(table.title, ("forecast", *table.header[1:]), rows, note)


def _short(label: str, names: Sequence[str]) -> str:
    """`anatomy, trained, after task 1 to after task 2` as `task 1, trained, 1 to 2`."""
    task, rest = next((name, rest) for name in names if (rest := label.removeprefix(display_name(name))) != label)
    return _task(task, names) + rest.replace("after task ", "")


def _task(name: str, names: Sequence[str]) -> str:
    return f"task {names.index(name) + 1}" if name in names else display_name(name)
