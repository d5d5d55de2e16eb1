"""Losses along the straight path from one checkpoint to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.fit_quality import Quality, quality
from llm_forgetting.report.figures.layout import Caption, lay_out, text_width, together, wrapped
from llm_forgetting.report.figures.style import (
    COLUMN,
    DASHES,
    LEGEND,
    LINE_COLOURS,
    MARKERS,
    PAGE,
    SMALL,
    direction_ticks,
    even_ticks,
)
from llm_forgetting.report.tables.run import SPLIT_WORDS, measured, spoken

# Inches that a legend's line, its gaps and margins take beside the text.
_HANDLE = 0.75


@dataclass(frozen=True)
class Profile:
    """One task along a path: loss and accuracy at its steps (fitted) and at its nodes (measured), and the barrier."""

    task: str
    loss: Floats
    accuracy: Floats
    loss_at_nodes: Floats
    accuracy_at_nodes: Floats | None
    barrier: float
    barrier_at: float
    resolved: bool
    quadratic: Floats | None


@dataclass(frozen=True)
class Way:
    """The straight path from one checkpoint to the next, t from 0 to 1."""

    steps: Floats
    nodes: Floats
    profiles: tuple[Profile, ...]
    repair: float
    caption: Caption


def ways_of(results: Mapping[str, Any]) -> list[Way]:
    """Every measured path in results.json."""
    split = SPLIT_WORDS[results["config"]["landscape"]["items"]]
    foreseen = {entry["from"]: entry["tasks"] for entry in results.get("forecasts") or []}
    return [_way(path, split, foreseen.get(path["from"], {})) for path in results.get("paths") or []]


def _way(path: Mapping[str, Any], split: str, foreseen: Mapping[str, Any]) -> Way:
    forecasts = {task: found["path"] for task, splits in foreseen.items() for found in splits.values() if found["path"]}
    profiles = tuple(_profile(task, entry, forecasts.get(task)) for task, entry in path["tasks"].items())
    held = [
        together(f"{spoken(task)} to t = {float(found['validity']['fraction']):.2f}")
        for task, found in forecasts.items()
    ]
    state = _worst_quality(path)
    items = sorted({len(entry["items"]) for entry in path["tasks"].values()})
    barriers = [together(f"{measured(p.barrier)} nats ({spoken(p.task)})") for p in profiles if p.resolved]
    return Way(
        steps=np.array(path["steps"], dtype=float),
        nodes=np.array(path["nodes"], dtype=float),
        profiles=profiles,
        repair=float(path["repair"]["t"]),
        caption=Caption(
            f"{spoken(path['from'])} to {spoken(path['to'])}",
            (
                f"{' or '.join(map(str, items))} {split} items per task",
                state.fact,
                f"barrier: {', '.join(barriers)}" if barriers else "no barrier",
                *([f"thin: quadratic forecast, holds for {', '.join(held)}"] if held else []),
            ),
            state.alarms,
            above=14,
        ),
    )


def _worst_quality(path: Mapping[str, Any]) -> Quality:
    """Of the task whose fit errs most, as one fit stands behind all."""
    entry = max(path["tasks"].values(), key=lambda task: float(task["error"]["relative"]))
    fit = {"evaluations": len(path["nodes"]), "tolerance": path["tolerance"]}
    return quality(fit, entry["error"], np.array(entry["loss"], dtype=float))


def _profile(task: str, entry: Mapping[str, Any], forecast: Mapping[str, Any] | None) -> Profile:
    at_nodes = entry["at_nodes"]
    return Profile(
        task=task,
        loss=np.array(entry["loss"], dtype=float),
        accuracy=np.array(entry["accuracy"], dtype=float),
        loss_at_nodes=np.array(at_nodes["loss"], dtype=float),
        accuracy_at_nodes=np.array(at_nodes["accuracy"], dtype=float) if "accuracy" in at_nodes else None,
        barrier=float(entry["barrier"]["value"]),
        barrier_at=float(entry["barrier"]["at"]),
        # A barrier within the fit's own error is not told from none.
        resolved=float(entry["barrier"]["value"]) > float(entry["error"]["largest"]),
        quadratic=None if forecast is None else np.array(forecast["quadratic"], dtype=float),
    )


def paths_figure(ways: Sequence[Way]) -> Figure:
    """A column per path: every task's loss, and below it its accuracy."""
    captions = {
        (row, column): (Caption(""), way.caption)[row == 0] for column, way in enumerate(ways) for row in (0, 1)
    }
    key = _Key.of([profile.task for profile in ways[0].profiles], COLUMN if len(ways) == 1 else PAGE)
    panels = lay_out(
        captions,
        aspect=0.62,
        x_label="share of the way, t",
        y_labels=["loss (nats per item)", "accuracy"],
        right=0.1,
        below=0.1 + 0.15 * key.lines,
    )
    for column, way in enumerate(ways):
        upper, lower = panels.axes[0, column], panels.axes[1, column]
        for number, profile in enumerate(way.profiles):
            _profile_lines(upper, lower, way, profile, number)
        for axes in (upper, lower):
            axes.axvline(way.repair, color="black", linewidth=0.8, linestyle=(0, (1.2, 1.6)), zorder=1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(-0.02, 1.02)
            direction_ticks(axes.xaxis)
            even_ticks(axes.yaxis, 5)
        lower.set_ylim(-0.04, 1.04)
        _name_repair(upper, way.repair)
    panels.level([0])
    key.draw(panels.figure)
    return panels.figure


def _profile_lines(upper: Axes, lower: Axes, way: Way, profile: Profile, number: int) -> None:
    """Lines for the fit, dots where it was measured, the barrier as an arrow up from the straight line between the ends."""
    look = line_look(number)
    dots = {"linestyle": "none", "marker": MARKERS[number % len(MARKERS)], "color": look["color"], "markersize": 3.2}
    upper.plot(way.steps, profile.loss, **look)
    upper.plot(way.nodes, profile.loss_at_nodes, **dots)
    if profile.quadratic is not None:
        shown = np.where(profile.quadratic <= 1.1 * profile.loss.max(), profile.quadratic, np.nan)
        upper.plot(way.steps, shown, color=look["color"], linewidth=0.7, scaley=False)
    lower.plot(way.steps, profile.accuracy, drawstyle="steps-mid", **look)
    if profile.accuracy_at_nodes is not None:
        lower.plot(way.nodes, profile.accuracy_at_nodes, **dots)
    if profile.resolved:
        upper.plot([0, 1], profile.loss[[0, -1]], color=look["color"], linewidth=0.6, linestyle=":")
        top = float(np.interp(profile.barrier_at, way.steps, profile.loss))
        ends = [(profile.barrier_at, top - profile.barrier), (profile.barrier_at, top)]
        upper.annotate(
            "",
            ends[1],
            ends[0],
            arrowprops={"arrowstyle": "<->", "color": look["color"], "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
        )


def line_look(number: int) -> dict[str, Any]:
    """Colour and dashes of line `number`."""
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.4,
    }


def _name_repair(axes: Axes, t: float) -> None:
    side = "left" if t < 0.2 else "right" if t > 0.8 else "center"
    axes.annotate(
        f"t* = {t:.2f}", (t, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points", ha=side,
        va="bottom", fontsize=SMALL,
    )  # fmt: skip


@dataclass(frozen=True)
class _Key:
    """The tasks' names for a legend `wide` inches wide: in two columns if they fit, else one below the other, in lines."""

    names: tuple[str, ...]
    columns: int
    lines: int

    @classmethod
    def of(cls, tasks: Sequence[str], wide: float) -> "_Key":
        names = [spoken(task) for task in tasks]
        columns = 2 if all(text_width(name, LEGEND) < wide / 2 - _HANDLE for name in names) else 1
        broken = tuple("\n".join(wrapped(name, wide - _HANDLE, LEGEND)) for name in names)
        return cls(broken, columns, -(-sum(1 + name.count("\n") for name in broken) // columns))

    def draw(self, figure: Figure) -> None:
        handles: list[Any] = [
            Line2D([], [], marker=MARKERS[n % len(MARKERS)], markersize=3.2, **line_look(n))
            for n in range(len(self.names))
        ]
        figure.legend(handles, self.names, loc="lower center", ncols=self.columns, handlelength=3)
