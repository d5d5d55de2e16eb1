"""Configurations as plain values by dotted path, and their fingerprint."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llm_forgetting.files import Json

if TYPE_CHECKING:
    from llm_forgetting.config.sections import AnyConfig, ExperimentConfig

SEEDS = ("training.seed", "data.seed", "landscape.seed", "curvature.seed")
"""The fields that `seed` stands for in a study's file and in Python."""
LATER_FIELDS: dict[str, Json] = {
    "data.definitions": None, "landscape.arithmetic": "float32", "model.quantization": None, "lora.use_dora": False,
    "lora.init": True, "lora.bias": "none", "lora.modules_to_save": [], "lora.rank_pattern": {}, "lora.alpha_pattern": {},
    "lora.layers_to_transform": [], "evaluation.quantised": [], "data.difficulty": 1,
    "data.shift": False, "data.weighting": "token",
    "evaluation.during": 0, "evaluation.during_items": None, "evaluation.during_split": "test",
    "training.methods": {}, "data.probes": [], "data.probe_limit": None, "data.harness_tasks": None,
}  # fmt: skip
"""Fields that older runs do not have: with these values a configuration keeps the fingerprint that it had."""


def to_dict(config: "AnyConfig") -> dict[str, Json]:
    """The configuration as plain nested dicts, lists, strings and numbers."""
    plain: dict[str, Json] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


_MAPPINGS = ("columns", "rank_pattern", "alpha_pattern", "methods")


def leaves(tree: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Every value of nested sections with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and str(key).rpartition(".")[2] not in _MAPPINGS:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fingerprint(config: "ExperimentConfig") -> str:
    """SHA-256 of everything that can change a number; UserError where the file `data.definitions` cannot be read."""
    # Numbers as floats: 16 and 16.0 are one configuration, in Python and in YAML.
    content = {
        path: float(value) if type(value) is int else value
        for path, value in leaves(to_dict(config))
        if not path.startswith("output.") and (path, value) not in LATER_FIELDS.items()
    }
    if config.training.methods:
        content["training.methods"] = _as_floats({n: given or {} for n, given in config.training.methods.items()})
    if config.landscape.tasks == "first_own_last" and len(config.data.tasks) <= 2:
        content["landscape.tasks"] = "all"  # the same numbers, and the fingerprint of older runs
    if config.data.definitions is not None:
        content["data.definitions_sha256"] = config.data.definitions_sha256
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _as_floats(value: Json) -> Json:
    """`value` with every whole number in it as a float."""
    if isinstance(value, dict):
        return {key: _as_floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_floats(entry) for entry in value]
    return float(value) if type(value) is int else value
