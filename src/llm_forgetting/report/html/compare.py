"""The page of several runs side by side: forgetting, landscapes, and where their configurations differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from llm_forgetting.files import to_plain
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.report.html.blocks import Block, Code, Numbers, Page, Prose, Section
from llm_forgetting.report.set_up import set_up
from llm_forgetting.report.tables.run import SPLIT_WORDS, Table, display_name, measured, number, value_and_error
from llm_forgetting.results import Results

Rows = tuple[tuple[str, ...], ...]
# An error below this share of the value would add digits that nobody reads.
PRECISE = 5e-3


@dataclass(frozen=True)
class Compared:
    """Run to be compared: its name in the tables, its results, and its measures (value, standard error) by title."""

    name: str
    results: Results
    measures: Mapping[str, tuple[float | None, float | None]]


def compare_tables(runs: Sequence[Compared]) -> list[Table]:
    """A column per run; rows that no run has are left out."""
    header = ("number", *(run.name for run in runs))
    numbers = (
        "± one standard error, brackets: 95% intervals over items. Runs of other items or seeds differ by chance too."
    )
    return [
        Table("Forgetting", header, _forgetting(runs), numbers),
        Table("Accuracy / loss in nats", header, _scores(runs)),
        Table(
            "Landscape, curvature and forecasts",
            header,
            _measures(runs),
            "of task 1 after task 1; nats; - : not measured.",
        ),
        Table("What differs in the configurations", ("field", *header[1:]), _differences(runs)),
    ]


def compare_page(runs: Sequence[Compared], command: str) -> Page:
    """The tables, with every run's own answer first."""
    forgetting, scores, measures, differences = compare_tables(runs)
    alike = Prose("The configurations are the same.", quiet=True)
    config: list[Block] = [Numbers(differences)] if differences.rows else [alike]
    return Page(
        title=f"{len(runs)} runs side by side",
        kicker="llm-forgetting compare",
        answers=[(run.name, [run.results.answer]) for run in runs],
        sections=[
            Section("forgetting", "Forgetting", [Numbers(forgetting)]),
            Section("scores", "Accuracy and loss", [Numbers(scores)]),
            Section("landscape", "Landscape, curvature and forecasts", [Numbers(measures)]),
            Section("configuration", "Configuration", config),
            Section("again", "How to reproduce", [Code(command), Numbers(_identity(runs))]),
        ],
        warnings=[f"{run.name}: {warning}" for run in runs for warning in run.results.warnings],
    )


def _forgetting(runs: Sequence[Compared]) -> Rows:
    rows: dict[str, list[str]] = {}
    for n, run in enumerate(runs):
        for split in run.results.forgetting.splits:
            for measure, label in ((split.accuracy, "accuracy lost"), (split.loss, "loss gained (nats)")):
                for k, task in enumerate(measure.tasks, start=1):
                    row = rows.setdefault(f"task {k}, {SPLIT_WORDS[split.split]}: {label}", ["-"] * len(runs))
                    row[n] = _estimate(task.absolute)
    return tuple((label, *cells) for label, cells in rows.items())


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    interval = estimate.interval
    if interval:
        return f"{number(estimate.value)} [{number(interval.low)}, {number(interval.high)}]"
    return value_and_error(estimate.value, estimate.stderr)


def _scores(runs: Sequence[Compared]) -> Rows:
    rows: dict[str, list[str]] = {}
    for n, run in enumerate(runs):
        for split in run.results.forgetting.splits:
            for i, checkpoint in enumerate(split.checkpoints):
                pairs = zip(split.accuracy.cells[i], split.loss.cells[i], strict=True)
                for j, (accuracy, loss) in enumerate(pairs, start=1):
                    label = f"task {j}, {SPLIT_WORDS[split.split]}, {display_name(checkpoint)}"
                    row = rows.setdefault(label, ["-"] * len(runs))
                    row[n] = f"{value_and_error(accuracy.value, accuracy.stderr)} / {number(loss.value)}"
    return tuple((label, *cells) for label, cells in rows.items())


def _measures(runs: Sequence[Compared]) -> Rows:
    titles = dict.fromkeys(title for run in runs for title, (value, _) in run.measures.items() if value is not None)
    return tuple((title, *(_measure(run.measures.get(title, (None, None))) for run in runs)) for title in titles)


def _measure(measure: tuple[float | None, float | None]) -> str:
    value, stderr = measure
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    precise = stderr is None or stderr < PRECISE * abs(value)
    return measured(value) if precise else value_and_error(value, stderr)


def _differences(runs: Sequence[Compared]) -> Rows:
    """The fields of the configuration that are not the same everywhere, but for where results went."""
    flat = [_flattened(to_plain(run.results.config)) for run in runs]
    fields = dict.fromkeys(field for config in flat for field in config if not field.startswith("output."))
    values = {field: tuple(_text(config.get(field, "-")) for config in flat) for field in fields}
    return tuple((field, *texts) for field, texts in values.items() if len(set(texts)) > 1)


def _flattened(config: Mapping[str, object], path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= _flattened(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _identity(runs: Sequence[Compared]) -> Table:
    header = ("what", *(run.name for run in runs))
    rows = (
        ("tasks", *(", ".join(map(display_name, run.results.task_names)) for run in runs)),
        ("set-up", *(set_up(run.results) for run in runs)),
        ("configuration, SHA-256", *(run.results.config_fingerprint[:16] for run in runs)),
        ("llm-forgetting", *(run.results.versions["llm-forgetting"] for run in runs)),
    )
    return Table("The runs", header, rows)


def distinct_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """The shortest endings of the paths (as parts) that tell all of them apart; numbered where one is given twice."""
    for length in range(1, 1 + max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({n})" for n, (name, _) in enumerate(zip_longest(names, ()), start=1)]
