"""The tasks that a configuration names: their source, and how it is split. No torch."""

from collections.abc import Callable

from llm_forgetting.config.sections import DataConfig
from llm_forgetting.files import user_path
from llm_forgetting.tasks.definitions import open_defined
from llm_forgetting.tasks.skills import SkillSettings
from llm_forgetting.tasks.sources import Source, load_tasks, open_source
from llm_forgetting.tasks.task import Task


def source_of(data: DataConfig, notify: Callable[[str], None]) -> Source:
    """The source of items that the configuration names; `notify` hears of a download."""

    def open_plain() -> Source:
        return open_source(
            source=data.source, path=data.path, hub_config=data.hub_config, columns=data.columns, notify=notify,
            skills=SkillSettings(data.difficulty, data.shift),
        )  # fmt: skip

    if data.definitions is None:
        return open_plain()
    return open_defined(user_path(data.definitions), open_plain, notify, data.tasks)


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
