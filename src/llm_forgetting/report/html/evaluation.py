"""The page of an evaluation: accuracy on whole test splits, then every item."""

import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from llm_forgetting.forgetting.evaluation import TaskEvaluation
from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.forgetting.records import ItemRecord, Line
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
from llm_forgetting.report.html.items import MOST_ITEMS, likeliest, shortened
from llm_forgetting.report.html.reproduction import configuration, versions, what_ran
from llm_forgetting.report.set_up import model_name
from llm_forgetting.report.tables.evaluation import evaluation_table
from llm_forgetting.report.tables.run import Table, display_name, number, value_and_error
from llm_forgetting.report.tables.words import WHEN_RIGHT, capital, evaluated_name, named
from llm_forgetting.results import TITLES, EvaluationResults

RIGHT, WRONG = "right", "wrong"
# More tasks than this are answered by their range.
MOST_NAMED = 6


def evaluation_page(results: EvaluationResults, items: Sequence[Line]) -> Page:
    """The page; `items` are none where items.jsonl is gone."""
    model, adapter = results.model, results.adapter
    what = (Path(adapter).name or adapter) if adapter else f"{model_name(model)} without an adapter"
    answered = [item for item in items if isinstance(item, ItemRecord)]
    listing = _listing(answered) if answered else Prose("No items: items.jsonl is missing.", quiet=True)
    asked = [item for item in answered if item.tokens is None]
    letters, name = [Numbers(_letters(asked))] if asked else [], evaluated_name(results)
    method = _method(bool(asked), len(asked) < len(answered), [task.measure for task in results.tasks])
    return Page(
        title=f"{capital('test ' * results.is_test + name)} of {what}",
        kicker=f"llm-forgetting evaluate · {model_name(model)} · {model.parameters:,} parameters",
        answers=[("", _answers(results.tasks))],
        warnings=[*results.warnings, *_cut(results.limit)],
        sections=[
            Section(
                "accuracy",
                capital(name),
                [accuracy_figure(results, answered), Numbers(evaluation_table(results)), *letters],
            ),
            Section("items", "Item by item", [listing]),
            Section(
                "method",
                "Method",
                [Points(method)],
            ),
            Section("again", "How to reproduce", _again(results)),
        ],
        footer=[f"llm-forgetting {results.versions['llm-forgetting']}. {results.source}"],
    )


def _answers(tasks: Sequence[TaskEvaluation]) -> list[str]:
    """A sentence for each task; of many tasks the worst and the best."""
    if len(tasks) <= MOST_NAMED:
        return [_answer(task) for task in tasks]
    worst, *_, best = sorted(tasks, key=lambda task: task.headline.value)
    ends = [f"{_accuracy(task)} on {display_name(task.name)}" for task in (worst, best)]
    name = capital(named(all(task.is_exact_match for task in tasks)))
    return [f"{name} on {len(tasks)} tasks: from {ends[0]} to {ends[1]} (± one standard error over items)."]


def _answer(task: TaskEvaluation) -> str:
    name = named(task.is_exact_match)
    n, of = task.headline.n, "held-out items" if task.held_out else "items"
    no_test = f" All {n} items were trained on, so this is no test." if task.trained and not task.held_out else ""
    if len(task.subjects) > 1:
        return (
            f"{capital(name)} on {display_name(task.name)} is {_accuracy(task)} (± one standard error; {n} {of} of "
            f"{len(task.subjects)} subjects).{no_test}"
        )
    (subject,) = task.subjects
    accuracy, loss = subject.headline, f"loss {value_and_error(subject.loss.value, subject.loss.stderr)} nats"
    interval = accuracy.interval
    between = f"95% interval {number(interval.low)} to {number(interval.high)}" if interval else ""
    said = "; ".join(filter(None, [between, "" if task.held_out else loss]))
    return (
        f"On {display_name(task.name)}, {accuracy.correct} of {n} {of} are answered right: {name} "
        f"{number(accuracy.value)}{f' ({said})' if said else ''}.{no_test}"
    )


def _accuracy(task: TaskEvaluation) -> str:
    return value_and_error(task.headline.value, task.headline.stderr)


def _cut(limit: int | None) -> list[str]:
    if limit is None:
        return []
    return [f"only the first {limit} rows of each subject were scored (--limit), not whole test splits"]


def accuracy_figure(results: EvaluationResults, items: Sequence[ItemRecord]) -> Figures:
    """A row per subject: accuracy with its interval, and where guessing would be if all items have as many options."""
    subjects = [subject for task in results.tasks for subject in task.subjects]
    accuracies = [subject.headline for subject in subjects]
    values = np.array([accuracy.value for accuracy in accuracies])
    ends = np.array([_ends(accuracy.interval, accuracy.value) for accuracy in accuracies])
    names, name = [display_name(subject.name) for subject in subjects], evaluated_name(results)
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(values),
            "y": list(range(len(subjects))),
            "marker": {"color": "@line0", "size": 9},
            "error_x": error_bars(values, ends[:, 0], ends[:, 1], "@line0"),
            "text": [f"{plain(each)}: {value:.3f}" for each, value in zip(names, values, strict=True)],
            "hoverinfo": "text",
        }
    ]
    options = {len(item.letters) for item in items if item.tokens is None}
    guessing = [1 / options.pop()] if len(options) == 1 else []
    layout = {
        "xaxis": {"title": {"text": name}, "range": [-0.02, 1.02]},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [plain(each) for each in names],
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        },
        "shapes": [upright(x, {"color": "@ink", "width": 1.2, "dash": "dot"}) for x in guessing],
        "annotations": [above(x, "guessing") for x in guessing],
        "showlegend": False,
        "margin": {"l": 60, "r": 12, "t": 28, "b": 40},
    }
    texts = "; ".join(f"{each} {number(value)}" for each, value in zip(names, values, strict=True))
    apart = ["held-out items, where some were trained on"] if any(task.trained for task in results.tasks) else []
    facts = ("bars: 95% intervals over items (Wilson)", *(["dotted: guessing"] if guessing else []), *apart)
    height = min(0.25 + 0.05 * len(names), 3.0)
    title = capital(name)
    return Figures([Plot(f"{title} by subject", f"{title}: {texts}.", data, layout, facts, aspect=height)], 1)


def _ends(interval: Interval | None, value: float) -> tuple[float, float]:
    return (interval.low, interval.high) if interval else (value, value)


def _letters(items: Sequence[ItemRecord]) -> Table:
    """How often every letter is right, and how often it is answered."""
    right, answered = Counter(item.answer for item in items), Counter(item.predicted for item in items)
    rows = tuple((letter, str(right[letter]), str(answered[letter])) for letter in sorted({*right, *answered}))
    return Table(
        "Letters",
        ("letter", "right", "answered"),
        rows,
        "A letter answered far more often than it is right is preferred.",
    )


def _listing(items: Sequence[ItemRecord]) -> Listing:
    """Every item, those answered wrong first."""
    header = ("item", "subject", "right", "answered", "outcome", "loss")
    rows = [
        (
            item.id,
            display_name(item.subject),
            shortened(item.answer),
            shortened(item.predicted),
            RIGHT if item.correct else WRONG,
            number(item.loss),
        )
        for item in sorted(items, key=lambda item: item.correct)
    ]
    note = f"right: what should be answered; answered: {likeliest(items)}; loss in nats."
    if len(rows) > MOST_ITEMS:
        note += f" {len(rows) - MOST_ITEMS} more items, of those that were answered right last, are in items.jsonl."
    start = WRONG if any(row[4] == WRONG for row in rows) else ""
    return Listing("Item by item", header, rows[:MOST_ITEMS], (5,), ((1, ""), (4, start)), note)


def _method(questions: bool, completions: bool, measures: Collection[str | None]) -> tuple[str, ...]:
    asked = "The answer is the letter whose log-probability is highest after the prompt; accuracy is the share of right ones"
    matched = [WHEN_RIGHT[kind] for kind, title in TITLES.items() if title in measures]
    old = "Exact match is the share of completions of which every token is the most likely one."
    said = [*([f"{asked}."] if questions else []), *(matched or [old] if completions or not questions else [])]
    return (*_METHOD[:1], f"{' '.join(said)} The {_METHOD[1]}", *_METHOD[2:])


_METHOD = (
    "Every row of a subject's test split is scored, in file order, none taken out; sources without splits are scored whole. "
    "Rows that a run of this program trained the adapter on are recognised by the hash of their content and counted apart.",
    "standard error is sd / sqrt(n), groups weighted by size, as in lm-evaluation-harness 0.4.13.",
    "Loss is minus the log-probability of the right token among all tokens, the mean over a completion's tokens.",
    "Intervals are over items. They say nothing of other prompts or seeds.",
)


def _again(results: EvaluationResults) -> list[Block]:
    data, limit = results.config.data, results.limit
    words = ["llm-forgetting", "evaluate", *([results.adapter] if results.adapter else [])]
    words += [word for task in data.tasks for word in ("--task", task)]
    words += ["--few_shot", str(data.few_shot), *([] if limit is None else ["--limit", str(limit)])]
    return [
        Prose("And every field of the configuration below that is not its default, by its dotted path."),
        Code(shlex.join(words)),
        what_ran(results, ("data", results.source)),
        versions(results),
        configuration(results),
    ]
