"""Figure of a study's mean frontiers: a panel per arm, the baseline in grey in each."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_forgetting.report.figures.style import HEADING, LINE_COLOURS, PAGE, QUIET, SMALL, even_ticks
from llm_forgetting.report.tables.study_frontiers import SHOWN
from llm_forgetting.report.views.study import StudyContent

_COLUMNS = 4


def frontiers_figure(found: StudyContent) -> Figure:
    """Mean forgetting of the first task against what was learnt of the last, of one measure; lower is better."""
    arms = [effect["arm"] for effect in found["effects"]]
    columns = min(_COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(PAGE, 1.55 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    baseline, unit = found["baseline"], " (nats)" if found["measure"] == "loss" else " (share of right answers)"
    for panel, effect in zip(panels.flat, found["effects"], strict=False):
        _mean_frontier(panel, found["curves"][baseline], QUIET, "--")
        shown = effect["shown"]
        _mean_frontier(panel, found["curves"][effect["arm"]], LINE_COLOURS[0 if shown < 0 else 1 if shown else 2], "-")
        panel.set_title(f"{effect['arm']}: {SHOWN[shown]}", loc="left", fontsize=SMALL)
        panel.spines[["top", "right"]].set_visible(False)
        even_ticks(panel.yaxis, 4)
    for panel in list(panels.flat)[len(arms) - columns : len(arms)]:  # the lowest of every column
        panel.tick_params(labelbottom=True)
    for panel in list(panels.flat)[len(arms) :]:
        panel.set_visible(False)
    figure.supxlabel(f"learnt of the last task, as a share of what {baseline} learnt", fontsize=HEADING)
    figure.supylabel(f"forgotten of the first{unit}", fontsize=HEADING)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _mean_frontier(axes: Axes, curve: StudyContent, colour: str, dashes: str) -> None:
    if not curve["moved"]:
        axes.plot(curve["learning"], curve["forgetting"], color=colour, linestyle=dashes, linewidth=1.2)
    if curve["end"] is not None:
        marker = "*" if curve["moved"] else "o"
        axes.plot(*curve["end"], marker=marker, color=colour, markersize=7 if curve["moved"] else 3.5, linestyle="none")
