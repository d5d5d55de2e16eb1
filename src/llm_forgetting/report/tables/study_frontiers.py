"""Tables of arms at matched learning."""

from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.tables.study_numbers import Study, coefficient, p_number, units, with_interval

SHOWN = {-1: "keeps more", 0: "not shown", 1: "keeps less"}
_KEEPS = {-1: "more", 0: "-", 1: "less"}
_MEASURES = {"loss": "loss, nats", "accuracy": "share of right answers"}


def frontier_tables(study: Study) -> list[Table]:
    """Per measure, loss first, the differences at matched learning and the areas; none where no run was scored on the way."""
    tables = []
    for found in reversed(study.get("frontiers") or []):
        tables += [_differences(found), _areas(found)]
        tables += [_across(found, study["titles"])] if found.get("across") else []
    return tables


def _differences(found: Study) -> Table:
    rows = [
        (
            effect["arm"],
            with_interval(effect["difference"]["value"], effect["difference"]["interval"]),
            p_number(effect["adjusted"]),
            _KEEPS[effect["shown"]],
            f"{100 * effect['learnt']['value']:.0f}%",
        )
        for effect in found["effects"]
    ]
    baseline, first = found["baseline"], found["effects"][0]["difference"]
    note = (
        f"difference: forgetting of the first task less that of {baseline}, where both had learnt as much of the last one; "
        f"mean over {units(first)}, 95% interval. p: signs flipped per run ({first['n_runs']}), which speaks of these task "
        "pairs alone, adjusted (Holm) for all arms. Keeps more or less: p < 0.05 and an interval without zero. At: learning at "
        f"which they are compared, of what {baseline} learnt."
    )
    title = f"At matched learning ({_MEASURES[found['measure']]})"
    return Table(title, ("arm", "difference", "p", "keeps", "at"), tuple(rows), note)


def _areas(found: Study) -> Table:
    rows = [
        (arm, with_interval(area["value"], area["interval"], signed=False), str(area["n_runs"]), str(area["excluded"]))
        for arm, area in found["areas"].items()
        if area is not None
    ]
    ends = [arm for arm, area in found["areas"].items() if area is None]
    note = f"mean forgetting on the way to half of what {found['baseline']} learnt, 95% interval; less is better."
    note += f" None of {', '.join(ends)}: only the end counts, for a method moves the model there." if ends else ""
    header = ("arm", "area", "runs", "learnt less")
    return Table(f"Area under the frontier ({_MEASURES[found['measure']]})", header, tuple(rows), note)


def _across(found: Study, titles: Study) -> Table:
    across = found["across"]
    rows = []
    for name, association in across["measures"].items():
        p = association["p_value"] if association["primary"] else association["p_adjusted"]
        none = p is None or association["refusal"]
        title = f"{titles.get(name, name)}{'*' if association['primary'] else ''}"
        rows.append((title, coefficient(association["spearman_within_pairs"]), "-" if none else p_number(p)))
    arms = max(association["n_runs"] for association in across["measures"].values())
    note = (
        f"Spearman's rho over {arms} arms, 95% interval, between an arm's change of the measure and of forgetting at matched "
        f"learning, both from {found['baseline']} and means over task pairs. p: permutation of arms, Holm-adjusted but for the "
        "primary measure (*). A correlation is no cause."
    )
    return Table(f"Across arms ({_MEASURES[found['measure']]})", ("measure", "over arms", "p"), tuple(rows), note)
