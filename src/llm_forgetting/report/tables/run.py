"""The tables of a run, as rows of text: shared by the terminal and results.md."""

import math
from dataclasses import dataclass

from llm_forgetting.arrays import settled
from llm_forgetting.curvature.results import Eigenvalue
from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS, Interval, PairedProportionChange
from llm_forgetting.forgetting.measures import Change, Estimate
from llm_forgetting.report.tables.words import capital, measure_name
from llm_forgetting.results import Results, ScanResults

Scanned = Results | ScanResults
# More drops that could have been missed are not told in the note.
MOST_DETECTABLE = 8
"""Whatever holds landscapes, paths and a plane through checkpoints."""

SPLIT_WORDS = {"train": "trained", "test": "held-out", "probe": "never trained"}


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text, and a note below."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def display_name(name: str) -> str:
    """A checkpoint's or task's name for people."""
    return {"initial": "base model"}.get(name, name.replace("after_task", "after task ").replace("_", " "))


def chance_text(results: Results) -> str:
    """`guessing: 0.25`, the share of right answers by chance, by task where they differ; empty if it is not known."""
    by_task = {
        display_name(task.name): " to ".join(number(1 / options) for options in sorted(set(task.options), reverse=True))
        for task in results.tasks
        if task.options
    }
    values = set(by_task.values())
    if len(values) <= 1 and len(by_task) in (0, len(results.tasks)):
        return "".join(f"guessing: {value}" for value in values)
    return f"guessing: {', '.join(f'{value} on {name}' for name, value in by_task.items())}"


def accuracy_text(results: Results) -> str:
    """What makes a completion right, by task where tasks differ; empty if no task is of completions."""
    titles = {
        display_name(task.name): task.score.title if task.score else "teacher-forced exact match"
        for task in results.tasks
        if task.completions
    }
    if len(set(titles.values())) == 1 and len(titles) == len(results.tasks):
        return next(iter(titles.values()))
    return f"accuracy: {', '.join(f'{title} on {name}' for name, title in titles.items())}" if titles else ""


def number(value: float | None, digits: int = 2) -> str:
    """A number to `digits` decimals; "-" for none, "inf" and "nan" spelt out."""
    if value is None:
        return "-"
    return f"{value:z.{digits}f}" if math.isfinite(value) else str(value)


def measured(value: float) -> str:
    """A number to two decimals, or to two digits where it is smaller than that can show."""
    value = settled(value)
    return f"{value:.2g}" if 0 < abs(value) < 0.095 else number(value)


def p_text(p: float) -> str:
    """A p-value to two digits, to be read after "p": "= 0.47", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:#.2g}"


def value_and_error(value: float, stderr: float | None) -> str:
    """`0.038 ± 0.006`: one digit of the error (two if it begins with 1), and the value to the same decimal.

    An error of 0, or of rounding's size (all items alike), is no measure of precision, so the value then stands alone.
    """
    value, error = settled(value), 0.0 if stderr is None else settled(stderr)
    if error == 0:
        return number(value)
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{number(value)} ± {number(error)}"
    exponent = math.floor(math.log10(error))
    leading = error / 10**exponent
    decimals = max(0, (1 if leading < 1.95 else 0) - exponent)
    return f"{value:z.{decimals}f} ± {error:.{decimals}f}"


def eigenvalue_text(eigenvalue: Eigenvalue) -> str:
    """A Ritz value, with its residual where that shows."""
    value = settled(eigenvalue.value)
    return f"{value:.3g}" if eigenvalue.residual < 5e-3 * abs(value) else value_and_error(value, eigenvalue.residual)


def with_interval(value: float, interval: Interval | None) -> str:
    """`0.25 [0.10, 0.40]`, or the value alone."""
    return number(value) + ("" if interval is None else f" [{number(interval.low)}, {number(interval.high)}]")


def estimate_text(estimate: Estimate) -> str:
    """A value with its interval, or else with its standard error."""
    if estimate.value is None:
        return "-"
    if estimate.interval is None and estimate.stderr is not None:
        return value_and_error(estimate.value, estimate.stderr)
    return with_interval(estimate.value, estimate.interval)


def accuracy_matrix(results: Results) -> Table:
    """R[i, j]: a row per task and split, a column per checkpoint, accuracy and loss in each cell."""
    rows = []
    perplexed = {j for j, task in enumerate(results.tasks) if task.score is not None}
    for j, name in enumerate(results.task_names):
        for scores in results.forgetting.splits:
            R, L = scores.accuracy.cells, scores.loss.cells
            cells = [
                f"{number(R[i][j].value)} / {_loss(L[i][j].value, perplexity=j in perplexed)}" for i in range(len(R))
            ]
            rows.append((f"{display_name(name)}, {SPLIT_WORDS[scores.split]}", str(R[0][j].n), *cells))
    checkpoints = map(display_name, results.forgetting.train.checkpoints)
    notes = ("trained items were fine-tuned on, held-out items never", accuracy_text(results), chance_text(results))
    note = " ".join(sentence(said) for said in notes if said)
    title = f"{capital(measure_name(results))} / loss in nats{' (perplexity of completions)' if perplexed else ''}"
    return Table(title, ("task", "items", *checkpoints), tuple(rows), note)


def _loss(value: float | None, *, perplexity: bool) -> str:
    """A loss, and of completions the exponential of it."""
    return (
        f"{number(value)} ({number(math.exp(min(value, 700.0)))})"
        if perplexity and value is not None
        else number(value)
    )


def sampled(results: Results) -> str:
    """What the intervals of scores are over: a task of several subjects is a sample of those."""
    several = [len(task.subjects) > 1 for task in results.tasks]
    if all(several):
        return "subjects"
    return "items (over subjects, where a task has several)" if any(several) else "items"


def forgetting_table(results: Results) -> Table:
    """Every earlier task's forgetting, on both splits."""
    rows, detectable = [], []
    for scores in results.forgetting.splits:
        for accuracy, loss in zip(scores.accuracy.tasks, scores.loss.tasks, strict=True):
            rows.append(
                (
                    f"{display_name(accuracy.name)}, {SPLIT_WORDS[scores.split]}",
                    str(accuracy.n),
                    counts(accuracy.change) or estimate_text(accuracy.absolute),
                    _percent(accuracy.relative.value),
                    _percent(accuracy.normalised.value),
                    number(loss.absolute.value) if _too_few(accuracy.n) else estimate_text(loss.absolute),
                )
            )
        detectable += [drop.said for drop in scores.detectable]
    if len(detectable) > MOST_DETECTABLE:
        more = f"{len(detectable) - MOST_DETECTABLE} more of the kind are in results.json (forgetting, detectable)"
        detectable = [*detectable[:MOST_DETECTABLE], more]
    name = measure_name(results)
    header = ("task", "items", f"{name} lost", f"of its {name}", "of its gain", "loss gained (nats)")
    note = (
        f"brackets: 95% interval over {sampled(results)}; below {MINIMUM_ITEMS} items only counts of right answers; "
        f"of its {name}: relative to {name} after the task's own training; of its gain: relative to the gain over the base "
        f"model; one seed. {sentence(chance_text(results))} "
        f"{sentence('; '.join(detectable))}"
    )
    return Table("Forgetting", header, tuple(rows), note)


def sentence(text: str) -> str:
    """`text` with a capital and a full stop; nothing for nothing."""
    return f"{capital(text)}." if text else ""


def _too_few(items: int) -> bool:
    return items < MINIMUM_ITEMS


def counts(change: Change | None) -> str:
    """`9 right before, 4 after, of 10` where there are too few items for an interval, else nothing."""
    if not isinstance(change, PairedProportionChange) or not _too_few(change.n):
        return ""
    return f"{change.both + change.only_before} right before, {change.both + change.only_after} after, of {change.n}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def summary_table(results: Results) -> Table:
    """Average accuracy, backward transfer, Chaudhry's measure and forward transfer."""
    names = {
        "average": "average after the last task",
        "backward_transfer": "backward transfer",
        "forgetting_measure": "forgetting measure (Chaudhry)",
        "forward_transfer": "forward transfer",
    }
    rows = []
    for scores in results.forgetting.splits:
        few = any(_too_few(cell.n) for cell in scores.accuracy.cells[0])
        for key, label in names.items():
            estimates: tuple[Estimate, Estimate] = getattr(scores.accuracy, key), getattr(scores.loss, key)
            cells = (number(estimate.value) if few else estimate_text(estimate) for estimate in estimates)
            rows.append((f"{label}, {SPLIT_WORDS[scores.split]}", *cells))
    note = sentence(chance_text(results))
    return Table("Over all tasks", ("measure", measure_name(results), "loss (nats)"), tuple(rows), note)


def share(value: float) -> str:
    """A share in percent, with a decimal or a digit where it is small."""
    percent = 100 * settled(value)
    if 0 < abs(percent) < 0.095:
        return f"{percent:.1g}%"
    return f"{percent:.1f}%".replace(".0%", "%") if abs(percent) < 9.95 else f"{percent:.0f}%"
