"""Scores during a training: the task that is learnt, earlier ones and probes, on fixed items at fractions of the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_forgetting.config.measurements import EvaluationConfig
from llm_forgetting.files import encode, read, write_text
from llm_forgetting.forgetting.frontier import ScoresDuring, TaskScoresDuring
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score_tasks
from llm_forgetting.seeding import generator

SHARE = 0.15
"""Of a training's time that scores during it take, where their items are not given."""
FORWARDS_PER_STEP = 3
"""Passes of an item that its part of a training step is worth: forward, and twice that back."""


@dataclass(frozen=True)
class _Point:
    """One point's scores, kept until the training is over: per task and item, losses by the items' weights."""

    correct: dict[str, list[bool]]
    loss: dict[str, list[float]]


def steps_during(fractions: int, total: int) -> list[int]:
    """After how many of `total` steps scores are taken: at 0, 1/`fractions`, ..., 1, each step once."""
    return sorted({round(n * total / fractions) for n in range(fractions + 1)})


def items_during(settings: EvaluationConfig, tasks: int, total: int, passes: int) -> int:
    """Items per task: as asked for, or such that all scores cost `SHARE` of a training of `total` steps, 1 at the least.

    passes: items of the task that the training passes through the model, each as often as it does.
    """
    if settings.during_items is not None:
        return settings.during_items
    points = len(steps_during(settings.during, total))
    return max(1, int(FORWARDS_PER_STEP * passes * SHARE / (points * tasks)))


class DuringScores(TrainerCallback):
    """Scores `tasks`, the one that is learnt last, and `probes`. Every point is kept in `folder`, so that a killed training
    loses none.

    It takes no random numbers and leaves model and optimiser as they are: training with it and without gives the same adapter.
    """

    def __init__(
        self,
        model: LanguageModel,
        tasks: Mapping[str, Sequence[EncodedItem]],
        settings: EvaluationConfig,
        folder: Path,
        *,
        probes: Mapping[str, Sequence[EncodedItem]],
    ) -> None:
        self._model = model
        self._tasks = {**tasks, **probes}
        self._probes = frozenset(probes)
        self._settings = settings
        self._folder = folder
        self._total = 0
        self._steps: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Score the checkpoint before the task: before a method prepares for it, which may change what the model answers."""
        self._score(0)

    def follow(self, total: int) -> "DuringScores":
        """What scores a training of `total` steps, as its callback."""
        self._total, self._steps = total, steps_during(self._settings.during, total)
        return self

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """The scores after a step that is one of the fractions."""
        if state.global_step in self._steps:
            self._score(state.global_step)

    def _score(self, step: int) -> None:
        write_text(self._file(step), encode(self._point()))

    def _point(self) -> _Point:
        scores = score_tasks(self._model, list(self._tasks.values()), self._settings.batch_size)
        named = dict(zip(self._tasks, scores, strict=True))
        return _Point(
            {task: scored.correct.tolist() for task, scored in named.items()},
            {task: scored.weighted_losses.tolist() for task, scored in named.items()},
        )

    def _file(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}.json"

    def record(self, *, moved: bool = False) -> ScoresDuring:
        """All points, when the training is over; `moved`: one more is scored, for a method moved the model since."""
        steps = [*self._steps, self._steps[-1]] if moved else self._steps
        points = [read(_Point, self._file(step)) for step in self._steps]
        if moved:
            points.append(self._point())
        found = {
            task: TaskScoresDuring(
                task,
                tuple(item.item.id for item in items),
                np.stack([point.correct[task] for point in points]),
                np.stack([point.loss[task] for point in points]),
            )
            for task, items in self._tasks.items()
        }
        return ScoresDuring(
            split=self._settings.during_split,
            total=self._total,
            steps=tuple(steps),
            tasks=tuple(scores for task, scores in found.items() if task not in self._probes),
            moved=moved or None,
            probes=tuple(found[task] for task in self._tasks if task in self._probes) or None,
        )


def drawn(items: Sequence[EncodedItem], task: str, count: int, seed: int) -> list[EncodedItem]:
    """`count` of the items, drawn by `seed` and the task's name alone: the same ones in every training."""
    rows = generator(seed, "items during training", task).permutation(len(items))[:count]
    return [items[row] for row in sorted(rows)]
