"""The tables of a repair, as rows of text."""

from collections.abc import Mapping
from typing import Any

from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS
from llm_forgetting.report.tables.run import SPLIT_WORDS, Table, number, spoken, value_and_error


def repair_tables(found: Mapping[str, Any]) -> list[Table]:
    """Accuracy and loss of both ends, their average and the repaired adapter, on items that had no part in choosing it."""
    names = (found["from"], found["to"], "average", "repaired")
    head = ("task", "items", "t = 0", "t = 1", "t = 0.5", f"t = {found['t']:g}")
    accuracies, losses = [], []
    for record in found["scores"]:
        start = (f"{spoken(record['task'])}, {SPLIT_WORDS[record['split']]}", str(len(record["items"])))
        accuracies.append((*start, *(number(record["accuracy"][name]["value"]) for name in names), _gain(record)))
        change = record["loss_change"]
        losses.append(
            (
                *start,
                *(number(record["loss"][name]["value"]) for name in names),
                value_and_error(change["value"], change["stderr"]),
            )
        )
    chosen = f"t = {found['t']:g}"
    note = (
        f"t = 0: {spoken(names[0])}, t = 1: {spoken(names[1])}. {chosen} was chosen by {found['chosen_by']}; what chose it "
        f"is not scored. The adapter there: rank {found['rank']}, {_exactness(found)}. Gained back: accuracy there minus at "
        f"t = 1; brackets: 95% interval, counts below {MINIMUM_ITEMS} items."
    )
    return [
        Table("Repair: accuracy", (*head, "gained back"), tuple(accuracies)),
        Table("Repair: loss (nats)", (*head, "change"), tuple(losses), note),
    ]


def _exactness(found: Mapping[str, Any]) -> str:
    error = float(found["truncation_error"])
    return f"cut by {100 * error:.2g}% of its norm" if error else "exact"


def _gain(record: Mapping[str, Any]) -> str:
    change = record["accuracy_change"]
    before, after = (change["both"] + change[key] for key in ("only_before", "only_after"))
    if change["interval"] is None:
        return f"{before} to {after} of {change['n']}"
    low, high = (number(change["interval"][key]) for key in ("low", "high"))
    return f"{number(change['value'])} [{low}, {high}]"
