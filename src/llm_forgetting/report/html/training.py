"""Plots of the training's loss, step by step."""

from collections.abc import Sequence

import numpy as np

from llm_forgetting.report.html.blocks import Block, Figures, Plot, Prose
from llm_forgetting.report.html.lines import line
from llm_forgetting.report.tables.run import Table, display_name, number
from llm_forgetting.results import TrainingRecord


def training_blocks(training: Sequence[TrainingRecord]) -> list[Block]:
    """Loss of every step of training, a plot per task, on one axis."""
    logged = [record for record in training if record.log]
    if not logged:
        return [Prose("The log of this run's training holds no losses.", quiet=True)]
    top = max(step.loss for record in logged for step in record.log)
    plots = [_training_plot(k, record, top) for k, record in enumerate(logged)]
    return [
        Figures(plots, min(len(plots), 2), numbers=[_epochs(logged)], note="Loss of the batch before each step, nats.")
    ]


def _training_plot(k: int, record: TrainingRecord, top: float) -> Plot:
    losses = np.array([step.loss for step in record.log])
    steps = np.array([step.step for step in record.log], dtype=float)
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "training loss (nats)"}, "range": [0, 1.05 * top if np.isfinite(top) else None]},
        "showlegend": False,
    }
    rates = [step.learning_rate for step in record.log if step.learning_rate is not None]
    facts = (f"{len(losses)} steps", *([f"learning rate up to {max(rates):g}"] if rates else []))
    ends = f"loss from {number(losses[0])} to {number(losses[-1])} nats in {len(losses)} steps"
    task = display_name(record.task)
    data = [line(steps, losses, "loss", k)]
    return Plot(f"Fine-tuning on {task}", f"Training on {task}: {ends}.", data, layout, facts, aspect=0.55)


def _epochs(training: Sequence[TrainingRecord]) -> Table:
    rows = []
    for record in training:
        epochs = np.ceil(np.array([step.epoch for step in record.log], dtype=float) - 1e-6).astype(int)
        losses = np.array([step.loss for step in record.log])
        rows += [
            (
                display_name(record.task),
                str(epoch),
                number(losses[epochs == epoch].mean()),
                str(int((epochs == epoch).sum())),
            )
            for epoch in np.unique(epochs)
        ]
    return Table("Mean training loss by epoch", ("task", "epoch", "loss (nats)", "steps"), tuple(rows))
