"""Heat maps of R[i, j], accuracy and loss of every checkpoint on every task, as tables."""

import numpy as np
from matplotlib.colors import Normalize

from llm_forgetting.forgetting.records import ForgettingBySplit, SplitForgetting
from llm_forgetting.report.html.blocks import Cell, Heat, Heats
from llm_forgetting.report.html.colour_scale import Scale
from llm_forgetting.report.tables.run import SPLIT_WORDS, display_name, sentence
from llm_forgetting.report.tables.words import ACCURACY, capital
from llm_forgetting.report.views.accuracy_matrix import accuracies, cell_lines, error_text, items_text, row_names


def heat_maps(forgetting: ForgettingBySplit, chance: str = "", name: str = ACCURACY) -> Heats:
    """R of both splits; `name` is what its cells are, `chance` says in words what guessing gives."""
    note = f"{capital(name)}, its error, and the loss in nats. Framed: just trained. Below: after later tasks. "
    return Heats([_heat_map(split) for split in forgetting.splits], f"{note}{sentence(chance)}".strip())


def _heat_map(split: SplitForgetting) -> Heat:
    scale = Scale(Normalize(0, 1))
    rows = [
        (name, [_cell(split, i, j, float(accuracy), scale) for j, accuracy in enumerate(row)])
        for i, (name, row) in enumerate(zip(row_names(split), accuracies(split), strict=True))
    ]
    caption = f"{SPLIT_WORDS[split.split].capitalize()} items ({items_text(split)} per task; {error_text(split)})"
    return Heat(caption, tuple(map(display_name, split.task_names)), rows)


def _cell(split: SplitForgetting, i: int, j: int, accuracy: float, scale: Scale) -> Cell:
    lines, framed = cell_lines(split, i, j), i == j + 1
    if not np.isfinite(accuracy):
        return Cell(lines, framed=framed)
    return Cell(lines, scale.colour(accuracy), scale.ink(accuracy), framed)
