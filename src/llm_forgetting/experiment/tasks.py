"""The tasks that a configuration names: their source, how it is split, and those that are only scored. No torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llm_forgetting.config.sections import DataConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import user_path
from llm_forgetting.tasks.definitions import open_defined
from llm_forgetting.tasks.skills import SkillSettings
from llm_forgetting.tasks.sources import KINDS, Source, load_tasks, open_source
from llm_forgetting.tasks.task import Pool, Task, untrained_tasks

TEXT = "text"
"""The probe that is the unrelated text, which every run scores."""
HARNESS = "harness:"


def source_of(data: DataConfig, notify: Callable[[str], None]) -> Source:
    """The source of items that the configuration names; `notify` hears of a download."""

    def open_plain() -> Source:
        return open_source(
            source=data.source, path=data.path, hub_config=data.hub_config, columns=data.columns, notify=notify,
            skills=SkillSettings(data.difficulty, data.shift),
        )  # fmt: skip

    if data.definitions is None:
        return open_plain()
    probes = [name for name in own_probes(data) if _kind_of(name) is None]
    return open_defined(user_path(data.definitions), open_plain, notify, [*data.tasks, *probes])


def tasks_of(data: DataConfig, source: Source) -> list[Task]:
    """The configured tasks, split."""
    return load_tasks(
        source,
        data.tasks,
        train_items=data.train_items,
        test_items=data.test_items,
        train_fraction=data.train_fraction,
        items_per_task=data.items_per_task,
        few_shot=data.few_shot,
        seed=data.seed,
    )


def own_probes(data: DataConfig) -> list[str]:
    """The probes that we score ourselves: all but the unrelated text and the tasks of lm-evaluation-harness."""
    return [name for name in data.probes if name != TEXT and not name.startswith(HARNESS)]


def harness_probes(data: DataConfig) -> list[str]:
    """Names of the probes that are tasks of lm-evaluation-harness, without `harness:`."""
    return [name.removeprefix(HARNESS) for name in data.probes if name.startswith(HARNESS)]


def harness_folder(data: DataConfig) -> Path | None:
    """The folder of the user's own tasks of lm-evaluation-harness."""
    return None if data.harness_tasks is None else user_path(data.harness_tasks)


def probes_of(data: DataConfig, source: Source, trained: Sequence[Task], notify: Callable[[str], None]) -> list[Task]:
    """The probes that we score ourselves, with items that none of the `trained` tasks has.

    UserError for a task, or subject of one, that is trained on.
    """
    pools = [_pool(name, data, source, notify) for name in own_probes(data)]
    for pool in pools:
        if pool.name in [task.name for task in trained]:
            raise UserError(f"a probe must be a task that is never trained on, {pool.name} is one of data.tasks")
    return untrained_tasks(
        pools, trained, items=data.probe_limit or data.test_items, few_shot=data.few_shot, seed=data.seed
    )


def _kind_of(name: str) -> str | None:
    """The source that a probe's name begins with, None for a task of the run's own."""
    kind, colon, rest = name.partition(":")
    return kind if kind in KINDS and colon and rest else None


def _pool(name: str, data: DataConfig, source: Source, notify: Callable[[str], None]) -> Pool:
    kind = _kind_of(name)
    if kind is None:
        known, subjects = source.resolve([name])[0]
        _require_untrained(name, subjects, data, source)
        return source.pool(known, subjects)
    rest = name.removeprefix(f"{kind}:")
    if KINDS[kind].path != "none":
        other = open_source(source=kind, path=rest, notify=notify)
        return other.pool(name, tuple(other.subjects()))
    other = open_source(source=kind, notify=notify, skills=SkillSettings(data.difficulty, data.shift))
    known, subjects = other.resolve([rest])[0]
    if kind == data.source:
        _require_untrained(name, subjects, data, source)
    return other.pool(f"{kind}:{known}", subjects)


def _require_untrained(name: str, subjects: Sequence[str], data: DataConfig, source: Source) -> None:
    """UserError where a task that is trained on has one of the subjects."""
    for task, learnt in source.resolve(data.tasks):
        if shared := [subject for subject in subjects if subject in learnt]:
            raise UserError(
                f"a probe must be a task that is never trained on, {name} has {shared[0]} of {task}, which is one of data.tasks"
            )
