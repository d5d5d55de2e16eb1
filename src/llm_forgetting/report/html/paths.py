"""Plots of the loss on the straight path from one checkpoint to the next."""

from collections.abc import Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.html.axes import above, upright
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Prose, Spec, rounded
from llm_forgetting.report.html.lines import SYMBOLS, line
from llm_forgetting.report.tables.landscape import between_table
from llm_forgetting.report.tables.run import Scanned, Table, display_name, measured, number
from llm_forgetting.report.tables.words import EXACT_MATCH, capital, profiled_name
from llm_forgetting.report.views.paths import PathView, ProfileView, path_views


def path_blocks(results: Scanned) -> list[Block]:
    """Paths and their table; a sentence where none was measured."""
    paths = path_views(results)
    return [_paths(paths, between_table(results))] if paths else [absent("path between checkpoints", results)]


def absent(what: str, results: Scanned) -> Prose:
    """A sentence for what was not measured between checkpoints."""
    why = " ".join(f"{sentence}." for sentence in results.between_notes)
    return Prose(f"The {what} was not measured in this run. {why}".strip(), quiet=True)


def _paths(paths: Sequence[PathView], table: Table) -> Figures:
    plots = [plot for path in paths for plot in (losses_plot(path), _accuracies(path))]
    forecast = (
        "thin dotted lines: the quadratic forecast from slope and curvature at t = 0, drawn as far as the loss goes; "
        if any(path.forecast for path in paths)
        else ""
    )
    note = (
        "t = 0 is the earlier checkpoint, t = 1 the later. Dots: measured; lines: the fit through them; "
        f"{forecast}the upright line: t*."
    )
    if profiled_name([view.profile for path in paths for view in path.profiles]) == EXACT_MATCH:
        note += " Here a completion counts as right where every token has more than half of the probability."
    return Figures(plots, 2, note, [table, _values(paths)])


def losses_plot(path: PathView) -> Plot:
    """Every task's loss along a path, and its forecast."""
    data: list[Spec] = []
    for n, view in enumerate(path.profiles):
        name, loss = display_name(view.task), view.profile.loss
        data.append(line(path.scan.steps, loss, name, n))
        data.append(_measured(path, view.profile.at_nodes.loss, n))
        finite = loss[np.isfinite(loss)]
        if view.quadratic is not None and finite.size:
            shown = np.where(view.quadratic <= 1.1 * finite.max(), view.quadratic, np.nan)
            thin = {"color": f"@line{n % 6}", "width": 1.5, "dash": "dot"}
            data.append(line(path.scan.steps, shown, f"forecast for {name}", n, line=thin))
    caption, repair = path.caption, path.scan.repair.t
    alt = f"Loss along the path, {caption.heading}: {'; '.join(map(_describe, path.profiles))}. t* = {repair:.2f}."
    layout = _layout("loss (nats)", repair)
    return Plot(f"Loss, {caption.heading}", alt, data, layout, caption.plain_facts, caption.alarms)


def _describe(view: ProfileView) -> str:
    loss = view.profile.loss
    barrier = f", barrier {measured(view.profile.barrier.value)}" if view.has_barrier else ", no barrier"
    return f"{display_name(view.task)} from {number(loss[0])} to {number(loss[-1])} nats{barrier}"


def _accuracies(path: PathView) -> Plot:
    data, words, measure = [], [], profiled_name([view.profile for view in path.profiles])
    for n, view in enumerate(path.profiles):
        name, accuracy = display_name(view.task), view.profile.accuracy
        data.append(line(path.scan.steps, accuracy, name, n))
        data.append(_measured(path, view.profile.at_nodes.accuracy, n))
        words.append(f"{name} from {number(accuracy[0])} to {number(accuracy[-1])}")
    layout = _layout(measure, path.scan.repair.t)
    layout["yaxis"]["range"] = [-0.04, 1.04]
    title = capital(measure)
    return Plot(f"{title}, {path.caption.heading}", f"{title} along the path: {'; '.join(words)}.", data, layout)


def _measured(path: PathView, values: Floats, n: int) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(path.scan.nodes[path.between]),
        "y": rounded(values[path.between]),
        "hoverinfo": "skip",
        "marker": {"color": f"@line{n % 6}", "symbol": SYMBOLS[n % 6], "size": 7},
        "showlegend": False,
    }


def _layout(label: str, repair: float) -> Spec:
    return {
        "xaxis": {"title": {"text": "fraction of the path, t"}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": label}},
        "shapes": [upright(repair, {"color": "@ink", "width": 1.2, "dash": "dot"})],
        "annotations": [above(repair, f"t* = {repair:.2f}")],
        "legend": {"y": 1.1},
        "margin": {"l": 50, "r": 12, "t": 56, "b": 40},
    }


def _values(paths: Sequence[PathView]) -> Table:
    """Losses along every path, at tenths of it."""
    tenths = np.linspace(0, 1, 11)
    rows = []
    for path in paths:
        at = [int(np.abs(path.scan.steps - t).argmin()) for t in tenths]
        rows += [
            (f"{display_name(view.task)}, {path.caption.heading}", *(number(view.profile.loss[n]) for n in at))
            for view in path.profiles
        ]
    return Table("Loss along the path (nats)", ("loss of", *(f"t = {t:.1f}" for t in tenths)), tuple(rows))
