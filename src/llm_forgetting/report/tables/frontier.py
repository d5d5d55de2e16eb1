"""Table of forgetting at matched learning."""

from llm_forgetting.report.tables.run import Table, display_name, number
from llm_forgetting.report.views.frontier import frontier_views
from llm_forgetting.results import Results


def frontier_table(results: Results) -> Table:
    """What had been forgotten of every earlier task by the time that so much was learnt; no rows where it was not scored."""
    rows, counts, moved, worse = [], set[int](), "", dict[str, str]()
    for view in frontier_views(results):
        if view.measure == "loss" and view.learning[-1] < 0:
            worse[display_name(view.learnt)] = number(-float(view.learning[-1]))
        counts.update(view.items)
        for found in view.matched:
            interval = f" [{number(found.interval.low)}, {number(found.interval.high)}]" if found.interval else ""
            rows.append(
                (
                    display_name(view.learnt),
                    display_name(view.forgotten),
                    view.named if view.measure == "accuracy" else "loss (nats)",
                    number(found.learning),
                    f"{number(found.forgetting)}{interval}",
                    number(found.area),
                )
            )
        if view.moved:
            learnt, forgotten = map(number, view.end)
            measure = view.named if view.measure == "accuracy" else "loss (nats)"
            rows.append(
                (display_name(view.learnt), display_name(view.forgotten), measure, f"{learnt} (end)", forgotten, "-")
            )
            moved = "; end: after a method moved the model when the training was over"
    split = "held-out" if results.config.evaluation.during_split == "test" else "trained"
    note = (
        "read off the polygon through the scores at fractions of the training, at a quarter, half, three quarters and all of "
        "the most that was learnt; mean until then: of what was forgotten on the way (the area under the frontier); "
        f"{' or '.join(map(str, sorted(counts)))} {split} items per task; brackets: 95% interval over them, "
        f"none below 40 items{moved}"
    )
    other = " (evaluation.during_split train scores trained ones)" if split == "held-out" else ""
    for learnt, rise in worse.items():
        note += f". In the end the loss of {learnt} on these items was {rise} nats higher than before its training: they were "
        note += f"not learnt{other}"
    header = ("learnt", "earlier task", "in", "learnt so much", "forgotten by then", "mean until then")
    return Table("Forgetting at matched learning", header, tuple(rows), note)
