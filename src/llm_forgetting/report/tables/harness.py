"""Table of two logs of lm-evaluation-harness: paired changes over the documents that both were asked."""

from collections.abc import Sequence

from llm_forgetting.forgetting.intervals import PairedProportionChange
from llm_forgetting.forgetting.records import Probe
from llm_forgetting.report.tables.pairs import change_text
from llm_forgetting.report.tables.run import Table, number
from llm_forgetting.report.tables.transitions import turned_table
from llm_forgetting.results.harness import HarnessChange, HarnessLog

_NOTE = (
    "B minus A over the documents that are in both; brackets: paired 95% intervals, none below 40 documents, then ± standard "
    "error; p: exact McNemar. Unpaired z: what the harness' own comparison gives, (B - A) / sqrt(stderr² + stderr²) over all "
    "documents of each; it takes no account of their being the same."
)


def scores_table(found: Sequence[Probe]) -> Table:
    """A row per task and metric of one checkpoint."""
    rows = tuple(
        (
            f"{probe.name.removeprefix('harness:')}, {probe.measure}",
            str(probe.n),
            number(score.value, 4),
            "-" if score.stderr is None else number(score.stderr, 4),
            "-" if score.interval is None else f"{number(score.interval.low, 3)} to {number(score.interval.high, 3)}",
            "-" if not probe.chance else number(probe.chance),
        )
        for probe in found
        for score in probe.score.values()
    )
    note = (
        "Run by lm-evaluation-harness itself; standard error sd / sqrt(n) as there, 95% interval from 40 documents on."
    )
    header = ("task, metric", "documents", "mean", "stderr", "interval", "guessing")
    return Table("Tasks of lm-evaluation-harness", header, rows, note)


def harness_tables(changes: Sequence[HarnessChange], first: HarnessLog, second: HarnessLog) -> list[Table]:
    """A row per task and metric: what changed, and of 0/1 metrics the documents that turned."""
    header = ("task, metric", "shared", "A", "B", "B - A", "p", "unpaired z")
    note = " ".join([_NOTE, *_differences(changes, first, second)])
    return [
        Table("What changed from A to B", header, tuple(map(_row, changes)), note),
        turned_table((_name(found), found.change.transitions) for found in changes),
    ]


def _name(found: HarnessChange) -> str:
    return f"{found.change.task}, {found.change.metric}"


def _row(found: HarnessChange) -> tuple[str, ...]:
    one, change = found.change, found.change.change
    return (
        _name(found),
        str(change.n),
        number(one.first, 3),
        number(one.second, 3),
        change_text(change),
        number(change.p_value) if isinstance(change, PairedProportionChange) else "-",
        number(found.unpaired_z),
    )


def _differences(changes: Sequence[HarnessChange], first: HarnessLog, second: HarnessLog) -> list[str]:
    """What is not the same in both logs, one sentence each."""
    said = []
    for task in dict.fromkeys(found.change.task for found in changes):
        one = next(found.change for found in changes if found.change.task == task)
        if one.only_first or one.only_second:
            said.append(f"{task}: {one.only_first} documents are in A alone, {one.only_second} in B alone.")
        if first.settings[task] != second.settings[task]:
            said.append(f"{task}: A has {first.settings[task]}, B {second.settings[task]}.")
    for letter, log, other in (("A", first, second), ("B", second, first)):
        if alone := [task for task in log.samples if task not in other.samples]:
            said.append(f"In {letter} alone: {', '.join(alone)}.")
    return said
