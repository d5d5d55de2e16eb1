"""The answer of a run in one plain sentence."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

from llm_forgetting.forgetting.intervals import (
    MINIMUM_ITEMS,
    Interval,
    PairedProportionChange,
    wilson,
)
from llm_forgetting.forgetting.measures import Estimate, Forgetting
from llm_forgetting.forgetting.power import detectable_drop
from llm_forgetting.forgetting.records import DetectableDrop, SpuriousForgetting, SpuriousForgettingProbes

Outcome = Literal["too few items", "dropped", "rose", "nothing learnt", "no drop shown"]
MOST_TOLD = 4
"""More earlier tasks than this are counted, not told one by one."""
_COUNTED: dict[Outcome, str] = {
    "dropped": "the {} fell",
    "rose": "the {} rose",
    "no drop shown": "no drop could be shown",
    "nothing learnt": "nothing was learnt",
    "too few items": "the items are too few for a verdict",
}


def verdict(result: Forgetting, completions: Collection[str] = ()) -> str:
    """What became of each earlier task, in one sentence; before it whether learning is not shown. Loss: value ± stderr.

    What is right of the tasks `completions` is called exact match, of the others accuracy.
    """
    names = result.task_names
    if len(names) == 1:
        return f"Only {names[0]} was fine-tuned, nothing came after it, so forgetting cannot be measured; one seed."
    many = len(names) - 1 > MOST_TOLD
    later = f"{len(names) - 1} more tasks, the last {names[-1]}" if many else ", then ".join(names[1:])
    lead = f"{_learning_not_shown(result, completions)}After fine-tuning on {later}, "
    if len(names) == 2:
        text = _describe_task(result, 0, completions)
        taught_nothing = _outcome(result, 0) == "nothing learnt"
        return (text[0].upper() + text[1:] if taught_nothing else lead + text) + "; one seed."
    told = (_describe_task(result, k, completions) for k in range(len(names) - 1))
    earlier = _describe_many(result, completions) if many else "; ".join(told)
    return f"{lead}{earlier}; {_describe_average(result, completions)}; one seed."


def _measure(tasks: Collection[str], completions: Collection[str]) -> str:
    """`exact match` where all `tasks` are of completions, else `accuracy`."""
    return "exact match" if set(tasks) <= set(completions) else "accuracy"


def letters_learnt(spurious: Mapping[str, SpuriousForgetting], chance: Mapping[str, float]) -> str:
    """A sentence if a task was learnt as asked, but with its options rotated the model was at chance; else nothing.

    Both are judged right after the task's own training: Wilson's interval of the accuracy as asked lies above chance, and
    that of the accuracy with rotated options, on as many items, does not.
    """
    found = []
    for task, probed in spurious.items():
        tuned = next(iter(probed.probes.values()), None)
        if tuned is None:
            continue
        if _by_letters_only(tuned, chance[task]):
            assert tuned.rotations is not None
            found.append(f"{tuned.rotations.mean:.2f} on {task}, guessing {chance[task]:.2f}")
    if not found:
        return ""
    return f"With the options rotated the model answers at chance ({'; '.join(found)}): it learnt letters, not answers."


def _by_letters_only(tuned: SpuriousForgettingProbes, chance: float) -> bool:
    rotations, asked = tuned.rotations, tuned.accuracy.interval
    if rotations is None or asked is None or rotations.n < MINIMUM_ITEMS:
        return False
    return asked.low > chance >= wilson(round(rotations.mean * rotations.n), rotations.n).low


def _learning_not_shown(result: Forgetting, completions: Collection[str]) -> str:
    """A sentence for every earlier task that fine-tuning on it is not shown to have taught (of many tasks one for all);
    empty if there is none.
    """
    found = [
        learnt
        for k, (learnt, loss) in enumerate(zip(result.accuracy.learning, result.loss.learning, strict=True))
        if k < len(result.task_names) - 1
        and not (learnt.shown or loss.shown)
        and _outcome(result, k) != "nothing learnt"
    ]
    if len(found) > MOST_TOLD:
        return f"Learning of {len(found)} of {len(result.task_names) - 1} earlier tasks is not shown. "
    return "".join(
        f"Learning of {learnt.name} is not shown: {_measure([learnt.name], completions)} was {learnt.before:.2f} before "
        f"fine-tuning on it and "
        f"{learnt.after:.2f} after. "
        for learnt in found
    )


def _describe_many(result: Forgetting, completions: Collection[str]) -> str:
    """The first task; how many of all ended how; and the one of which most was lost."""
    earlier, name = len(result.task_names) - 1, _measure(result.task_names, completions)
    outcomes = Counter(_outcome(result, k) for k in range(earlier))
    counts = ", ".join(
        f"{said.format(name)} of {outcomes[outcome]}" for outcome, said in _COUNTED.items() if outcomes[outcome]
    )
    lost = [task.absolute.value or 0.0 for task in result.accuracy.tasks]
    most = lost.index(max(lost))
    return (
        f"{_describe_task(result, 0, completions)}; of all {earlier} earlier tasks {counts}; the most was lost of "
        f"{result.task_names[most]} ({lost[most]:.2f} in {name})"
    )


def _outcome(result: Forgetting, k: int) -> Outcome:
    interval = result.accuracy.tasks[k].absolute.interval
    if interval is None:
        return "too few items"
    if interval.low > 0:
        return "dropped"
    if interval.high < 0:
        return "rose"
    learnt = result.accuracy.learning[k].shown or result.loss.learning[k].shown
    return "no drop shown" if learnt else "nothing learnt"


def _describe_task(result: Forgetting, k: int, completions: Collection[str]) -> str:
    accuracy, learnt = result.accuracy.tasks[k], result.accuracy.learning[k]
    cell, final = result.accuracy.cells[k + 1][k], result.accuracy.cells[-1][k]
    change, drop = accuracy.change, accuracy.absolute
    assert isinstance(change, PairedProportionChange)
    assert drop.value is not None
    items = f"{_split_word(result.split)} {accuracy.name} items"
    name = _measure([accuracy.name], completions)
    where = f"{name} on the {accuracy.n} {items}"
    span = f"from {cell.value:.2f} to {final.value:.2f}"
    loss = _describe_loss(result.loss.tasks[k].absolute)
    match _outcome(result, k):
        case "too few items":
            right = "exact matches" if accuracy.name in completions else "correct answers"
            before, after = change.both + change.only_before, change.both + change.only_after
            return (
                f"{right} on the {items} went from {before} to {after} of {accuracy.n} items, "
                "too few items for an interval or a verdict"
            )
        case "dropped":
            base = f", though fine-tuning on it had not measurably raised it ({learnt.before:.2f} before)"
            fell = f"{where} fell {span}, a drop of {drop.value:.2f} ({_describe_interval(drop.interval)}; {loss})"
            return fell if learnt.shown else fell + base
        case "rose":
            return f"{where} rose {span}, a gain of {-drop.value:.2f} ({_describe_interval(change.interval)}; {loss})"
        case "nothing learnt":
            return (
                f"nothing was learnt of {accuracy.name}, so nothing could be forgotten: fine-tuning on it took {where} "
                f"from {learnt.before:.2f} to {learnt.after:.2f}, and it ended at {final.value:.2f}"
            )
        case "no drop shown":
            smallest = 100 * detectable_drop(_independent_items(change), _share_changed(change))
            return (
                f"no drop could be shown in {where} ({span}, a drop of {drop.value:.2f}, {_describe_interval(drop.interval)}; "
                f"{loss}); with {change.n} items a drop below {smallest:.0f} points cannot be seen reliably"
            )


def detectable_drops(result: Forgetting) -> tuple[DetectableDrop, ...]:
    """Per task but the last the smallest drop in accuracy that its items could have shown, and that in words.

    McNemar's test at 5%, power 80%, with the share of items that changed as it was measured; at least one item in ten is
    supposed to change. Items of several subjects count as so many independent ones as have their stderr.
    """
    drops = []
    for task in result.accuracy.tasks:
        change = task.change
        assert isinstance(change, PairedProportionChange)
        changed = _share_changed(change)
        drop = detectable_drop(_independent_items(change), max(changed, 0.1))
        text = (
            f"with {change.n} {_split_word(result.split)} {task.name} items, drops under {100 * drop:.0f} points would be "
            "missed more than 20% of the time"
        )
        drops.append(DetectableDrop(task.name, change.n, changed, drop, text))
    return tuple(drops)


def _share_changed(change: PairedProportionChange) -> float:
    return (change.only_before + change.only_after) / change.n


def _independent_items(change: PairedProportionChange) -> int:
    """How many independent items would have the change's stderr: fewer than n where those of one subject are alike."""
    if not change.stderr:
        return change.n
    return 1 + round((_share_changed(change) - change.value**2) / change.stderr**2)


def _split_word(split: str) -> str:
    return {"train": "trained", "test": "held-out"}.get(split, split)


def _describe_interval(interval: Interval | None) -> str:
    assert interval is not None
    return f"{100 * interval.level:.0f}% interval {interval.low:.2f} to {interval.high:.2f}"


def _describe_loss(rise: Estimate) -> str:
    if rise.value is None or not math.isfinite(rise.value):
        return "loss not finite"
    return f"loss {rise.value:+.2f}" + ("" if rise.stderr is None else f" ± {rise.stderr:.2f}") + " nats"


def _describe_average(result: Forgetting, completions: Collection[str]) -> str:
    transfer = result.accuracy.backward_transfer
    assert transfer.value is not None
    uncertainty = "" if transfer.stderr is None else f" ± {transfer.stderr:.2f}"
    return f"average forgetting {0.0 - transfer.value:.2f}{uncertainty} in {_measure(result.task_names, completions)}"
