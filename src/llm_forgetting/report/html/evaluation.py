"""The page of `llm-forgetting evaluate`: accuracy on whole test splits, then every item."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from llm_forgetting.report.html.reproduction import configuration, model_name, versions, what_ran
from llm_forgetting.report.html.scores import MOST_ITEMS
from llm_forgetting.report.tables.evaluation import evaluation_table
from llm_forgetting.report.tables.run import Table, number, spoken, value_and_error

Content = Mapping[str, Any]
RIGHT, WRONG = "right", "wrong"
# More tasks than this are answered by their range.
MOST_SAID = 6


def evaluation_page(content: Content, records: Sequence[Content]) -> Page:
    """`records` are the lines of items.jsonl, none where they are gone."""
    model, adapter = content["model"], content["adapter"]
    what = f"{Path(adapter).name or adapter}" if adapter else f"{model_name(model)} without an adapter"
    listing = _listing(records)
    items: Block = listing or Prose("No items: items.jsonl is missing.", quiet=True)
    letters = [Numbers(_letters(records))] if records else []
    return Page(
        title=f"Test accuracy of {what}",
        kicker=f"llm-forgetting evaluate · {model_name(model)} · {model['parameters']:,} parameters",
        answers=[("", _answers(content))],
        warnings=_cut(content),
        sections=[
            Section(
                "accuracy",
                "Accuracy",
                [accuracy_figure(content, records), Numbers(evaluation_table(content)), *letters],
            ),
            Section("items", "Item by item", [items]),
            Section("method", "Method", [Points(_METHOD)]),
            Section("again", "How to reproduce", _again(content)),
        ],
        footer=[f"llm-forgetting {content['versions']['llm-forgetting']}. {content['source']}"],
    )


def _answers(content: Content) -> list[str]:
    """A sentence for each task; of many tasks the worst and the best."""
    tasks = content["tasks"]
    if len(tasks) <= MOST_SAID:
        return [_answer(task) for task in tasks]
    worst, *_, best = sorted(tasks, key=lambda task: float(task["accuracy"]["value"]))
    ends = [f"{_accuracy(task)} on {spoken(task['name'])}" for task in (worst, best)]
    return [f"Accuracy on {len(tasks)} tasks: from {ends[0]} to {ends[1]} (± one standard error over items)."]


def _answer(task: Content) -> str:
    n = task["accuracy"]["n"]
    if len(task["subjects"]) > 1:
        return (
            f"Accuracy on {spoken(task['name'])} is {_accuracy(task)} (± one standard error; {n} items of "
            f"{len(task['subjects'])} subjects)."
        )
    (found,) = task["subjects"]
    interval, loss = found["accuracy"]["interval"], found["loss"]
    known = f"95% interval {number(interval['low'])} to {number(interval['high'])}; " if interval else ""
    return (
        f"On {spoken(task['name'])}, {found['accuracy']['correct']} of {n} items are answered right: accuracy "
        f"{number(found['accuracy']['value'])} ({known}loss {value_and_error(loss['value'], loss['stderr'])} nats)."
    )


def _accuracy(task: Content) -> str:
    return value_and_error(task["accuracy"]["value"], task["accuracy"]["stderr"])


def _cut(content: Content) -> list[str]:
    limit = content["limit"]
    return (
        []
        if limit is None
        else [f"only the first {limit} rows of each subject were scored (--limit), not whole test splits"]
    )


def accuracy_figure(content: Content, records: Sequence[Content]) -> Figures:
    """A row per subject: accuracy with its interval, and where guessing would be if all items have as many options."""
    subjects = [found for task in content["tasks"] for found in task["subjects"]]
    values = np.array([float(found["accuracy"]["value"]) for found in subjects])
    ends = np.array([_ends(found["accuracy"]) for found in subjects])
    names = [spoken(found["name"]) for found in subjects]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(values),
            "y": list(range(len(subjects))),
            "marker": {"color": "@line0", "size": 9},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": rounded(ends[:, 1] - values),
                "arrayminus": rounded(values - ends[:, 0]),
                "color": "@line0",
                "thickness": 1.5,
                "width": 3,
            },
            "text": [f"{plain(name)}: {value:.3f}" for name, value in zip(names, values, strict=True)],
            "hoverinfo": "text",
        }
    ]
    options = {len(record["letter_logits"]) for record in records}
    guessing = [1 / options.pop()] if len(options) == 1 else []
    layout = {
        "xaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.02]},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [plain(name) for name in names],
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        },
        "shapes": [_upright(x) for x in guessing],
        "annotations": [_name(x) for x in guessing],
        "showlegend": False,
        "margin": {"l": 60, "r": 12, "t": 28, "b": 40},
    }
    told = "; ".join(f"{name} {number(value)}" for name, value in zip(names, values, strict=True))
    facts = ("bars: 95% intervals over items (Wilson)", *(["dotted: guessing"] if guessing else []))
    height = min(0.25 + 0.05 * len(names), 3.0)
    return Figures([Plot("Accuracy by subject", f"Accuracy: {told}.", data, layout, facts, aspect=height)], 1)


def _ends(found: Content) -> tuple[float, float]:
    interval, value = found["interval"], float(found["value"])
    return (float(interval["low"]), float(interval["high"])) if interval else (value, value)


def _upright(x: float) -> Spec:
    line = {"color": "@ink", "width": 1.2, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _name(x: float) -> Spec:
    place = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "center", "showarrow": False}
    return {**place, "text": "guessing"}


def _letters(records: Sequence[Content]) -> Table:
    """How often every letter is right, and how often it is answered."""
    right, answered = (Counter(record[key] for record in records) for key in ("answer", "predicted"))
    rows = tuple((letter, str(right[letter]), str(answered[letter])) for letter in sorted({*right, *answered}))
    return Table(
        "Letters",
        ("letter", "right", "answered"),
        rows,
        "A letter answered far more often than it is right is preferred.",
    )


def _listing(records: Sequence[Content]) -> Listing | None:
    """Every item, those answered wrong first."""
    if not records:
        return None
    header = ("item", "subject", "right", "answered", "outcome", "loss")
    rows = [
        (
            record["id"],
            spoken(record["subject"]),
            record["answer"],
            record["predicted"],
            RIGHT if record["correct"] else WRONG,
            number(record["loss"]),
        )
        for record in sorted(records, key=lambda record: bool(record["correct"]))
    ]
    note = "right: the letter of the right option; answered: the likeliest of the letters; loss in nats."
    if len(rows) > MOST_ITEMS:
        note += f" {len(rows) - MOST_ITEMS} more items, of those that were answered right last, are in items.jsonl."
    start = WRONG if any(row[4] == WRONG for row in rows) else ""
    return Listing("Item by item", header, rows[:MOST_ITEMS], (5,), ((1, ""), (4, start)), note)


_METHOD = (
    "Every row of a subject's test split is scored, in file order, none taken out; sources without splits are scored whole.",
    "The answer is the letter whose log-probability is highest after the prompt; accuracy is the share of right ones, its "
    "standard error sd / sqrt(n), groups weighted by size, as in lm-evaluation-harness 0.4.13.",
    "Loss is minus the log-probability of the right letter among all tokens.",
    "Intervals are over items. They say nothing of other prompts or seeds.",
)


def _again(content: Content) -> list[Block]:
    data, limit = content["config"]["data"], content["limit"]
    words = ["llm-forgetting", "evaluate", *([content["adapter"]] if content["adapter"] else [])]
    words += [word for task in data["tasks"] for word in ("--task", task)]
    words += ["--few_shot", str(data["few_shot"]), *([] if limit is None else ["--limit", str(limit)])]
    return [
        Prose("And every field of the configuration below that is not its default, by its dotted path."),
        Code(shlex.join(words)),
        what_ran(content, ("data", content["source"])),
        versions(content),
        configuration(content),
    ]
