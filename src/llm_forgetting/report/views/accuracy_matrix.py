"""Views of R[i, j], the accuracy and loss of every checkpoint on every task."""

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS, Proportion
from llm_forgetting.forgetting.records import SplitForgetting
from llm_forgetting.report.tables.run import display_name, measured, number


def accuracies(split: SplitForgetting) -> Floats:
    """Accuracy [checkpoint, task], shares."""
    return np.array([[cell.value for cell in row] for row in split.accuracy.cells])


def row_names(split: SplitForgetting) -> list[str]:
    """Names of the checkpoints, capitalised."""
    names = map(display_name, split.checkpoints)
    return [name[0].upper() + name[1:] for name in names]


def items_text(split: SplitForgetting) -> str:
    """Number of items of a task, or the different numbers of several."""
    return " or ".join(map(str, sorted({cell.n for cell in split.accuracy.cells[0]})))


def cell_lines(split: SplitForgetting, i: int, j: int) -> tuple[str, str, str]:
    """Accuracy of checkpoint i on task j, its Wilson interval (counts where items are too few for one), and the loss."""
    accuracy, loss = split.accuracy.cells[i][j], split.loss.cells[i][j]
    ends, error = accuracy.interval, ""
    if ends:
        error = f"[{number(ends.low)}, {number(ends.high)}]"
    elif isinstance(accuracy, Proportion):
        error = f"{accuracy.correct} of {accuracy.n}"
    return number(accuracy.value), error, f"loss {measured(loss.value)}"


def error_text(split: SplitForgetting) -> str:
    """What the second line of every cell is."""
    with_intervals = all(cell.interval for cell in split.accuracy.cells[0])
    return "brackets: 95% Wilson interval" if with_intervals else f"too few items for intervals (below {MINIMUM_ITEMS})"
