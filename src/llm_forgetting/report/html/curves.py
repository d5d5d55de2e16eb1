"""What is drawn as lines: training, and the loss along random directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.lines import Ensemble, ensembles_of
from llm_forgetting.report.figures.style import step_unit
from llm_forgetting.report.html.blocks import Block, Figures, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.tables.run import Table, measured, number, spoken, value_and_error

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def line(x: Floats, y: Floats, name: str, index: int, **more: Any) -> Spec:
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


def training_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Loss of every step of training, a plot per task, on one axis."""
    phases = [(phase["task"], [entry for entry in phase["log"] if "loss" in entry]) for phase in results["training"]]
    shown = [(task, log) for task, log in phases if log]
    if not shown:
        return [Prose("The log of this run's training holds no losses.", quiet=True)]
    top = max((float(entry["loss"]) for _, log in shown for entry in log), default=1.0)
    plots = [_training_plot(k, task, log, top) for k, (task, log) in enumerate(shown)]
    return [
        Figures(plots, min(len(plots), 2), numbers=[_epochs(shown)], note="Loss of the batch before each step, nats.")
    ]


def _training_plot(k: int, task: str, log: Sequence[Mapping[str, Any]], top: float) -> Plot:
    steps, losses = (np.array([entry[key] for entry in log], dtype=float) for key in ("step", "loss"))
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "training loss (nats)"}, "range": [0, 1.05 * top if np.isfinite(top) else None]},
        "showlegend": False,
    }
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    facts = (f"{len(log)} steps", *([f"learning rate up to {max(map(float, rates)):g}"] if rates else []))
    alt = f"Training on {spoken(task)}: loss from {number(losses[0])} to {number(losses[-1])} nats in {len(log)} steps."
    return Plot(f"Fine-tuning on {spoken(task)}", alt, [line(steps, losses, "loss", k)], layout, facts, aspect=0.55)


def _epochs(shown: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Table:
    rows = []
    for task, log in shown:
        epochs = np.ceil(np.array([entry["epoch"] for entry in log], dtype=float) - 1e-6).astype(int)
        losses = np.array([entry["loss"] for entry in log], dtype=float)
        rows += [
            (spoken(task), str(epoch), number(losses[epochs == epoch].mean()), str(int((epochs == epoch).sum())))
            for epoch in np.unique(epochs)
        ]
    return Table("Mean training loss by epoch", ("task", "epoch", "loss (nats)", "steps"), tuple(rows))


def lines_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Rises along random directions: every line, their mean, and one standard error around it."""
    ensembles = ensembles_of(results)
    tasks = list(dict.fromkeys(ensemble.task for ensemble in ensembles))
    ensembles = sorted(ensembles, key=lambda ensemble: tasks.index(ensemble.task))
    columns = min(len({ensemble.checkpoint for ensemble in ensembles}), 3)
    plots = [_bundle(e, _limits([o for o in ensembles if o.task == e.task])) for e in ensembles]
    note = (
        "Thin: one random direction each; bold: their mean, with a band of one standard error; dashed: the basin, in which the "
        f"mean rise is at most {ensembles[0].tau:g} nats. Height is shared by the plots of one task."
    )
    return [Figures(plots, columns, note=note, numbers=[_steps_table(ensembles)])]


def _limits(ensembles: Sequence[Ensemble]) -> list[float | None]:
    values = np.concatenate([e.rises.ravel() for e in ensembles])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [-1.0, 1.0]
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    spare = 0.05 * (high - low) or 0.5
    return [low - spare, high + spare]


def _bundle(ensemble: Ensemble, limits: list[float | None]) -> Plot:
    steps, mean, stderr = ensemble.steps, ensemble.mean, ensemble.stderr
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
        "shapes": [_upright(edge) for edge in edges],
        "showlegend": False,
        "margin": {"l": 54, "r": 8, "t": 8, "b": 40},
    }
    facts = tuple(fact.replace("\N{NO-BREAK SPACE}", " ") for fact in ensemble.caption.facts)
    rise = f"{value_and_error(mean[-1], stderr[-1])} and {value_and_error(mean[0], stderr[0])}"
    alt = f"{ensemble.caption.heading} along random directions: mean rise {rise} nats at the two ends."
    return Plot(ensemble.caption.heading, alt, data, layout, facts, ensemble.caption.alarms, aspect=0.6)


def _upright(x: float) -> Spec:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": "@line1", "width": 1.5, "dash": "dash"},
    }


def _steps_table(ensembles: Sequence[Ensemble]) -> Table:
    """Mean rise ± standard error at a few steps."""
    places = np.linspace(0, len(ensembles[0].steps) - 1, 9).round().astype(int)
    header = ("loss of", *(f"{ensembles[0].steps[n]:.2g}" for n in places))
    rows = tuple(
        (
            f"{spoken(e.task)}, {spoken(e.checkpoint)}",
            *(value_and_error(e.mean[n], e.stderr[n]) if e.stderr[n] else measured(e.mean[n]) for n in places),
        )
        for e in ensembles
    )
    return Table("Mean rise by step (nats)", header, rows, "± one standard error over the directions.")
