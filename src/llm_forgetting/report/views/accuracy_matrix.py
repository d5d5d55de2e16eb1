"""Views of R[i, j], the accuracy and loss of every checkpoint on every task."""

import numpy as np

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.records import SplitForgetting
from llm_forgetting.report.tables.run import display_name, number, value_and_error


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


def cell_lines(split: SplitForgetting, i: int, j: int) -> tuple[str, str]:
    """Accuracy with its standard error, and loss, of checkpoint i on task j."""
    accuracy = split.accuracy.cells[i][j]
    stderr = None if accuracy.stderr is None or np.isnan(accuracy.stderr) else accuracy.stderr
    return value_and_error(accuracy.value, stderr), f"loss {number(split.loss.cells[i][j].value)}"
