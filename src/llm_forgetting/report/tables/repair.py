"""The tables of a repair, as rows of text."""

from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS
from llm_forgetting.report.tables.run import (
    SPLIT_WORDS,
    Table,
    counts,
    display_name,
    number,
    value_and_error,
    with_interval,
)
from llm_forgetting.report.tables.words import ACCURACY, capital
from llm_forgetting.results import RepairRecord


def repair_sentence(repair: RepairRecord, name: str = ACCURACY) -> str:
    """What the repaired adapter kept and what it cost: accuracy (`name`) at the last checkpoint and there."""
    parts = []
    for score in repair.scores:
        before, after = score.accuracy[repair.to], score.accuracy["repaired"]
        place = f"{display_name(score.task)} ({len(score.items)} {SPLIT_WORDS[score.split]} items)"
        parts.append(f"{place} {number(before.value)} -> {number(after.value)}")
    return f"{capital(name)} from {display_name(repair.to)} to the repaired adapter: {', '.join(parts)}."


def repair_tables(repair: RepairRecord, name: str = ACCURACY) -> list[Table]:
    """Accuracy (`name`) and loss of both ends, their average and the repaired adapter, on items that did not choose it."""
    names, chosen = (repair.start, repair.to, "average", "repaired"), f"t = {repair.t:g}"
    header = ("task", "items", "t = 0", "t = 1", "t = 0.5", chosen)
    accuracies, losses = [], []
    for score in repair.scores:
        place = (f"{display_name(score.task)}, {SPLIT_WORDS[score.split]}", str(len(score.items)))
        gain, change = score.accuracy_change, score.loss_change
        gained = counts(gain) if gain.interval is None else with_interval(gain.value, gain.interval)
        accuracies.append((*place, *(number(score.accuracy[each].value) for each in names), gained))
        risen = value_and_error(change.value, change.stderr)
        losses.append((*place, *(number(score.loss[each].value) for each in names), risen))
    exactness = f"cut by {100 * repair.truncation_error:.2g}% of its norm" if repair.truncation_error else "exact"
    what = f"adapter of rank {repair.rank}" if repair.rank else "whole model"
    note = (
        f"t = 0: {display_name(names[0])}, t = 1: {display_name(names[1])}. {chosen} was chosen by {repair.chosen_by}; what "
        f"chose it is not scored. The {what} there: {exactness}. Gained back: {name} there minus at "
        f"t = 1; brackets: 95% interval, counts below {MINIMUM_ITEMS} items."
    )
    return [
        Table(f"Repair: {name}", (*header, "gained back"), tuple(accuracies)),
        Table("Repair: loss (nats)", (*header, "change"), tuple(losses), note),
    ]
