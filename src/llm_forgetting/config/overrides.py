"""From keyword arguments to a configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_forgetting.config.files import dotted_paths, parse_config, unknown_option, written
from llm_forgetting.config.methods import names_option
from llm_forgetting.config.paths import SEEDS, leaves, to_dict
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError

Config = ExperimentConfig | str | os.PathLike[str]


def resolve(config: Config, tasks: Sequence[str] | None, settings: Mapping[str, Any]) -> ExperimentConfig:
    """`config` (a preset, a YAML file, or a whole configuration) with `settings` laid over it.

    A setting is a section with some of its fields (`lora={"rank": 16}`), a dotted path (`**{"lora.rank": 16}`), or `seed`,
    which stands for every seed. UserError names what is unknown or impossible.
    """
    flat = dict(leaves(settings))
    if "seed" in flat:
        flat = {**dict.fromkeys(SEEDS, flat.pop("seed")), **flat}
    for path, value in flat.items():
        if path not in dotted_paths() and not names_option(path) and (path, value) != ("lora", None):
            raise UserError(unknown_option(path))
    named = flat.pop("data.tasks", None) if tasks is None else tasks
    if isinstance(named, str):
        raise UserError(f"tasks must be a list of names, was the text {named!r}")
    if isinstance(config, ExperimentConfig):
        flat = {**{path: value for path, value in leaves(to_dict(config)) if path != "data.tasks"}, **flat}
        named, config = named or config.data.tasks, "quickstart"
    dotted = [f"--{path}={written(value)}" for path, value in flat.items()]
    return parse_config(str(Path(config)), dotted, tasks=None if named is None else [str(name) for name in named])
