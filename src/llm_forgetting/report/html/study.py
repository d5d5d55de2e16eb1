"""The page of a study: questions and answers, then the measures, forecasts, arms and failures. From study.json alone."""

from llm_forgetting.report.html.blocks import Block, Code, Figures, Numbers, Page, Points, Prose, Section, Tile
from llm_forgetting.report.html.study_frontiers import frontier_blocks
from llm_forgetting.report.html.study_plots import measures_plot, scatter_plot, trade_off_plot
from llm_forgetting.report.tables.run import Table, value_and_error
from llm_forgetting.report.tables.study import conclusions, effects_table, measures_table, robustness_table, verdict
from llm_forgetting.report.views.study import StudyContent, title


def study_page(study: StudyContent) -> Page:
    """The first question and a picture, then all others; what the study did not measure is said in a sentence."""
    (question, sentences), *others = conclusions(study)
    more = (
        [Section("answers", "The other questions", [Points(said, asked) for asked, said in others])] if others else []
    )
    return Page(
        title=f"Study {study['name']}",
        kicker=f"llm-forgetting study · {study['runs']} runs of {study['pairs']} task pair{'s' if study['pairs'] != 1 else ''}",
        set_up=f"Model: {study['model']}. Tasks: {study['tasks']}." if "model" in study else "",
        answers=[(question, sentences if study["answers"].get("methods") else [f"{verdict(study)}.", *sentences])],
        tiles=_tiles(study),
        warnings=[f"{name} failed: {why}" for name, why in study["failures"].items()],
        sections=[
            *([Section("methods", "At matched learning", frontier_blocks(study))] if study.get("frontiers") else []),
            Section("runs", "The runs", _runs(study)),
            *more,
            Section("measures", "What goes with forgetting", _measures(study)),
            Section("forecast", "Forecast and observed", _forecast(study)),
            Section("arms", "Interventions", _arms(study)),
            Section("method", "Method", [Points(_METHOD)]),
            Section("again", "How to reproduce", _again(study)),
        ],
        footer=["Every run is one seed of one small model on few items."],
    )


def _tiles(study: StudyContent) -> list[Tile]:
    failed = len(study["failures"])
    return [
        Tile("Runs", f"{study['runs']} of {study['planned']}", f"{failed} failed" if failed else "none failed"),
        Tile("Task pairs", str(study["pairs"]), "runs of one pair resemble one another"),
        *([_primary(study)] if "associations" in study else []),
    ]


def _primary(study: StudyContent) -> Tile:
    table = study["associations"]
    rho = table["measures"][table["primary"]]["spearman_within_pairs"]
    primary, outcome = title(study, table["primary"]), title(study, table["outcome"])
    label = f"Spearman's rho of {primary} with {outcome}, within pairs"
    if rho is None:
        return Tile(label, "-", "not to be had from these runs")
    interval = rho["interval"]
    note = "no interval" if interval is None else f"95% interval {interval['low']:+z.2f} to {interval['high']:+z.2f}"
    return Tile(label, f"{float(rho['value']):+z.2f}", note)


def _runs(study: StudyContent) -> list[Block]:
    if "associations" not in study:
        return [Prose("No run of this study holds the primary measure, so nothing was associated.", quiet=True)]
    analysis = study["analysis"]
    return [Figures([scatter_plot(study, analysis["primary"], analysis["outcome"])], 1, "A dot is one run, one seed.")]


def _measures(study: StudyContent) -> list[Block]:
    if "associations" not in study:
        return [Prose("No measure of this study was associated with forgetting.", quiet=True)]
    absent = study["absent"]
    return [
        Figures([measures_plot(study)], 1, "Bars: 95% intervals."),
        Numbers(measures_table(study)),
        Numbers(robustness_table(study)),
        *([Prose(f"Not measured in this study: {', '.join(absent)}.", quiet=True)] if absent else []),
    ]


def _forecast(study: StudyContent) -> list[Block]:
    calibration = study.get("calibration")
    if not calibration:
        return [Prose("No forecast was compared with what happened in this study.", quiet=True)]
    plot = scatter_plot(study, study["analysis"]["forecast"], "observed", same=True)
    return [
        Figures([plot], 1, "Dashed: forecast and observed alike."),
        *([Numbers(table)] if (table := _calibration(calibration)).rows else []),
    ]


# The calibration's numbers, how they are called, and their style.
_CALIBRATION = (
    ("mean_error", "mean error (nats)", "+z.2f"),
    ("mean_absolute_error", "mean absolute error (nats)", ".2f"),
    ("sign_right", "right in sign (share of runs)", ".2f"),
    ("slope", "slope (calibrated: 1)", "+z.2f"),
    ("intercept", "intercept (nats; calibrated: 0)", "+z.2f"),
    ("rank_correlation", "Spearman's rho over all runs", "+z.2f"),
)


def _calibration(calibration: StudyContent) -> Table:
    """Every number of the calibration that exists, with its interval or standard error."""
    rows = [
        (name, _with_error(estimate, style))
        for key, name, style in _CALIBRATION
        if (estimate := calibration.get(key)) is not None and estimate["value"] is not None
    ]
    return Table("Calibration of the forecast", ("number", "value [95% interval]"), tuple(rows))


def _with_error(estimate: StudyContent, style: str) -> str:
    value, interval = float(estimate["value"]), estimate.get("interval")
    if interval:
        return f"{value:{style}} [{float(interval['low']):{style}}, {float(interval['high']):{style}}]"
    stderr = estimate.get("stderr")
    return value_and_error(value, None if stderr is None else float(stderr))


def _arms(study: StudyContent) -> list[Block]:
    counts = Table("Runs of every arm", ("arm", "runs"), tuple((arm, str(n)) for arm, n in study["arms"].items()))
    if not study.get("effects"):
        return [Prose("This study compares no interventions.", quiet=True), Numbers(counts)]
    return [*_trade_off(study), Numbers(effects_table(study)), Numbers(counts)]


def _trade_off(study: StudyContent) -> list[Block]:
    """Where runs ended, by arm; nothing where their frontiers are shown, which say more."""
    if study.get("frontiers"):
        return []
    plot = trade_off_plot(study, study["analysis"]["learning"], study["analysis"]["outcome"])
    return [Figures([plot], 1, "Further right learnt more, further down forgot less: lower right is better.")]


_METHOD = (
    "Correlations are centred within task pairs and tested by permuting within them; a correlation is no cause.",
    "Runs that share a first checkpoint or a setting are permuted together; intervals within pairs are of these permutations.",
    "Task pairs that share a first task are one unit: they share its checkpoints.",
    "Other intervals are over units, and effects of arms are means over them; both need six.",
    "The primary measure was named before the study was run; the others are adjusted (Holm).",
    "Where runs or pairs are too few for a conclusion, the answer says so.",
)


def _again(study: StudyContent) -> list[Block]:
    primary = study["analysis"]["primary"]
    analysis = (
        ("primary measure, named beforehand", title(study, primary)),
        *((name.replace("_", " "), _listed(value)) for name, value in study["analysis"].items() if name != "primary"),
    )
    return [
        Prose(
            "With the study.yaml beside this file; from the stored records alone, in seconds, by the second command."
        ),
        Code("llm-forgetting study study.yaml\nllm-forgetting study --records records.json.gz"),
        Numbers(Table("Analysis", ("what", "value"), analysis)),
        Numbers(Table("Versions", ("package", "version"), tuple(study["versions"].items()))),
    ]


def _listed(value: object) -> str:
    return ", ".join(map(_listed, value)) if isinstance(value, list) else str(value)
