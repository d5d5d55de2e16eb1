"""Plots of the loss along random directions, and lines in general."""

from collections.abc import Sequence

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.html.axes import upright
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Rounded, Spec, plain, rounded
from llm_forgetting.report.tables.run import Scanned, Table, display_name, measured, value_and_error
from llm_forgetting.report.views.captions import step_unit
from llm_forgetting.report.views.lines import LineEnsemble, line_ensembles

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def line(x: Floats, y: Floats, name: str, index: int, **more: object) -> Spec:
    """A line in the colour and dashes of `index`."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(x),
        "y": rounded(y),
        "name": plain(name),
        "line": {"color": f"@line{index % 6}", "dash": DASHES[index % 6], "width": 2},
        "hoverinfo": "x+y+name",
        **more,
    }


def lines_blocks(results: Scanned) -> list[Block]:
    """Rises along random directions: every line, their mean, and one standard error around it."""
    ensembles = line_ensembles(results)
    tasks = list(dict.fromkeys(ensemble.task for ensemble in ensembles))
    ensembles = sorted(ensembles, key=lambda ensemble: tasks.index(ensemble.task))
    columns = min(len({ensemble.checkpoint for ensemble in ensembles}), 3)
    basin = f" Dashed: the basin, in which the mean rise is at most {ensembles[0].tau:g} nats."
    note = (
        "Thin: one random direction each; bold: their mean, with a band of one standard error."
        f"{basin if any(ensemble.radius is not None for ensemble in ensembles) else ''} "
        "Height is shared by the plots of one task."
    )
    return [Figures(ensemble_plots(ensembles), columns, note=note, numbers=[_steps_table(ensembles)])]


def ensemble_plots(ensembles: Sequence[LineEnsemble]) -> list[Plot]:
    """A plot each; those of one task are equally high."""
    return [_ensemble_plot(e, _limits([o for o in ensembles if o.task == e.task])) for e in ensembles]


def _limits(ensembles: Sequence[LineEnsemble]) -> list[Rounded]:
    values = np.concatenate([e.rises.ravel() for e in ensembles])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [-1.0, 1.0]
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    spare = 0.05 * (high - low) or 0.5
    return [low - spare, high + spare]


def _ensemble_plot(ensemble: LineEnsemble, limits: list[Rounded]) -> Plot:
    steps, mean, stderr, caption = ensemble.steps, ensemble.mean, ensemble.stderr, ensemble.caption
    known = np.isfinite(mean + stderr)
    around = np.concatenate([steps[known], steps[known][::-1]])
    band = np.concatenate([(mean - stderr)[known], (mean + stderr)[known][::-1]])
    thin: Spec = {"color": "@quiet/0.6", "width": 1, "dash": "solid"}
    data = [
        line(steps, rise, "one direction", 0, line=thin, showlegend=False, hoverinfo="skip") for rise in ensemble.rises
    ]
    data.append(
        {
            "type": "scatter",
            "x": rounded(around),
            "y": rounded(band),
            "fill": "toself",
            "fillcolor": "@line0/0.28",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
        }
    )
    data.append(
        line(
            steps,
            mean,
            "mean",
            0,
            line={"color": "@line0", "width": 3},
            hovertemplate="%{x:.2f}: %{y:.3g}<extra></extra>",
        )
    )
    edges = [] if ensemble.radius is None else [-ensemble.radius, ensemble.radius]
    layout = {
        "xaxis": {"title": {"text": f"step ({plain(step_unit(ensemble.space))})"}, "range": rounded(steps[[0, -1]])},
        "yaxis": {"title": {"text": "rise of the loss (nats)"}, "range": limits},
        "shapes": [upright(edge, {"color": "@line1", "width": 1.5, "dash": "dash"}) for edge in edges],
        "showlegend": False,
        "margin": {"l": 54, "r": 8, "t": 8, "b": 40},
    }
    rise = f"{value_and_error(mean[-1], stderr[-1])} and {value_and_error(mean[0], stderr[0])}"
    alt = f"{caption.heading} along random directions: mean rise {rise} nats at the two ends."
    return Plot(caption.heading, alt, data, layout, caption.plain_facts, caption.alarms, aspect=0.6)


def _steps_table(ensembles: Sequence[LineEnsemble]) -> Table:
    """Mean rise ± standard error at a few steps."""
    places = np.linspace(0, len(ensembles[0].steps) - 1, 9).round().astype(int)
    header = ("loss of", *(f"{ensembles[0].steps[n]:.2g}" for n in places))
    rows = tuple(
        (
            f"{display_name(e.task)}, {display_name(e.checkpoint)}",
            *(value_and_error(e.mean[n], e.stderr[n]) if e.stderr[n] else measured(e.mean[n]) for n in places),
        )
        for e in ensembles
    )
    return Table("Mean rise by step (nats)", header, rows, "± one standard error over the directions.")
