"""Pairs of saved checkpoints of one backbone: `A B` of the commands, either of which may be the bare backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.trained_items import require_whole_adapter
from llm_forgetting.files import user_path
from llm_forgetting.models.adapter.full_updates import is_full_model
from llm_forgetting.models.adapter.saved_adapter import read_config
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.settings import BUILT_IN

BASE = "base"
NAMES = ("A", "B")
Checkpoint = Path | None
"""The folder of a saved checkpoint, or None: the bare backbone."""
Pair = tuple[Checkpoint, Checkpoint]


def checkpoint_named(word: str) -> Checkpoint:
    """The checkpoint that a word of the command line stands for: `base` is the bare backbone, all else a folder."""
    return None if word == BASE else user_path(word)


def require_pair(pair: Pair, model: ModelConfig) -> None:
    """Raise UserError unless both are whole, differ, and are of one backbone by the name that each gives it.

    A `model.name` that is given is believed: whether the weights fit shows when they are read.
    """
    saved = [checkpoint for checkpoint in pair if checkpoint is not None]
    if not saved:
        raise UserError(f"at least one of A and B must be a saved adapter, both are {BASE}: nothing lies between them")
    if len(saved) == len(pair) and saved[0].resolve() == saved[1].resolve():
        raise UserError(f"A and B must be two checkpoints, both are {saved[0]}; give two folders, or {BASE} for one")
    for folder in saved:
        require_whole_adapter(folder)
    whole = [folder for folder in saved if is_full_model(folder)]
    if whole and None in pair and model.name == ModelConfig.name:
        raise UserError(
            f"{BASE} must be named where the other checkpoint is a whole model ({whole[0]}); give --model_name"
        )
    adapters = [folder for folder in saved if folder not in whole]
    names = [str(read_config(folder).get("base_model_name_or_path") or "") for folder in adapters]
    known = [_built_in(name) for name in names if name]
    if model.name == ModelConfig.name and len(set(known)) > 1:
        raise UserError(
            f"A and B must be of one backbone, A names {names[0]} and B names {names[1]}; where these are the same weights, "
            f"name them with --model_name"
        )


def _built_in(name: str) -> str:
    """A backbone's name, that of one of ours without its folder."""
    return next((ours for ours, folder in BUILT_IN.items() if Path(name).name == folder), name)


def open_one(pair: Sequence[Checkpoint], model: ModelConfig, notify: Callable[[str], None]) -> LanguageModel:
    """The first of `pair` that is saved, on its backbone."""
    return LanguageModel.open_adapter(next(folder for folder in pair if folder is not None), model, notify)


def described(checkpoint: Checkpoint) -> str:
    """What the user called it."""
    return BASE if checkpoint is None else str(checkpoint)
