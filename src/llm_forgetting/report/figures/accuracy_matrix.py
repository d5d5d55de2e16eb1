"""Figure of R[i, j]: accuracy and loss of every checkpoint on every task, trained and held-out items."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm_forgetting.forgetting.records import SplitForgetting
from llm_forgetting.report.figures.contours import COLOURS, colour_bar
from llm_forgetting.report.figures.layout import BAR, lay_out, panel_width, wrapped
from llm_forgetting.report.figures.style import SMALL
from llm_forgetting.report.tables.run import SPLIT_WORDS, display_name
from llm_forgetting.report.tables.words import ACCURACY
from llm_forgetting.report.views.accuracy_matrix import accuracies, cell_lines, error_text, items_text, row_names
from llm_forgetting.report.views.captions import Caption

# Inches left of the panels and of a cell's height; from this accuracy on black is easier to read than white.
LEFT, CELL_HEIGHT, READABLE = 0.85, 0.52, 0.6


def matrix_figure(splits: Sequence[SplitForgetting], chance: str = "", name: str = ACCURACY) -> Figure:
    """A panel per split: colour and first line of a cell are the accuracy (`name`), below it its interval and the loss in nats.

    The cell of a task at its own checkpoint is framed: just trained. Below it: after later tasks. `chance` says in words
    what guessing gives.
    """
    matrices = [accuracies(split) for split in splits]
    rows, columns = matrices[0].shape
    captions = {
        (0, n): Caption(
            f"{SPLIT_WORDS[split.split]} items",
            (f"{items_text(split)} items per task; {error_text(split)}; loss in nats", *([chance] if chance else [])),
        )
        for n, split in enumerate(splits)
    }
    width = panel_width(len(splits), LEFT + BAR)
    names = ["\n".join(wrapped(display_name(name), width / columns - 0.06, SMALL)) for name in splits[0].task_names]
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
    for n, (split, matrix) in enumerate(zip(splits, matrices, strict=True)):
        axes = panels.axes[0, n]
        axes.imshow(matrix, norm=norm, cmap=COLOURS, aspect="auto")
        axes.set_xticks(range(columns), names, fontsize=SMALL)
        axes.set_yticks(range(rows), row_names(split), fontsize=SMALL)
        axes.tick_params(length=0)
        for (i, j), accuracy in np.ndenumerate(matrix):
            text, ink = "\n".join(cell_lines(split, i, j)), "black" if accuracy > READABLE else "white"
            axes.text(j, i, text, ha="center", va="center", fontsize=SMALL, color=ink, linespacing=1.3)
        for j in range(columns):
            edge = "black" if matrix[j + 1, j] > READABLE else "white"
            axes.add_patch(Rectangle((j - 0.47, j + 0.55), 0.94, 0.9, fill=False, edgecolor=edge, linewidth=1.2))
    colour_bar(panels.figure, norm, panels.bar_axes(), name)
    return panels.figure
