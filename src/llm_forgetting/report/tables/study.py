"""The report of a study, from its analysis alone: tables, study.md, and what the terminal shows."""

import math

from llm_forgetting.report.tables.markdown import markdown_rows
from llm_forgetting.report.tables.run import Table
from llm_forgetting.report.tables.study_frontiers import frontier_tables
from llm_forgetting.report.tables.study_numbers import Study, coefficient, p_number, units, with_interval

# The level of study.statistics.power.SIGNIFICANCE, which stands on a higher floor.
LEVEL = 0.05
# Columns of a table for 80 characters: with more, numbers and their intervals are broken.
WIDEST = 6

QUESTIONS = {
    "methods": "Which methods keep more of the first task where the last one was learnt as far?",
    "flatness": "Does a flatter landscape go with less forgetting?",
    "change": "How does the landscape change with a new task?",
    "relation": "What is the relation between sharpness and retention?",
    "forecast": "Does the landscape forecast how much is forgotten?",
    "prediction": "Does it predict forgetting of task pairs it has not seen?",
    "arms": "Do interventions on training change forgetting?",
}


def conclusions(study: Study) -> list[tuple[str, list[str]]]:
    """The questions with their sentences, those that were asked."""
    answers, questions = study["answers"], {**QUESTIONS, **study.get("questions", {})}
    asked = [(question, answers[key]) for key, question in questions.items() if answers.get(key)]
    return [(question, [answer] if isinstance(answer, str) else list(answer)) for question, answer in asked]


def verdict(study: Study) -> str:
    """The answer on flatness in a word: yes, no (the opposite is shown), or not shown."""
    table = study.get("associations")
    primary = {} if table is None else table["measures"][table["primary"]]
    rho, p = primary.get("spearman_within_pairs"), primary.get("p_value")
    if rho is None or p is None or primary["refusal"] or p > LEVEL:
        return "Not shown"
    return (
        "Yes, in these runs"
        if rho["value"] > 0 or "questions" in study
        else "No: in these runs flatter ones forgot more"
    )


def study_tables(study: Study) -> list[Table]:
    """Every table."""
    associations = [measures_table, robustness_table] if "associations" in study else []
    effects = [effects_table] if study.get("effects") else []
    return [*frontier_tables(study), *(make(study) for make in (*associations, *effects))]


def closing_tables(study: Study) -> list[Table]:
    """The tables that a terminal has room for; every one is in study.md."""
    frontiers = frontier_tables(study)
    return [*frontiers[:1], *(table for table in study_tables(study)[len(frontiers) :] if len(table.header) <= WIDEST)]


def measures_table(study: Study) -> Table:
    """Every measure with the outcome: within pairs and over all runs."""
    table = study["associations"]
    rows = []
    for name, association in table["measures"].items():
        p = association["p_value"] if association["primary"] else association["p_adjusted"]
        rows.append(
            (
                _measure(study, name),
                coefficient(association["spearman_within_pairs"]),
                "-" if p is None or association["refusal"] else p_number(p),
                coefficient(association["spearman_over_runs"]),
            )
        )
    outcome = study["titles"][table["outcome"]]
    sizes = sizes_of(table)
    note = (
        f"Spearman's rho with {outcome}, 95% intervals; {sizes} runs. p: permutation within task pairs, Holm-adjusted over "
        f"{table['tests']} measures but for the primary one (*), which was named beforehand. Values of a setting are "
        "permuted with all runs that have them. A correlation is no cause."
    )
    header = ("measure", "within pairs", "p", "over all runs")
    return Table(f"What goes with {outcome} ({study['pairs']} task pairs)", header, tuple(rows), note)


def sizes_of(associations: Study) -> str:
    """How many runs the measures were known in: "48", or "17 or 48"."""
    return " or ".join(map(str, sorted({measure["n_runs"] for measure in associations["measures"].values()})))


def robustness_table(study: Study) -> Table:
    """Every measure within pairs given other numbers, and as a forecast for task pairs it has not seen."""
    table = study["associations"]["measures"]
    unseen = {prediction["measure"]: prediction for prediction in study["predictions"]}
    partials = {
        name: {tuple(partial["given"]): partial["within_pairs"] for partial in association["partial"]}
        for name, association in table.items()
    }
    given = list(dict.fromkeys(names for partial in partials.values() for names in partial))
    rows = []
    for name, partial in partials.items():
        rows.append(
            (_measure(study, name), *(coefficient(partial.get(names)) for names in given), _gain(unseen.get(name)))
        )
    titles = [" and ".join(study["titles"].get(name, name) for name in names) for names in given]
    note = (
        "within pairs given other numbers, by the residual method on ranks: |D| and learning may be mediators, so no column "
        "is nearer the truth. Unseen pairs: how much the mean absolute error of forecasting the pairs of a first task from the "
        "others falls against taking their mean."
    )
    header = ("measure", *(f"given {title}" for title in titles), "unseen pairs")
    return Table("The same, given other numbers", header, tuple(rows), note)


def _measure(study: Study, name: str) -> str:
    primary = study["associations"]["primary"] == name
    return f"{study['titles'][name]}{'*' if primary else ''}"


def effects_table(study: Study) -> Table:
    """Every arm against the baseline."""
    rows = []
    for effect in study["effects"]:
        difference, matched = effect["difference"], effect["matched"]
        by = with_interval(difference["value"], difference["interval"])
        rows.append(
            (
                f"{effect['arm']} instead of {effect['baseline']}" + (" (control)" if effect["control"] else ""),
                study["titles"].get(effect["outcome"], effect["outcome"]),
                f"{difference['n_runs']} of {units(difference)}",
                _factor(difference) if effect.get("ratio") else by,
                "-" if difference["test"] is None else p_number(difference["test"]["p_value"]),
                "-" if matched is None else coefficient(matched["adjusted"]),
            )
        )
    note = (
        "mean difference of runs that are otherwise alike, 95% interval, sign-flip p, over first tasks (task pairs, where no "
        "two share a first task), and only from six of them; x: geometric mean of their ratios; "
        "at matched learning: adjusted to equal learning of the last task, where both arms learnt alike. A control shares its "
        "first checkpoint with the baseline."
    )
    header = ("arm", "changes", "runs", "by", "p", "at matched learning")
    return Table("Interventions", header, tuple(rows), note)


def _factor(difference: Study) -> str:
    """A difference of logarithms as the factor that it is."""
    value, interval = math.exp(difference["value"]), difference["interval"]
    ends = "" if interval is None else f" [{math.exp(interval['low']):.2f}, {math.exp(interval['high']):.2f}]"
    return f"x {value:.2f}{ends}"


def _gain(prediction: Study | None) -> str:
    return "-" if prediction is None else coefficient(prediction["gain_over_mean"])


def study_markdown(study: Study) -> str:
    """study.md: the answers first, then tables, figures, what failed, and how to do it again."""
    parts = [f"# {study['name']}: {study['runs']} runs of {study['pairs']} task pairs", ""]
    if "model" in study:
        parts += [f"Model: {study['model']}. Tasks: {study['tasks']}.", ""]
    for question, sentences in conclusions(study):
        parts += [f"**{question}**", "", *(f"{sentence}\n" for sentence in sentences)]
    for table in study_tables(study):
        parts += [f"## {table.title}", "", *markdown_rows(table), "", table.note, ""]
    if study["figures"]:
        parts += ["## Figures", "", *(f"![{name}]({name})" for name in study["figures"]), ""]
    if study["absent"]:
        parts += [f"Not measured in this study: {', '.join(study['absent'])}.", ""]
    if study["failures"]:
        parts += ["## Cells that failed", "", *(f"- {name}: {why}" for name, why in study["failures"].items()), ""]
    primary = study["analysis"]["primary"]
    arms = ", ".join(f"{arm} ({n})" for arm, n in study["arms"].items())
    parts += [
        "## How",
        "",
        f"- Cells: {study['runs']} of {study['planned']}; arms: {arms}",
        f"- Primary measure, named before the study: {study['titles'].get(primary, primary)}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in study['versions'].items())}",
        "- Every run is one seed of one small model on few items; the runs of a task pair resemble one another, so the tests "
        "are within pairs and the intervals of effects over first tasks.",
        "- Again: `llm-forgetting study study.yaml` with the `study.yaml` beside this file; from the stored records alone, in "
        "seconds: `llm-forgetting study --records records.json.gz`",
        "",
    ]
    return "\n".join(parts)
