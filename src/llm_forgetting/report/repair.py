"""The table of a repair, as rows of text."""

from collections.abc import Mapping
from typing import Any

from llm_forgetting.report.tables import SPLIT_WORDS, Table, number, spoken
from llm_forgetting.statistics import MINIMUM_ITEMS


def repair_table(found: Mapping[str, Any]) -> Table:
    """Accuracy and loss of both ends, their average and the repaired adapter, on items that had no part in choosing it."""
    names = (found["from"], found["to"], "average", "repaired")
    rows = []
    for record in found["scores"]:
        cells = [
            f"{number(record['accuracy'][name]['value'])} / {number(record['loss'][name]['value'])}" for name in names
        ]
        rows.append(
            (
                f"{spoken(record['task'])}, {SPLIT_WORDS[record['split']]}",
                str(len(record["items"])),
                *cells,
                _gain(record),
            )
        )
    kind = f"rank {found['rank']}, {_exactness(found)}"
    header = ("task", "items", *map(spoken, names[:2]), "average", f"t = {found['t']:g}", "gained back")
    note = (
        f"t = {found['t']:g} of the way, chosen by {found['chosen_by']}; {kind}. Scored on items that had no part in choosing it; "
        f"gained back: accuracy at t minus accuracy {spoken(found['to'])}, 95% interval, counts below {MINIMUM_ITEMS} items."
    )
    return Table("Repair: accuracy / loss in nats", header, tuple(rows), note)


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
