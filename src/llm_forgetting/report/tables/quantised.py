"""Tables of what quantising the checkpoints costs, beside what later tasks cost."""

from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS, Interval
from llm_forgetting.forgetting.records import QuantisationCost
from llm_forgetting.report.tables.run import SPLIT_WORDS, Table, counts, display_name, measured, number, with_interval
from llm_forgetting.report.tables.words import measure_name
from llm_forgetting.results import Results

_NOTE = (
    "loss gained where all weights W + B A between the embeddings are rounded to so many bits and back (bitsandbytes: NF4 in "
    "blocks of 64, int8 in rows; activations are not rounded); later tasks: loss gained since the task's own training."
)


def quantised_table(results: Results) -> Table:
    """Every task at every checkpoint: loss, what each kind of quantisation adds, and what the tasks since have."""
    kinds, rows = _kinds(results), []
    for label, costs in _cells(results).items():
        one, checkpoint = costs[0], costs[0].checkpoint
        cells = [_loss(cost) for cost in costs]
        accuracies = [counts(cost.accuracy) or with_interval(-cost.accuracy.value, _turned(cost)) for cost in costs]
        plain, since = _losses(results, one, checkpoint)
        rows.append((label, str(one.accuracy.n), number(plain), *cells, number(since), *accuracies))
    header = (
        "task", "items", "loss", *(f"{kind}: loss gained" for kind in kinds), "later tasks",
        *(f"{kind}: {measure_name(results)} lost" for kind in kinds),
    )  # fmt: skip
    note = f"{_NOTE} Brackets: 95% interval over items; below {MINIMUM_ITEMS} items none, and counts of right answers."
    return Table("What quantisation costs (nats)", header, tuple(rows), note)


def closing_quantised_table(results: Results) -> Table:
    """The losses of the tasks learnt by then, tasks called by their numbers."""
    kinds, names, rows = _kinds(results), results.task_names, []
    for costs in _cells(results).values():
        one, k = costs[0], names.index(costs[0].task) + 1
        after = results.forgetting.train.checkpoints.index(one.checkpoint)
        if after >= k:
            plain, since = _losses(results, one, one.checkpoint)
            label = f"task {k}, {SPLIT_WORDS[one.split]}, after {after}"
            rows.append((label, str(one.accuracy.n), number(plain), *map(_loss, costs), number(since)))
    return Table(
        "What quantisation costs (nats)", ("loss of", "items", "loss", *kinds, "later tasks"), tuple(rows), _NOTE
    )


def _kinds(results: Results) -> list[str]:
    return list(dict.fromkeys(cost.kind for cost in results.quantised or ()))


def _cells(results: Results) -> dict[str, list[QuantisationCost]]:
    cells: dict[str, list[QuantisationCost]] = {}
    for cost in results.quantised or ():
        label = f"{display_name(cost.task)}, {SPLIT_WORDS[cost.split]}, {display_name(cost.checkpoint)}"
        cells.setdefault(label, []).append(cost)
    return cells


def _loss(cost: QuantisationCost) -> str:
    if cost.loss is None:
        return "-"
    interval = cost.loss.interval
    bracket = "" if interval is None else f" [{measured(interval.low)}, {measured(interval.high)}]"
    return f"{measured(cost.loss.value)}{bracket}"


def _turned(cost: QuantisationCost) -> Interval | None:
    return None if cost.accuracy.interval is None else -cost.accuracy.interval


def _losses(results: Results, cost: QuantisationCost, checkpoint: str) -> tuple[float, float | None]:
    """The loss without quantisation, and what it gained since the task's own training (None before and at that)."""
    split = results.forgetting.train if cost.split == "train" else results.forgetting.test
    i, j = split.checkpoints.index(checkpoint), results.task_names.index(cost.task)
    own = split.loss.cells[i][j].value
    return own, own - split.loss.cells[j + 1][j].value if i > j + 1 else None
