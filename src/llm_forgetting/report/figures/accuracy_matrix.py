"""R[i, j] as a heat map: accuracy and loss of every checkpoint on every task, trained and held-out items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm_forgetting.arrays import Floats
from llm_forgetting.report.figures.contours import COLOURS, colour_bar
from llm_forgetting.report.figures.layout import BAR, Caption, lay_out, panel_width, wrapped
from llm_forgetting.report.figures.style import SMALL
from llm_forgetting.report.tables.run import SPLIT_WORDS, number, spoken, value_and_error

# Inches left of the panels and of a cell's height; from this accuracy on black is easier to read than white.
LEFT, CELL_HEIGHT, READABLE = 0.85, 0.42, 0.6


@dataclass(frozen=True)
class Matrix:
    """One split: accuracy and loss [checkpoint, task], their stderrs (NaN for none), and the names of rows and columns."""

    split: str
    checkpoints: tuple[str, ...]
    tasks: tuple[str, ...]
    accuracy: Floats
    accuracy_stderr: Floats
    loss: Floats
    items: tuple[int, ...]


def matrices_of(results: Mapping[str, Any]) -> list[Matrix]:
    """Both splits of results.json."""
    return [_matrix(split, results["forgetting"][split]) for split in SPLIT_WORDS]


def _matrix(split: str, found: Mapping[str, Any]) -> Matrix:
    def values(measure: str, key: str) -> Floats:
        cells = found[measure]["cells"]
        return np.array([[np.nan if cell[key] is None else float(cell[key]) for cell in row] for row in cells])

    return Matrix(
        split=split,
        checkpoints=tuple(map(spoken, found["checkpoints"])),
        tasks=tuple(map(spoken, found["task_names"])),
        accuracy=values("accuracy", "value"),
        accuracy_stderr=values("accuracy", "stderr"),
        loss=values("loss", "value"),
        items=tuple(cell["n"] for cell in found["accuracy"]["cells"][0]),
    )


def matrix_figure(matrices: Sequence[Matrix]) -> Figure:
    """A panel per split: colour and first line of a cell are the accuracy ± stderr, its second line the loss in nats.

    The cell of a task at its own checkpoint is framed: what stands below it in the column is what became of that.
    """
    rows, columns = matrices[0].accuracy.shape
    captions = {(0, n): Caption(f"{SPLIT_WORDS[m.split]} items", (_items(m),)) for n, m in enumerate(matrices)}
    width = panel_width(len(matrices), LEFT + BAR)
    names = ["\n".join(wrapped(name, width / columns - 0.06, SMALL)) for name in matrices[0].tasks]
    panels = lay_out(
        captions,
        aspect=CELL_HEIGHT * rows / width,
        x_label="",
        y_labels=[""],
        left=LEFT,
        right=BAR,
        below=0.12 * max(name.count("\n") for name in names) - 0.1,
    )
    norm = Normalize(0, 1)
    for n, matrix in enumerate(matrices):
        axes = panels.axes[0, n]
        axes.imshow(matrix.accuracy, norm=norm, cmap=COLOURS, aspect="auto")
        axes.set_xticks(range(columns), names, fontsize=SMALL)
        axes.set_yticks(range(rows), [name[0].upper() + name[1:] for name in matrix.checkpoints], fontsize=SMALL)
        axes.tick_params(length=0)
        for (i, j), value in np.ndenumerate(matrix.accuracy):
            _write(axes, matrix, i, j, dark=bool(value > READABLE))
        for j in range(columns):
            edge = "black" if matrix.accuracy[j + 1, j] > READABLE else "white"
            axes.add_patch(Rectangle((j - 0.47, j + 0.55), 0.94, 0.9, fill=False, edgecolor=edge, linewidth=1.2))
    colour_bar(panels.figure, norm, panels.bar_axes(), "accuracy")
    return panels.figure


def _items(matrix: Matrix) -> str:
    counts = sorted(set(matrix.items))
    return f"{' or '.join(map(str, counts))} items a task; ± standard error; loss in nats"


def _write(axes: Axes, matrix: Matrix, i: int, j: int, *, dark: bool) -> None:
    accuracy, stderr = float(matrix.accuracy[i, j]), float(matrix.accuracy_stderr[i, j])
    text = value_and_error(accuracy, None if np.isnan(stderr) else stderr)
    said = f"{text}\nloss {number(float(matrix.loss[i, j]))}"
    axes.text(j, i, said, ha="center", va="center", fontsize=SMALL, color="black" if dark else "white", linespacing=1.3)
