"""What quantisation costs, from records alone."""

from dataclasses import replace

import numpy as np
import pytest

from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import paired_mean_change
from llm_forgetting.forgetting.quantised import quantisation_costs, quantised_name
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.seeding import derive_seed

CHECKPOINTS = ("initial", "after_task1")


def records(n: int = 50) -> list[ItemRecord]:
    """Two tasks, both splits; 4 bits add about 0.3 nats, and make every fifth right answer wrong."""
    rng, made = np.random.default_rng(0), []
    for checkpoint in CHECKPOINTS:
        for task in ("one", "two"):
            for split in SPLITS:
                for row in range(n):
                    loss = float(rng.exponential())
                    plain = ItemRecord(
                        checkpoint, task, split, f"{task}/{row}", task, "A", "A", True, loss, np.zeros(2), 0.0
                    )
                    worse = {"loss": loss + 0.3 + 0.1 * float(rng.standard_normal()), "correct": row % 5 > 0}
                    made += [plain, replace(plain, checkpoint=quantised_name(checkpoint, "4bit"), **worse)]
    return made


def test_costs_are_paired_over_items() -> None:
    lines = records()
    costs = quantisation_costs(lines, ("one", "two"), CHECKPOINTS, seed=3)
    assert costs is not None
    assert len(costs) == 2 * 2 * 2
    (cost,) = [c for c in costs if (c.checkpoint, c.task, c.split) == ("after_task1", "two", "test")]
    before, after = (
        [line for line in lines if (line.checkpoint, line.task, line.split) == (name, "two", "test")]
        for name in ("after_task1", "after_task1_4bit")
    )
    losses, right = ([[getattr(line, key) for line in side] for side in (before, after)] for key in ("loss", "correct"))
    stream = derive_seed(3, "quantised", "4bit", "after_task1", "two", "test")
    assert cost.loss == paired_mean_change(*losses, seed=stream)
    assert cost.accuracy == paired_proportion_change(*right)
    assert cost.accuracy.value == -0.2
    assert cost.loss is not None
    assert cost.loss.interval is not None
    assert cost.loss.interval.low < 0.3 < cost.loss.interval.high


def test_without_quantised_records_there_are_none() -> None:
    plain = [line for line in records() if not line.checkpoint.endswith("4bit")]
    assert quantisation_costs(plain, ("one", "two"), CHECKPOINTS, seed=0) is None


def test_losses_that_are_not_finite_have_no_change() -> None:
    lines = [replace(line, loss=np.inf) if line.checkpoint == "initial_4bit" else line for line in records(4)]
    costs = quantisation_costs(lines, ("one", "two"), CHECKPOINTS, seed=0)
    assert costs is not None
    assert [cost.loss is None for cost in costs] == [True] * 4 + [False] * 4


def test_other_items_are_refused() -> None:
    lines = [line for line in records(4) if (line.checkpoint, line.id) != ("initial", "one/2")]
    with pytest.raises(ValueError, match="must be scored on the items of one in their order"):
        quantisation_costs(lines, ("one", "two"), CHECKPOINTS, seed=0)
