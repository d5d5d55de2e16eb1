"""Tables of arms at matched learning."""

from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.tables.study_numbers import Study, p_number, units, with_interval

SHOWN = {-1: "keeps more", 0: "not shown", 1: "keeps less"}
_MEASURES = {"loss": "loss, nats", "accuracy": "share of right answers"}


def frontier_tables(study: Study) -> list[Table]:
    """A table per measure; none where no run was scored during training."""
    return [_table(found) for found in reversed(study.get("frontiers") or [])]


def _table(found: Study) -> Table:
    rows = []
    for effect in found["effects"]:
        difference, area = effect["difference"], found["areas"][effect["arm"]]
        rows.append(
            (
                effect["arm"],
                with_interval(difference["value"], difference["interval"]),
                p_number(effect["adjusted"]),
                SHOWN[effect["shown"]],
                f"{100 * effect['learnt']['value']:.0f}%",
                "-" if area is None else with_interval(area["value"], area["interval"], signed=False),
            )
        )
    baseline, own = found["baseline"], found["areas"][found["baseline"]]
    first = found["effects"][0]["difference"]
    note = (
        f"difference: forgetting of the first task less that of {baseline}, where both had learnt as much of the last one; "
        f"mean over {units(first)}, 95% interval. p: signs flipped per run ({first['n_runs']}), which speaks of these task "
        "pairs alone, adjusted (Holm) for all arms. Shown where p < 0.05 and the interval leaves zero out. At: learning at "
        f"which they are compared, of what {baseline} learnt. Area: mean forgetting on the way to half of that"
        + ("" if own is None else f" ({baseline}: {with_interval(own['value'], own['interval'], signed=False)})")
        + "; none where only the end counts, for a method moves the model there."
    )
    header = ("arm", "difference", "p", "forgetting", "at", "area")
    return Table(f"At matched learning ({_MEASURES[found['measure']]})", header, tuple(rows), note)
