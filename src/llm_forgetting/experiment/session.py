"""Live side of a run: encoded tasks, and one model that is moved between checkpoints."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.phase_artifacts import checkpoint_name
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.inputs import (
    require_same_backbone,
    require_same_probes,
    require_same_rows,
    require_same_text,
)
from llm_forgetting.experiment.tasks import probes_of, source_of, tasks_of
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.ranks import saved_ranks, set_ranks
from llm_forgetting.models.adapter.saved_adapter import State, read_weights
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.text_loss import Passage, passages
from llm_forgetting.progress import Progress
from llm_forgetting.results import ItemHash, Splits, TaskSetup
from llm_forgetting.seeding import generator
from llm_forgetting.tasks.sources import Source
from llm_forgetting.tasks.synthetic import fillers
from llm_forgetting.tasks.task import Item, Task
from llm_forgetting.tasks.task import turn as rotate_options


def frozen_splits(task: Task) -> Splits:
    """Items of both splits by id and hash."""
    return Splits(*(tuple(ItemHash(item.id, item.sha256) for item in task.split(split)) for split in SPLITS))


def choose_landscape_items(items: Sequence[EncodedItem], task: str, settings: LandscapeConfig) -> list[EncodedItem]:
    """The fixed, seeded subset of a task's items whose loss is the landscape."""
    rows = generator(settings.seed, "landscape items", task).permutation(len(items))[: settings.num_items]
    return [items[row] for row in sorted(rows)]


class Session:
    """Live side of a run: its tasks, and one model that phases move between checkpoints.

    Invariant: the live adapter is that of the checkpoint that `at` was last asked for, or that `mark_checkpoint` last named;
    a phase that leaves it anywhere else says so by `mark_checkpoint(None)`. Everything is loaded when it is first used, so a
    finished run resumes without model or data.

    Args:
        config: What was asked for.
        folder: Of the run.
        progress: Who watches.
        frozen_tasks: Tasks as an earlier process set them up; those loaded now must be the same.
    """

    def __init__(
        self, config: ExperimentConfig, folder: Path, progress: Progress, frozen_tasks: Sequence[TaskSetup] = ()
    ) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self._frozen_tasks = tuple(frozen_tasks)
        self._live: int | None = 0

    @cached_property
    def source(self) -> Source:
        """The source of items."""
        return source_of(self.config.data, self.progress.note)

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks in the order they are learnt; UserError where they are not those that the run was started with."""
        tasks = tasks_of(self.config.data, self.source)
        for task, frozen in zip(tasks, self._frozen_tasks, strict=False):
            if (task.format, frozen_splits(task)) != (frozen.prompt, frozen.splits):
                raise UserError(
                    f"the items of task {task.name} and their prompt must be those that the run in {self.folder} was started "
                    "with, the data were changed since; undo the change, or start a new run"
                )
        require_same_rows(self.folder, tasks)
        return tasks

    @cached_property
    def probes(self) -> list[Task]:
        """The tasks that are only scored; UserError where they are not those that the run was started with."""
        probes = probes_of(self.config.data, self.source, self.tasks, self.progress.note)
        require_same_probes(self.folder, probes)
        return probes

    @cached_property
    def model(self) -> LanguageModel:
        """Backbone and fresh adapter; `at` moves it to a checkpoint."""
        self._live = 0
        model = LanguageModel.load(
            self.config.model, self.config.lora, seed=self.config.training.seed, notify=self.progress.note
        )
        require_same_backbone(self.folder, self.config.model)
        model.arithmetic = self.config.landscape.arithmetic
        # All weights are not copied: those at the beginning are the backbone's own.
        self._initial = {} if self.config.lora is None else model.adapter_state()
        return model

    @cached_property
    def encoded(self) -> list[EncodedTask]:
        """The tasks as tokens."""
        return self._encoded(self.tasks)

    @cached_property
    def encoded_probes(self) -> list[EncodedTask]:
        """The tasks that are only scored as tokens."""
        return self._encoded(self.probes)

    def _encoded(self, tasks: Sequence[Task]) -> list[EncodedTask]:
        return [
            EncodedTask(
                task.name,
                *(
                    tuple(
                        encode(
                            self.model.tokenizer,
                            task.split(split),
                            task.shots,
                            self.config.data.max_tokens,
                            self.config.data.weighting,
                        )
                    )
                    for split in ("train", "test")
                ),
            )
            for task in tasks
        ]

    def at(self, after_task: int) -> LanguageModel:
        """The model with the adapter of the checkpoint after task number `after_task` (0: the fresh one)."""
        model = self.model
        if self._live != after_task:
            if after_task:
                RunFolder(self.folder).require_checkpoint(f"task{after_task}")
                if self.config.training.methods and self.config.low_rank:  # a method may have changed the ranks
                    self._fit_ranks(read_weights(self.checkpoint_folder(after_task)))
                model.load_adapter_weights(self.checkpoint_folder(after_task))
            else:
                if self.config.training.methods and self.config.low_rank:
                    self._fit_ranks(self._initial)
                model.set_adapter_state(self._initial)
            self._live = after_task
        return model

    def _fit_ranks(self, state: State) -> None:
        set_ranks(self.model.peft_model, saved_ranks(state), self.model.adapter)

    def mark_checkpoint(self, after_task: int | None) -> None:
        """Say that the live adapter now is the checkpoint after task number `after_task`, or (None) that of none."""
        self._live = after_task

    def updates(self) -> "CheckpointUpdates":
        """delta W of every checkpoint by name, read when it is asked for."""
        return CheckpointUpdates(self)

    def checkpoint_folder(self, after_task: int) -> Path:
        """`checkpoint_after_taskN` in the run folder."""
        return self.folder / f"checkpoint_{checkpoint_name(after_task)}"

    def landscape_items(self) -> list[list[EncodedItem]]:
        """Per task the fixed subset of items whose loss is the landscape, in a seeded order."""
        settings = self.config.landscape
        return [choose_landscape_items(task.split(settings.items), task.name, settings) for task in self.encoded]

    def named_landscape_items(self, tasks: Sequence[int] | None = None) -> list[tuple[str, list[EncodedItem]]]:
        """`landscape_items` with the names of their tasks; of those with the numbers `tasks` (from 1), where they are given."""
        named = [(task.name, items) for task, items in zip(self.encoded, self.landscape_items(), strict=True)]
        return named if tasks is None else [named[number - 1] for number in tasks]

    def rotated(self, task: int, split: str) -> list[list[EncodedItem]]:
        """The items of task number `task` (from 1) with their options moved 1, 2, ... places, one list per rotation.

        An item that has fewer options than the longest is in fewer lists, completions are in none. Those of one item share a
        beginning, its question.
        """
        chosen = [item for item in self.tasks[task - 1].split(split) if isinstance(item, Item)]
        shots = self.tasks[task - 1].shots
        rotations = [
            [rotate_options(item, places) for item in chosen if places < len(item.choices)]
            for places in range(1, max((len(item.choices) for item in chosen), default=0))
        ]
        encoded = [encode(self.model.tokenizer, items, shots, self.config.data.max_tokens) for items in rotations]
        if shots:
            return encoded
        return [[dataclasses.replace(item, prefix_group=item.item.id) for item in items] for items in encoded]

    @cached_property
    def passages(self) -> list[Passage]:
        """Text that belongs to no task; UserError where it is not that which the run was started with."""
        text = self.config.evaluation.text
        if text is None and self.config.data.source == "synthetic":
            read = [
                Passage(f"passage/{n}", tuple(self.model.tokenizer(text)["input_ids"]))
                for n, text in enumerate(fillers())
            ]
        else:
            read = passages(text, self.model.tokenizer, self.config.data.max_tokens)
        require_same_text(self.folder, read)
        return read

    def journal(self, name: str) -> Path:
        """Where the evaluations of a scan that is not finished are kept."""
        return self.folder / "phases" / f"{name}.journal"

    def trajectory_folder(self, after_task: int) -> Path:
        """Where the adapters at the ends of a task's epochs wait to be projected onto the checkpoint plane."""
        return self.folder / "phases" / f"trajectory_task{after_task}"


class CheckpointUpdates(Mapping[str, WeightUpdate]):
    """delta W of a run's checkpoints by name, in order: each is read anew whenever it is asked for, and none is kept."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._numbers = {checkpoint_name(k): k for k in range(len(session.config.data.tasks) + 1)}

    def __getitem__(self, name: str) -> WeightUpdate:
        """delta W on the model's device; 0 at the start, where the adapter is fresh."""
        number = self._numbers[name]
        factors = self._session.at(max(number, 1)).adapter_factors()
        return factors if number else WeightUpdate.zero(factors)

    def __iter__(self) -> Iterator[str]:
        """The checkpoints' names."""
        return iter(self._numbers)

    def __len__(self) -> int:
        """Number of checkpoints, the start included."""
        return len(self._numbers)
