"""Table of what kind of forgetting it was: lost knowledge, or a changed habit of answering."""

from llm_forgetting.forgetting.records import LetterCounts, Recovery, SpuriousForgettingProbes, TextDrift
from llm_forgetting.report.tables.run import (
    Table,
    chance_text,
    display_name,
    number,
    sentence,
    value_and_error,
)
from llm_forgetting.report.tables.words import measure_name
from llm_forgetting.results import Results

_PROBES = (
    "prior-corrected: the average preference for each letter is removed; options rotated: every option in every "
    "place, mean accuracy; summed over rotations: no preference of place is left; one answer throughout: the same option "
    "in every rotation."
)


def spurious_table(results: Results) -> Table:
    """Every earlier task's trained items after itself and after the last task, under each probe."""
    rows, notes = [], []
    for task, spurious in results.spurious.items():
        if spurious.probes:
            (_, before), (last, after) = spurious.probes.items()
            rows += [(f"{display_name(task)}: {label}", *cells) for label, *cells in _rows(before, after)]
            notes.append(_describe_letters(task, after.letters, last))
        elif spurious.recovery is not None:
            tuned, left = (spurious.recovery.accuracy[key].value for key in ("tuned", "last"))
            label = f"{display_name(task)}: as asked, the items that were not relearnt"
            rows.append((label, number(tuned), number(left), f"{left - tuned:+.2f}"))
        if spurious.recovery is not None:
            notes.append(_describe_relearning(task, spurious.recovery))
    note = _PROBES if any(spurious.probes for spurious in results.spurious.values()) else ""
    header = ("trained items", "after itself", "after the last", "change")
    notes = [
        *filter(None, [note]),
        *filter(None, [sentence(chance_text(results))]),
        *notes,
        *_describe_text(results.text),
    ]
    return Table(f"What kind of forgetting ({measure_name(results)})", header, tuple(rows), " ".join(notes))


def _rows(before: SpuriousForgettingProbes, after: SpuriousForgettingProbes) -> list[tuple[str, str, str, str]]:
    pairs = [
        ("as asked", before.accuracy.value, after.accuracy.value),
        ("prior-corrected", before.prior_corrected.value, after.prior_corrected.value),
    ]
    if before.rotations is not None and after.rotations is not None:
        earlier, later = before.rotations, after.rotations
        pairs += [
            ("options rotated", earlier.mean, later.mean),
            ("summed over rotations", earlier.summed.value, later.summed.value),
            ("one answer throughout", earlier.consistent.value, later.consistent.value),
        ]
    return [(label, number(x), number(y), f"{y - x:+.2f}") for label, x, y in pairs]


def _describe_letters(task: str, letters: LetterCounts, checkpoint: str) -> str:
    answered, right = (
        ", ".join(f"{letter} {count}" for letter, count in counted.items())
        for counted in (letters.answered, letters.right)
    )
    return f"{display_name(task)}, letters answered {display_name(checkpoint)}: {answered} (right: {right})."


def _describe_relearning(task: str, recovery: Recovery) -> str:
    accuracy = recovery.accuracy
    tuned, last, recovered = (accuracy[key].correct for key in ("tuned", "last", "recovered"))
    others = accuracy["last"].n
    share = recovery.share
    if share is None:
        back = "Nothing had been lost"
    elif share <= 0:
        back = "Nothing was recovered"
    else:
        back = f"{100 * share:.0f}% of what was lost was recovered"
    control = f" From the base model the same items teach {accuracy['fresh'].correct}." if "fresh" in accuracy else ""
    return (
        f"Relearning {recovery.items} {display_name(task)} items: the other {others} went from {last} to {recovered} correct "
        f"({tuned} after its own training). {back}.{control}"
    )


def _describe_text(text: TextDrift) -> list[str]:
    if not text.change:
        return []
    steps = ", ".join(
        f"{value_and_error(change.value, change.stderr)} {display_name(name)}" for name, change in text.change.items()
    )
    base = number(text.loss["initial"].value)
    return [f"Text that belongs to no task ({text.passages} passages, {base} nats a token): loss changed by {steps}."]
