"""The pages of pairs of checkpoints: the same items scored at A and B, and what the landscape at A forecast of B."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from llm_forgetting.forgetting.intervals import PairedProportionChange
from llm_forgetting.forgetting.mean_intervals import PairedMeanChange
from llm_forgetting.forgetting.paired_evaluation import SubjectChange, TaskChange
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.report.html.axes import above, error_bars, upright
from llm_forgetting.report.html.blocks import (
    Block,
    Code,
    Figures,
    Listing,
    Numbers,
    Page,
    Plot,
    Points,
    Prose,
    Section,
    Spec,
    plain,
    rounded,
)
from llm_forgetting.report.html.forecasts import forecast_plot
from llm_forgetting.report.html.items import MOST_ITEMS
from llm_forgetting.report.html.reproduction import configuration, cost, versions, what_ran
from llm_forgetting.report.set_up import model_name
from llm_forgetting.report.tables.evaluation import evaluation_table
from llm_forgetting.report.tables.pairs import change_table, change_text, pair_forecast_table, second_order
from llm_forgetting.report.tables.run import display_name, measured, number, value_and_error
from llm_forgetting.report.tables.transitions import pair_transitions_table
from llm_forgetting.report.tables.words import evaluated_name
from llm_forgetting.report.views.forecasts import ComparedForecast, forecast_sentence
from llm_forgetting.results import EvaluationResults, ForecastResults

BASE = "base"


def pair_evaluation_page(results: EvaluationResults, items: Sequence[ItemRecord]) -> Page:
    """The page of `evaluate A B`; `items` are none where items.jsonl is gone."""
    model, changes = results.model, results.changes or ()
    named = [each.adapter or BASE for each in results.each]
    warnings = [f"{letter}: {line}" for letter, each in zip("AB", results.each, strict=True) for line in each.warnings]
    name = evaluated_name(results)
    if results.limit is not None:
        warnings.append(f"only the first {results.limit} rows of each subject were scored (--limit)")
    return Page(
        title=f"From {_last(named[0])} (A) to {_last(named[1])} (B), on the same items",
        kicker=f"llm-forgetting evaluate A B · {model_name(model)} · {model.parameters:,} parameters",
        answers=[("", [_change_sentence(change, name) for change in changes])],
        warnings=warnings,
        sections=[
            Section(
                "change",
                "What changed",
                [_change_figure(changes, name), Numbers(change_table(results)), *_turned(results)],
            ),
            Section(
                "accuracy",
                "Each by itself",
                [
                    block
                    for letter, what, each in zip("AB", named, results.each, strict=True)
                    for block in (Prose(f"{letter}: {what}"), Numbers(evaluation_table(each)))
                ],
            ),
            Section("items", "Items whose answer changed", [_changed_items(items)]),
            Section("method", "Method", [Points(_EVALUATION)]),
            Section("again", "How to reproduce", _again("evaluate", results, named)),
        ],
        footer=[f"llm-forgetting {results.versions['llm-forgetting']}. {results.source}"],
    )


def _last(path: str) -> str:
    return Path(path).name or path


def _turned(results: EvaluationResults) -> list[Block]:
    table = pair_transitions_table(results)
    return [Numbers(table)] if table.rows else []


def _change_sentence(change: TaskChange, name: str) -> str:
    accuracy, n = change.accuracy, change.accuracy.n
    before, after = (accuracy.both + accuracy.only_before) / n, (accuracy.both + accuracy.only_after) / n
    return (
        f"On {display_name(change.name)} {name} goes from {number(before)} to {number(after)} on the same {n} items "
        f"({change_text(accuracy)}; {accuracy.only_before} only A answers right, {accuracy.only_after} only B), the loss by "
        f"{change_text(change.loss)} nats."
    )


def _change_figure(changes: Sequence[TaskChange], name: str) -> Figures:
    """Two plots, a row per subject: the change of accuracy (`name`), and that of the loss."""
    subjects = [subject for change in changes for subject in change.subjects]
    return Figures(
        [
            _plot(f"Change of {name}", "B minus A", subjects, [subject.accuracy for subject in subjects]),
            _plot("Change of the loss", "B minus A (nats)", subjects, [subject.loss for subject in subjects]),
        ],
        2,
    )


def _plot(
    title: str,
    axis: str,
    subjects: Sequence[SubjectChange],
    changes: Sequence[PairedProportionChange | PairedMeanChange],
) -> Plot:
    values = np.array([change.value for change in changes])
    ends = np.array([_ends(change) for change in changes])
    names = [display_name(subject.name) for subject in subjects]
    texts = [f"{name}: {change_text(change)}" for name, change in zip(names, changes, strict=True)]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(values),
            "y": list(range(len(names))),
            "marker": {"color": "@line0", "size": 9},
            "error_x": error_bars(values, ends[:, 0], ends[:, 1], "@line0"),
            "text": [plain(text) for text in texts],
            "hoverinfo": "text",
        }
    ]
    layout = {
        "xaxis": {"title": {"text": axis}, "zeroline": False},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [plain(name) for name in names],
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        },
        "shapes": [upright(0.0, {"color": "@ink", "width": 1.2, "dash": "dot"})],
        "annotations": [above(0.0, "no change")],
        "showlegend": False,
        "margin": {"l": 60, "r": 12, "t": 28, "b": 40},
    }
    facts = ("bars: paired 95% intervals over items; below 40 items one standard error",)
    return Plot(title, f"{title}: {'; '.join(texts)}.", data, layout, facts, aspect=min(0.35 + 0.06 * len(names), 3.0))


def _ends(change: PairedProportionChange | PairedMeanChange) -> tuple[float, float]:
    if change.interval is not None:
        return change.interval.low, change.interval.high
    stderr = change.stderr or 0.0
    return change.value - stderr, change.value + stderr


def _changed_items(items: Sequence[ItemRecord]) -> Block:
    """Items that one of both answers right, those that only A does first."""
    if not items:
        return Prose("No items: items.jsonl is missing.", quiet=True)
    half = len(items) // 2
    pairs = [(x, y) for x, y in zip(items[:half], items[half:], strict=True) if x.correct != y.correct]
    rows = [
        (
            x.id,
            display_name(x.subject),
            x.answer,
            x.predicted,
            y.predicted,
            f"only {'A' if x.correct else 'B'} right",
            number(x.loss),
            number(y.loss),
        )
        for x, y in sorted(pairs, key=lambda pair: pair[1].correct)
    ]
    header = ("item", "subject", "right", "A answers", "B answers", "outcome", "loss at A", "loss at B")
    more = f" {len(rows) - MOST_ITEMS} more are in items.jsonl." if len(rows) > MOST_ITEMS else ""
    note = f"{len(rows)} of {half} items are answered right by one of both alone; losses in nats.{more}"
    return Listing("Item by item", header, rows[:MOST_ITEMS], (6, 7), ((1, ""), (5, "")), note)


def forecast_page(results: ForecastResults) -> Page:
    """The page of `forecast A B`."""
    model, (first, second) = results.model, (results.checkpoints[name] for name in "AB")
    compared = [
        ComparedForecast(
            display_name(task),
            results.config.landscape.items,
            {"first_order": pair.forecast.first_order, "second_order": pair.forecast.second_order},
            pair.change.value,
            pair.change.stderr,
            pair.change.n,
        )
        for task, pair in results.tasks.items()
    ]
    failed = forecast_sentence(compared)
    return Page(
        title=f"Could the landscape at {_last(first)} (A) have told the losses at {_last(second)} (B)?",
        kicker=f"llm-forgetting forecast A B · {model_name(model)} · {model.parameters:,} parameters",
        answers=[("", [*_forecast_sentences(results), *([failed] if failed else [])])],
        warnings=results.warnings,
        sections=[
            Section(
                "forecast",
                "Forecast and observation",
                [Figures([forecast_plot(compared)], 2), Numbers(pair_forecast_table(results))],
            ),
            Section("method", "Method", [Points(_FORECAST)]),
            Section(
                "again",
                "How to reproduce",
                [*_again("forecast", results, [first, second]), cost(results.timings)],
            ),
        ],
        footer=[f"llm-forgetting {results.versions['llm-forgetting']}."],
    )


def _forecast_sentences(results: ForecastResults) -> Iterable[str]:
    for task, pair in results.tasks.items():
        yield (
            f"The loss of {display_name(task)} ({pair.change.n} items) changes by "
            f"{value_and_error(pair.change.value, pair.change.stderr)} nats from A to B; slope at A forecasts "
            f"{measured(pair.forecast.first_order)}, slope and curvature {second_order(pair)}."
        )


def _again(command: str, results: EvaluationResults | ForecastResults, pair: Sequence[str]) -> list[Block]:
    words = ["llm-forgetting", command, *pair]
    words += [word for task in results.config.data.tasks for word in ("--task", task)]
    limit = results.limit if isinstance(results, EvaluationResults) else None
    words += [] if limit is None else ["--limit", str(limit)]
    return [
        Prose("And every field of the configuration below that is not its default, by its dotted path."),
        Code(shlex.join(words)),
        what_ran(results),
        versions(results),
        configuration(results),
    ]


_EVALUATION = (
    "A and B are scored on the same rows with the same prompts: every row of a subject's test split, in file order.",
    "Differences are paired, B minus A on each item. Intervals: Bonett and Price for the shares of right answers, "
    "studentised bootstrap for the loss; of several subjects Student's t over the subjects. p: exact McNemar.",
    "Loss is minus the log-probability of the right token among all tokens, the mean over a completion's tokens.",
    "Intervals are over items. They say nothing of other prompts, seeds or training runs.",
)
_FORECAST = (
    "The loss is minus the log-probability of the right token among all tokens, the mean over the same items at A and B (of "
    "completions over all their tokens).",
    "D = delta W_B - delta W_A is the difference of the merged weights, so nothing depends on how LoRA writes its updates, and "
    "both may have different ranks. Slope g.D and curvature D.HD are exact derivatives at A along D.",
    "Observed: the change of the same items' loss at B, with its paired standard error over items.",
    "KL: of the answer distributions (all tokens) at A from those at B, mean over items ± standard error.",
)
