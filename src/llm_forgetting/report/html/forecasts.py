"""Plot of forecast against observed: slope and curvature at a checkpoint, and what happened to the next."""

import math
from collections.abc import Sequence

import numpy as np

from llm_forgetting.forgetting.records import Line
from llm_forgetting.report.html.axes import error_bars, ticks_of
from llm_forgetting.report.html.blocks import Block, Figures, Numbers, Plot, Prose, Spec, plain, rounded
from llm_forgetting.report.html.lines import SYMBOLS
from llm_forgetting.report.tables.curvature import forecast_table
from llm_forgetting.report.tables.run import SPLIT_WORDS, measured, value_and_error
from llm_forgetting.report.views.axis_scale import AxisScale
from llm_forgetting.report.views.forecasts import ComparedForecast, compared_forecasts, forecast_sentence
from llm_forgetting.results import Results

ORDERS = (("first_order", "first order"), ("second_order", "second order"))
# A forecast further out than this many times the largest observed change would press all else into a corner.
FAR = 8.0
# More entries than this are described by the table alone.
MOST_DESCRIBED = 6


def forecast_blocks(results: Results, items: Sequence[Line]) -> list[Block]:
    """The plot and the table; the bars come from the items."""
    if not results.forecasts:
        return [Prose("Nothing was forecast in this run (curvature.forecast, or a single task).", quiet=True)]
    note = (
        "A dot on the dashed line was forecast right; above it more was forgotten than forecast, below it less. The path in "
        "between, with the quadratic over it, is in the section before."
    )
    forecasts = compared_forecasts(results, items)
    failed = forecast_sentence(forecasts)
    return [
        *([Prose(failed)] if failed else []),
        Figures([forecast_plot(forecasts)], 2, note),
        Numbers(forecast_table(results)),
    ]


def forecast_scale(forecasts: Sequence[ComparedForecast]) -> AxisScale:
    """Scale of both axes: even, unless forecasts lie far out of what was observed."""
    observed = max((abs(each.observed) for each in forecasts if math.isfinite(each.observed)), default=0.0)
    values = [abs(value) for each in forecasts for value in each.forecasts.values() if math.isfinite(value)]
    return AxisScale("asinh", observed) if 0 < FAR * observed < max(values, default=0.0) else AxisScale()


def forecast_plot(forecasts: Sequence[ComparedForecast]) -> Plot:
    """A dot per order, task and split: forecast to the right, observed upwards, on one scale."""
    scale = forecast_scale(forecasts)
    values = np.array([x for each in forecasts for x in (0.0, each.observed, *each.forecasts.values())])
    values = values[np.isfinite(values)]
    ends = scale.place(np.array([values.min(), values.max()]))
    spare = 0.07 * float(ends[1] - ends[0]) or 0.5
    limits = [float(ends[0]) - spare, float(ends[1]) + spare]
    axis = {
        "range": limits,
        "zeroline": True,
        "zerolinecolor": "@quiet",
        "nticks": 7,
        **ticks_of(scale, values),
    }
    alike = {"color": "@quiet", "dash": "dash", "width": 1.5}
    line: Spec = {"type": "scatter", "mode": "lines", "x": limits, "y": limits, "line": alike}
    data = [{**line, "name": "forecast = observed", "hoverinfo": "skip"}]
    splits = list(dict.fromkeys(each.split for each in forecasts))
    for n, (key, label) in enumerate(ORDERS):
        for split in splits:
            shown = [each for each in forecasts if each.split == split]
            data.append(_dots(shown, key, f"{label}, {SPLIT_WORDS[split]}", n, scale, hollow=split != splits[0]))
    layout = {
        "xaxis": {"title": {"text": "forecast change of the loss (nats)"}, **axis},
        "yaxis": {"title": {"text": "observed (nats)"}, "scaleanchor": "x", "constrain": "domain", **axis},
        "legend": {"y": 1.02},
        "margin": {"l": 54, "r": 12, "t": 56, "b": 44},
    }
    facts = []
    if any(each.stderr is not None for each in forecasts):
        facts.append("bars: one standard error over the items, before and after paired")
    if scale.kind == "asinh":
        facts.append(f"axes even within {scale.width:.2g} nats, logarithmic beyond")
    return Plot(
        "Forecast and observed change of the loss", _describe(forecasts), data, layout, tuple(facts), aspect=0.95
    )


def _dots(
    forecasts: Sequence[ComparedForecast], key: str, name: str, n: int, scale: AxisScale, *, hollow: bool
) -> Spec:
    forecast = np.array([each.forecasts[key] for each in forecasts])
    observed = np.array([each.observed for each in forecasts])
    stderr = np.array([each.stderr or 0.0 for each in forecasts])
    low, middle, high = (scale.place(observed + sign * stderr) for sign in (-1, 0, 1))
    colour = f"@line{n}"
    texts = [
        f"{plain(each.name)}<br>forecast {measured(each.forecasts[key])}, observed {measured(each.observed)} nats"
        for each in forecasts
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": rounded(scale.place(forecast)),
        "y": rounded(middle),
        "error_y": error_bars(middle, low, high, colour),
        "marker": {
            "symbol": SYMBOLS[n] + ("-open" if hollow else ""),
            "size": 10,
            "color": colour,
            "line": {"color": colour, "width": 2},
        },
        "hoverinfo": "text",
        "text": texts,
    }


def _describe(forecasts: Sequence[ComparedForecast]) -> str:
    start = "Forecast to the right, observed upwards"
    if len(forecasts) > MOST_DESCRIBED:
        return f"{start}: {len(forecasts)} entries, each in the table below."
    texts = [
        f"{each.name}: "
        + ", ".join(f"{label} {measured(each.forecasts[key])}" for key, label in ORDERS)
        + f", observed {value_and_error(each.observed, each.stderr)} nats"
        for each in forecasts
    ]
    return f"{start}. {'; '.join(texts)}."
