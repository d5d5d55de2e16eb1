"""Plots of learning curves, and of what was forgotten against what was learnt."""

from llm_forgetting.arrays import Floats
from llm_forgetting.report.html.axes import error_bars
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Spec
from llm_forgetting.report.html.lines import SYMBOLS, line
from llm_forgetting.report.tables.frontier import frontier_table
from llm_forgetting.report.tables.run import display_name, number
from llm_forgetting.report.views.frontier import FrontierView, LearningCurve, frontier_views, learning_curves
from llm_forgetting.results import Results


def frontier_blocks(results: Results) -> list[Block]:
    """Curves of every training that was scored on the way, and the frontiers; nothing where none was."""
    scored = [training.during for training in results.training if training.during is not None]
    if not scored:
        return []
    plots = [_curves(display_name(during.tasks[-1].task), learning_curves(during)) for during in scored]
    plots += [_frontier(view) for view in frontier_views(results)]
    table = frontier_table(results)
    note = (
        "Scores while a task was learnt. Bars: one standard error over the items; of changes, before and after paired."
    )
    return [Figures(plots, min(len(plots), 2), note=note, numbers=[table] if table.rows else [])]


def _curves(learnt: str, curves: list[LearningCurve]) -> Plot:
    data = [_dots(line(curve.fractions, curve.loss, display_name(curve.task), n), n) for n, curve in enumerate(curves)]
    for spec, curve in zip(data, curves, strict=True):
        if curve.stderr is not None:
            spec["error_y"] = _bars(curve.loss, curve.stderr)
    layout = {
        "xaxis": {"title": {"text": "fraction of the training"}, "range": [-0.03, 1.03]},
        "yaxis": {"title": {"text": "loss (nats)"}, "rangemode": "tozero"},
        "showlegend": len(curves) > 1,
    }
    ends = "; ".join(
        f"{display_name(curve.task)} from {number(curve.loss[0])} to {number(curve.loss[-1])} nats" for curve in curves
    )
    return Plot(f"Learning curves: {learnt}", f"Loss while {learnt} was learnt: {ends}.", data, layout, aspect=0.62)


def _frontier(view: FrontierView) -> Plot:
    learnt, forgotten = display_name(view.learnt), display_name(view.forgotten)
    spec = _dots(line(view.learning, view.forgetting, forgotten, 0), 0)
    if view.learning_stderr is not None and view.forgetting_stderr is not None:
        spec["error_x"] = _bars(view.learning, view.learning_stderr)
        spec["error_y"] = _bars(view.forgetting, view.forgetting_stderr)
    unit = "" if view.measure == "accuracy" else " (nats)"
    layout = {
        "xaxis": {
            "title": {"text": f"learnt: {view.named} of {learnt}{unit}"},
            "zeroline": True,
            "zerolinecolor": "@quiet",
        },
        "yaxis": {"title": {"text": f"forgotten of {forgotten}{unit}"}, "zeroline": True, "zerolinecolor": "@quiet"},
        "showlegend": False,
    }
    specs = [spec]
    if view.moved:
        star = {"x": [view.end[0]], "y": [view.end[1]], "name": "end, after a method", "showlegend": True}
        specs.append({**spec, **star, "mode": "markers", "marker": {"symbol": "star", "size": 11}})
        layout["showlegend"] = True
    end = f"{number(view.end[1])} forgotten for {number(view.end[0])} learnt{unit}"
    title = f"Frontier in {view.named}: {learnt} learnt, {forgotten} forgotten"
    return Plot(title, f"{title}. In the end {end}.", specs, layout, (f"in the end {end}",), aspect=0.62)


def _bars(values: Floats, stderr: Floats) -> Spec:
    return error_bars(values, values - stderr, values + stderr, "@quiet/0.7", cap=0)


def _dots(spec: Spec, n: int) -> Spec:
    return {**spec, "mode": "lines+markers", "marker": {"symbol": SYMBOLS[n % len(SYMBOLS)], "size": 6}}
