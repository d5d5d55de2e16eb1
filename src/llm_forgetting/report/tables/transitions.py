"""Table of the items that turned from right to wrong and back, less what guessing alone turns over."""

from collections.abc import Iterable

from llm_forgetting.forgetting.transitions import Transition, Transitions
from llm_forgetting.report.tables.run import SPLIT_WORDS, Table, display_name, number, with_interval
from llm_forgetting.report.tables.words import ACCURACY, evaluated_name, measure_name
from llm_forgetting.results import EvaluationResults, Results

_NOTE = (
    "1→0: items that were right and are wrong, 0→1: the reverse. By chance: the share that guessing alone turns either "
    "way, (1 - a)(1 - b) / (k - 1) with accuracies a before and b after and k options, 0 for completions; lost and gained: the "
    "share beyond that, not below 0, with its 95% interval (Harmon et al. 2026)."
)
_NOTE_OF_COMPLETIONS = (
    "1→0: items that were right and are wrong, 0→1: the reverse. By chance: none, a completion cannot be guessed; lost and "
    "gained: the shares, with their 95% intervals (Harmon et al. 2026)."
)


def transitions_table(results: Results) -> Table:
    """Every earlier task on both splits, from its own training to the last checkpoint."""
    found = [
        (f"{display_name(task.name)}, {SPLIT_WORDS[split.split]}", task.transitions)
        for split in results.forgetting.splits
        for task in split.accuracy.tasks
    ]
    return turned_table(found, measure_name(results))


def pair_transitions_table(results: EvaluationResults) -> Table:
    """Every task, from A to B."""
    found = ((display_name(change.name), change.transitions) for change in results.changes or ())
    return turned_table(found, evaluated_name(results))


def turned_table(found: Iterable[tuple[str, Transitions | None]], measure: str = ACCURACY) -> Table:
    """A row per name that has transitions; `measure` is what the items' share of right ones is called."""
    header = ("task", "items", "1→0", "0→1", "by chance", "lost", "gained")
    rows = tuple(
        (
            name,
            str(turned.n),
            str(turned.lost.count),
            str(turned.gained.count),
            number(turned.lost.by_chance),
            adjusted(turned.lost),
            adjusted(turned.gained),
        )
        for name, turned in found
        if turned is not None
    )
    return Table("Items that turned", header, rows, _NOTE if measure == ACCURACY else _NOTE_OF_COMPLETIONS)


def adjusted(transition: Transition) -> str:
    """`0.12 [0.03, 0.21]`, the chance-adjusted share."""
    return with_interval(transition.value, transition.interval)
