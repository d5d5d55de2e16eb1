"""Plots of a study's mean frontiers: one per arm, with the baseline."""

import numpy as np

from llm_forgetting.report.html.blocks import Block, Figures, Numbers, Plot, Prose, Spec, plain
from llm_forgetting.report.html.lines import line
from llm_forgetting.report.tables.study_frontiers import SHOWN, frontier_tables
from llm_forgetting.report.views.study import StudyContent


def frontier_blocks(study: StudyContent) -> list[Block]:
    """Every arm's mean frontier in loss, and the tables of both measures; a sentence where no run was scored on the way."""
    found = next((each for each in study.get("frontiers") or [] if each["measure"] == "loss"), None)
    if found is None:
        return [Prose("No run of this study was scored during training (evaluation.during).", quiet=True)]
    note = (
        f"Dashed: {found['baseline']}. Lower is better. Means over the runs that learnt so much, at least half of them; a dot "
        "or star is where the runs ended on average, a star after a method moved the model."
    )
    plots = [_plot(found, effect) for effect in found["effects"]]
    return [Figures(plots, min(3, len(plots)), note=note), *map(Numbers, frontier_tables(study))]


def _plot(found: StudyContent, effect: StudyContent) -> Plot:
    arm, baseline = effect["arm"], found["baseline"]
    data = [*_mean_frontier(found["curves"][baseline], baseline, 1), *_mean_frontier(found["curves"][arm], arm, 0)]
    layout = {
        "xaxis": {"title": {"text": f"learnt, of what {plain(baseline)} learnt"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "forgotten (nats)"}},
        "showlegend": False,
    }
    difference = f"{float(effect['difference']['value']):+.2f} nats at matched learning"
    title = f"{arm}: {SHOWN[effect['shown']]}"
    return Plot(title, f"{title}, {difference}.", data, layout, (difference,), aspect=0.75)


def _mean_frontier(curve: StudyContent, name: str, index: int) -> list[Spec]:
    found: list[Spec] = (
        [] if curve["moved"] else [line(np.array(curve["learning"]), np.array(curve["forgetting"]), name, index)]
    )
    if curve["end"] is not None:
        marker = {"symbol": "star" if curve["moved"] else "circle", "size": 12 if curve["moved"] else 7}
        x, y = curve["end"]
        found.append(
            line(
                np.array([x]),
                np.array([y]),
                f"{name}, end",
                index,
                mode="markers",
                marker={**marker, "color": f"@line{index}"},
            )
        )
    return found
