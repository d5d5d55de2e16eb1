"""Kinds of sources of items, one file each: a file here that sets `KIND` is a value of `data.source`.

Every source says what it is, which subjects it has, and gives the rows of some of them as a `Pool`. Subject names are
in one spelling (`mmlu.spelled`), so that tasks can be named the same way whatever the source.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.records import COLUMNS, RecordLayout
from llm_forgetting.tasks.skills import EASIEST, SkillSettings
from llm_forgetting.tasks.sources.source import LoadedSource, Notify, Source, SourceKind, SourceSettings
from llm_forgetting.tasks.task import Task, split_pools

__all__ = ["KINDS", "LoadedSource", "Source", "SourceKind", "SourceSettings", "load_tasks", "open_source"]
_FIRST = ("embedded", "local", "hub", "embedded_text", "skills", "synthetic")  # as they are listed


def _kinds() -> dict[str, SourceKind]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "source"]
    ordered = [*_FIRST, *sorted(set(names) - set(_FIRST))]
    return {name: import_module(f"{__name__}.{name}").KIND for name in ordered}


KINDS: Mapping[str, SourceKind] = _kinds()
"""Every kind by its name."""


def load_tasks(
    source: Source,
    names: Sequence[str],
    *,
    train_items: int | None,
    test_items: int | None,
    train_fraction: float,
    items_per_task: int | None,
    few_shot: int,
    seed: int,
) -> list[Task]:
    """The named tasks of a source, in the order given, disjoint and split (see `split_pools`)."""
    pools = [source.pool(name, subjects) for name, subjects in source.resolve(names)]
    return split_pools(
        pools,
        train_items=train_items,
        test_items=test_items,
        train_fraction=train_fraction,
        items_per_task=items_per_task,
        few_shot=few_shot,
        seed=seed,
    )


def open_source(
    *,
    source: str,
    path: str | None = None,
    hub_config: str | None = None,
    columns: Mapping[str, str] | None = None,
    notify: Notify | None = None,
    skills: SkillSettings = EASIEST,
) -> Source:
    """The data source of a configuration.

    Args:
        source: One of `KINDS`.
        path: Folder or file of `local`; repository of `hub`.
        hub_config: Configuration (subset) of a hub data set.
        columns: Columns of `question`, `choices`, `answer` and `subject`, where they are not called that; options in columns
            of their own are given as `choices: opa,opb,opc`.
        notify: Gets a message before a download.
        skills: How `skills` are drawn.

    Raises:
        UserError: For settings that do not go together, and for data that cannot be read.
    """
    layout = RecordLayout(columns=dict(columns or {}))
    for key in layout.columns:
        if key not in COLUMNS:
            raise UserError(f"data.columns has no {key!r}; it takes {', '.join(COLUMNS)}")
    if source not in KINDS:
        raise UserError(f"data.source must be one of {', '.join(KINDS)}, is {source!r}")
    kind = KINDS[source]
    if hub_config is not None and not kind.hub:
        raise UserError(f"data.hub_config={hub_config} needs data.source=hub, which is {source}; change one of them")
    if path is None and kind.path == "required":
        raise UserError(f"data.source={source} needs data.path: {kind.path_names}")
    if kind.path == "none" and (path is not None or layout.columns):
        raise UserError(f"data.source={source} takes no data.path and no data.columns; set data.source to local or hub")
    return kind.open(SourceSettings(path, hub_config, layout, notify, skills))
