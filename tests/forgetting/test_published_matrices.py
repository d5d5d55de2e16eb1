"""O-LoRA's published runs of 15 tasks: their matrices, given to our measures, give the figures that follow from them."""

import json
from pathlib import Path

import numpy as np
import pytest

from llm_forgetting.forgetting.accuracy_matrix import average_accuracy, backward_transfer, forgetting_measure

PUBLISHED = json.loads((Path(__file__).parents[1] / "data/o_lora_matrices.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("method", "accuracy", "transfer", "forgotten"),
    [
        ("seqlora", 32.0406, -47.9640, 48.9510),
        ("olora", 72.1746, -0.7329, 1.7436),
        ("icrlora", 58.4372, -19.4398, 20.3759),
    ],
)
def test_measures_of_the_published_matrices(method: str, accuracy: float, transfer: float, forgotten: float) -> None:
    rows = PUBLISHED["exact_match"][method]
    assert [len(row) for row in rows] == list(range(1, len(PUBLISHED["tasks"]) + 1))
    R = np.array([row + [np.nan] * (len(rows) - len(row)) for row in rows])
    assert average_accuracy(R) == pytest.approx(accuracy, abs=1e-4)
    assert backward_transfer(R, base_row=False) == pytest.approx(transfer, abs=1e-4)
    assert forgetting_measure(R, base_row=False) == pytest.approx(forgotten, abs=1e-4)
