"""Table of what kind of forgetting it was: lost knowledge, or a changed habit of answering."""

from collections.abc import Mapping
from typing import Any

from llm_forgetting.report.tables.run import Table, number, spoken, value_and_error

Found = Mapping[str, Any]


def spurious_table(results: Found) -> Table:
    """Every earlier task's trained items after itself and after the last task, under each look."""
    rows, notes = [], []
    for task, found in results["spurious"].items():
        (_, before), (last, after) = [entry for entry in found.items() if entry[0] != "recovery"]
        rows += [(f"{spoken(task)}: {label}", *cells) for label, *cells in _rows(before, after)]
        notes.append(_letters(task, after, last))
        if found["recovery"] is not None:
            notes.append(_recovery(task, found["recovery"]))
    note = (
        "prior-corrected: what the model prefers whatever the question is taken out; options rotated: every option in every "
        "place, mean accuracy; summed over rotations: no preference of place is left; one answer throughout: the same option "
        "in every rotation."
    )
    header = ("trained items", "after itself", "after the last", "change")
    return Table("What kind of forgetting (accuracy)", header, tuple(rows), " ".join([note, *notes, *_text(results)]))


def _rows(before: Found, after: Found) -> list[tuple[str, str, str, str]]:
    pairs = [("as asked", before["accuracy"]["value"], after["accuracy"]["value"])]
    pairs.append(("prior-corrected", before["prior_corrected"]["value"], after["prior_corrected"]["value"]))
    turned = before["rotations"], after["rotations"]
    if all(turned):
        pairs.append(("options rotated", *(entry["mean"] for entry in turned)))
        pairs.append(("summed over rotations", *(entry["summed"]["value"] for entry in turned)))
        pairs.append(("one answer throughout", *(entry["consistent"]["value"] for entry in turned)))
    return [(label, number(x), number(y), f"{float(y) - float(x):+.2f}") for label, x, y in pairs]


def _letters(task: str, after: Found, checkpoint: str) -> str:
    letters = after["letters"]
    said, right = (
        ", ".join(f"{letter} {count}" for letter, count in letters[key].items()) for key in ("answered", "right")
    )
    return f"{spoken(task)}, letters answered {spoken(checkpoint)}: {said} (right: {right})."


def _recovery(task: str, found: Found) -> str:
    accuracy = found["accuracy"]
    n = accuracy["last"]["n"]
    tuned, last, recovered = (accuracy[key]["correct"] for key in ("tuned", "last", "recovered"))
    share = "" if found["share"] is None else f", {100 * float(found['share']):.0f}% of what was lost"
    control = f"; from the base model they teach {accuracy['fresh']['correct']}" if "fresh" in accuracy else ""
    return (
        f"{found['items']} {spoken(task)} items learnt again bring the other {n} from {last} right to {recovered} (of {tuned} "
        f"before{share}){control}."
    )


def _text(results: Found) -> list[str]:
    found = results["text"]
    if not found["change"]:
        return []
    steps = ", ".join(
        f"{value_and_error(change['value'], change['stderr'])} {spoken(name)}"
        for name, change in found["change"].items()
    )
    base = number(found["loss"]["initial"]["value"])
    return [
        f"Text that belongs to no task ({found['passages']} passages, {base} nats a token): loss changed by {steps}."
    ]
