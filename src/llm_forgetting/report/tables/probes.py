"""Tables of what is never trained on: probes, and the unrelated text where it was named as one."""

from collections.abc import Sequence

from llm_forgetting.forgetting.intervals import Interval, PairedProportionChange
from llm_forgetting.forgetting.mean_intervals import Mean
from llm_forgetting.forgetting.records import Probe, ProbeChange
from llm_forgetting.forgetting.transitions import Transition
from llm_forgetting.report.tables.run import Table, display_name, measured, number, p_text, with_interval
from llm_forgetting.report.tables.transitions import adjusted
from llm_forgetting.results import Results

_NOTE = (
    "Change: to the last checkpoint, on the same items, with its 95% interval, and McNemar's p. Lost: right before and wrong "
    "after; gained: the reverse; less what guessing alone turns over (Harmon et al. 2026), and before it the counts. Of no "
    "task that was trained on, and in no average."
)


def probe_rows(results: Results) -> list[tuple[str, ...]]:
    """A row per probe and earlier checkpoint; none where nothing was asked for."""
    rows = [_row(probe, change) for probe in results.probes or () for change in probe.changes]
    return rows + (_text_rows(results) if "text" in results.config.data.probes else [])


def probes_table(results: Results) -> Table:
    """Every probe from every earlier checkpoint to the last."""
    header = ("probe", "items", "measure", "before", "at the end", "change", "lost", "gained", "change of loss (nats)")
    return Table("Never trained on", header, tuple(probe_rows(results)), _NOTE)


def closing_probes_table(results: Results) -> Table:
    """From the base model to the last checkpoint alone, for the terminal."""
    rows = [
        (
            row[0].removesuffix(_since("initial")),
            row[1],
            row[2].partition(",")[0],
            *row[3:5],
            row[5].partition(", p")[0],
            row[8],
        )
        for row in probe_rows(results)
        if row[0].endswith(_since("initial"))
    ]
    note = "change: from the base model to the last checkpoint, on the same items, with its 95% interval."
    header = ("never trained on", "items", "measure", "base", "end", "change", "loss gained")
    return Table("Never trained on", header, tuple(rows), note)


def _since(start: str) -> str:
    return f", since {display_name(start)}"


def _row(probe: Probe, change: ProbeChange) -> tuple[str, ...]:
    before, *_, after = probe.score[change.start], *probe.score.values()
    transitions = change.transitions
    lost, gained = (None, None) if transitions is None else (transitions.lost, transitions.gained)
    measure = probe.measure if not probe.chance else f"{probe.measure}, guessing: {number(probe.chance)}"
    return (
        f"{display_name(probe.name)}{_since(change.start)}",
        str(probe.n),
        measure,
        number(before.value),
        number(after.value),
        _change(change),
        _turned(lost),
        _turned(gained),
        "-" if change.loss is None else _signed(change.loss.value, change.loss.interval),
    )


def _change(change: ProbeChange) -> str:
    text = _signed(change.score.value, change.score.interval)
    return f"{text}, p {p_text(change.score.p_value)}" if isinstance(change.score, PairedProportionChange) else text


def _signed(value: float, interval: Interval | None) -> str:
    text = with_interval(value, interval)
    return text if text.startswith("-") else f"+{text}"


def _turned(transition: Transition | None) -> str:
    if transition is None:
        return "-"
    return f"{transition.count}: {adjusted(transition)}"


def _text_rows(results: Results) -> list[tuple[str, ...]]:
    loss = results.text.loss
    starts: Sequence[str] = [start for start in list(loss)[:1] if len(loss) > 1]
    return [_text_row(results, start, loss) for start in starts]


def _text_row(results: Results, start: str, loss: dict[str, Mean]) -> tuple[str, ...]:
    *_, last = loss
    change = results.text.change[last]
    return (
        f"unrelated text{_since(start)}",
        str(results.text.passages),
        "nats per token",
        measured(loss[start].value),
        measured(loss[last].value),
        "-",
        "-",
        "-",
        _signed(change.value, change.interval),
    )
