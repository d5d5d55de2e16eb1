"""Paired comparison of two evaluations of the same items: what changed from A to B, with intervals over items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.intervals import PairedProportionChange, paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import PairedMeanChange, paired_mean_change
from llm_forgetting.forgetting.records import ItemRecord, weighted_losses
from llm_forgetting.forgetting.transitions import Transitions, transitions

_Pairs = Sequence[tuple[ItemRecord, ItemRecord]]


@dataclass(frozen=True)
class SubjectChange:
    """Change of one subject from A to B on the same items: accuracy (share) and loss (nats), B minus A."""

    name: str
    accuracy: PairedProportionChange
    loss: PairedMeanChange


@dataclass(frozen=True)
class TaskChange:
    """Change of one task from A to B, B minus A, over all its items (of several subjects over subjects) and by subject.

    held_out: accuracy on the items that neither was trained on, absent where all or none of the items are such;
    transitions: all its items that turned from right to wrong and back.
    """

    name: str
    accuracy: PairedProportionChange
    loss: PairedMeanChange
    subjects: tuple[SubjectChange, ...]
    held_out: Annotated[PairedProportionChange | None, OMITTED] = None
    transitions: Annotated[Transitions | None, OMITTED] = None


def task_changes(
    first: Mapping[str, Sequence[ItemRecord]], second: Mapping[str, Sequence[ItemRecord]], *, seed: int
) -> tuple[TaskChange, ...]:
    """What changed on every task.

    Args:
        first: Items of A by task; `split` is `train` for those that A was trained on.
        second: The same items of B in the same order.
        seed: Seeds the intervals of losses.

    Returns:
        One change per task, in the order of `first`.

    Raises:
        ValueError: The two do not hold the same items.
    """
    changes = []
    for name, before in first.items():
        after = second[name]
        if [(item.subject, item.id) for item in before] != [(item.subject, item.id) for item in after]:
            raise ValueError(f"both evaluations of {name} must hold the same items in the same order")
        pairs = list(zip(before, after, strict=True))
        held_out = [(x, y) for x, y in pairs if "train" not in (x.split, y.split)]
        parts = {subject: [pair for pair in pairs if pair[0].subject == subject] for subject in _subjects(pairs)}
        changes.append(
            TaskChange(
                name,
                _accuracy(pairs),
                _loss(pairs, seed),
                tuple(SubjectChange(subject, _accuracy(part), _loss(part, seed)) for subject, part in parts.items()),
                _accuracy(held_out) if 0 < len(held_out) < len(pairs) else None,
                _turned(pairs),
            )
        )
    return tuple(changes)


def _accuracy(pairs: _Pairs) -> PairedProportionChange:
    before, after = ([item.correct for item in items] for items in zip(*pairs, strict=True))
    return paired_proportion_change(before, after, clusters=_subjects(pairs))


def _turned(pairs: _Pairs) -> Transitions:
    before, after = ([item.correct for item in items] for items in zip(*pairs, strict=True))
    return transitions(before, after, [item.options for item, _ in pairs], clusters=_subjects(pairs))


def _loss(pairs: _Pairs, seed: int) -> PairedMeanChange:
    before, after = (weighted_losses(items) for items in zip(*pairs, strict=True))
    return paired_mean_change(before, after, seed=seed, clusters=_subjects(pairs))


def _subjects(pairs: _Pairs) -> list[str]:
    return [item.subject for item, _ in pairs]
