"""Tables of several runs side by side: forgetting, scores, landscape, and where their configurations differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_forgetting.files import to_plain
from llm_forgetting.forgetting.differences import independent_difference
from llm_forgetting.forgetting.intervals import Interval, Proportion
from llm_forgetting.forgetting.mean_intervals import Mean
from llm_forgetting.forgetting.measures import Estimate
from llm_forgetting.forgetting.scores import Measure
from llm_forgetting.landscape.metrics import welch_half_width
from llm_forgetting.report.set_up import set_up
from llm_forgetting.report.tables.run import SPLIT_WORDS, Table, display_name, measured, value_and_error
from llm_forgetting.report.tables.words import EXACT_MATCH, capital, measure_name, named
from llm_forgetting.results import Results

Rows = tuple[tuple[str, ...], ...]
# An error below this fraction of the value would add digits that nobody reads.
PRECISE = 5e-3
_SHORT = {"initial": "base"}


@dataclass(frozen=True)
class Quantity:
    """A number of a run, with whatever is known of its error: standard error, over how many samples, 95% interval."""

    value: float | None = None
    stderr: float | None = None
    samples: int | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Compared:
    """Run to be compared: its letter in the tables, its folder, its results, and its measures by title."""

    letter: str
    folder: str
    results: Results
    measures: Mapping[str, Quantity]


def compare_tables(runs: Sequence[Compared]) -> list[Table]:
    """A column per run, and of two runs the difference; rows that no run has are left out."""
    between = [f"{runs[1].letter} - {runs[0].letter}"] if len(runs) == 2 else []
    header = (*(run.letter for run in runs), *between)
    note = (
        f"± standard error. {' '.join(between)}: brackets are 95% intervals for independent runs (mean rise: Welch's t over "
        "the directions); one without 0 shows a difference of these two runs, not of what was varied: that takes a study."
        if between
        else "± standard error. Give two runs for their difference."
    )
    name = named(all(measure_name(run.results) == EXACT_MATCH for run in runs))
    return [
        Table("Forgetting", ("lost", *header), _rows([_forgotten(run, name) for run in runs]), note),
        Table(capital(name), (name, *header), _rows([_scores(run, "accuracy") for run in runs])),
        Table("Loss (nats)", ("loss", *header), _rows([_scores(run, "loss") for run in runs])),
        Table(
            "Landscape, curvature and forecasts",
            ("number", *header),
            _rows([run.measures for run in runs]),
            "of task 1 after task 1; nats; - : not measured.",
        ),
        Table("What differs in the configurations", ("field", *header[: len(runs)]), _differences(runs)),
    ]


def identity_table(runs: Sequence[Compared]) -> Table:
    """Which runs they are."""
    rows = (
        ("folder", *(run.folder for run in runs)),
        ("tasks", *(", ".join(map(display_name, run.results.task_names)) for run in runs)),
        ("set-up", *(set_up(run.results) for run in runs)),
        ("configuration, SHA-256", *(run.results.config_fingerprint[:16] for run in runs)),
        ("llm-forgetting", *(run.results.versions["llm-forgetting"] for run in runs)),
    )
    return Table("The runs", ("what", *(run.letter for run in runs)), rows)


def _forgotten(run: Compared, name: str) -> Mapping[str, Quantity]:
    return {
        f"task {task.task}, {SPLIT_WORDS[split.split]}, {label}": _quantity(task.absolute)
        for split in run.results.forgetting.splits
        for measure, label in ((split.accuracy, name), (split.loss, "nats"))
        for task in measure.tasks
    }


def _scores(run: Compared, measure: Measure) -> Mapping[str, Quantity]:
    return {
        f"task {j}, {SPLIT_WORDS[split.split]}, {_SHORT.get(checkpoint, checkpoint.replace('_task', ' '))}": _quantity(
            cell
        )
        for split in run.results.forgetting.splits
        for checkpoint, cells in zip(split.checkpoints, split.measure(measure).cells, strict=True)
        for j, cell in enumerate(cells, start=1)
    }


def _quantity(estimate: Estimate | Proportion | Mean) -> Quantity:
    return Quantity(estimate.value, estimate.stderr, interval=estimate.interval)


def _rows(columns: Sequence[Mapping[str, Quantity]]) -> Rows:
    """Every number that any run has: a cell per run, and of two runs their difference."""
    titles = dict.fromkeys(title for column in columns for title, one in column.items() if one.value is not None)
    rows = []
    for title in titles:
        numbers = [column.get(title, Quantity()) for column in columns]
        rows.append((title, *map(_text, numbers), *([difference_text(*numbers)] if len(numbers) == 2 else [])))
    return tuple(rows)


def _text(one: Quantity) -> str:
    if one.value is None:
        return "-"
    if abs(one.value) >= 1000:
        return f"{one.value:,.0f}"
    precise = one.stderr is None or one.stderr < PRECISE * abs(one.value)
    return measured(one.value) if precise else value_and_error(one.value, one.stderr)


def difference_text(first: Quantity, second: Quantity) -> str:
    """`+0.12 [-0.05, +0.29]`: second minus first; with a standard error, or nothing, where no interval can be had."""
    if first.value is None or second.value is None:
        return "-"
    change, ends = second.value - first.value, _interval(first, second)
    if ends is not None and math.isfinite(ends[1] - ends[0]):
        wide = ends[1] - ends[0]
        decimals = max(2, 1 - math.floor(math.log10(wide))) if wide > 0 else 2
        return f"{change:+z.{decimals}f} [{ends[0]:+z.{decimals}f}, {ends[1]:+z.{decimals}f}]"
    known = first.stderr is not None and second.stderr is not None
    text = _text(Quantity(change, math.hypot(first.stderr or 0, second.stderr or 0) if known else None))
    return text if text.startswith("-") else f"+{text}"


def _interval(first: Quantity, second: Quantity) -> tuple[float, float] | None:
    """The difference's 95% interval: from both runs' own, or Welch's from their samples; None where neither is known."""
    assert first.value is not None
    assert second.value is not None
    if first.interval and second.interval:
        interval = independent_difference(first.value, second.value, first.interval, second.interval)
        return interval.low, interval.high
    known = first.stderr is not None and second.stderr is not None
    if not (known and first.samples and second.samples):
        return None
    half = welch_half_width((first.stderr or 0, second.stderr or 0), (first.samples, second.samples))
    return second.value - first.value - half, second.value - first.value + half


def _differences(runs: Sequence[Compared]) -> Rows:
    """The fields of the configuration that are not the same everywhere, but for where results went."""
    flat = [_flattened(to_plain(run.results.config)) for run in runs]
    fields = dict.fromkeys(field for config in flat for field in config if not field.startswith("output."))
    values = {field: tuple(_field(config.get(field, "-")) for config in flat) for field in fields}
    return tuple((field, *texts) for field, texts in values.items() if len(set(texts)) > 1)


def _flattened(config: Mapping[str, object], path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= _flattened(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _field(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
