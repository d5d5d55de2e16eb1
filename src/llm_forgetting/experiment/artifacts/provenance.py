"""From the phases' artifacts to results.json: assembly, schema version, provenance. No torch."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1
_PACKAGES = (
    "llm-forgetting",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "tokenizers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of every package that computes a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed (run from source)"
    return found


def environment() -> dict[str, Any]:
    """The machine, as far as it can change a rounding error."""
    return {"platform": platform.platform(), "machine": platform.machine(), "cpu_count": os.cpu_count()}


def without_raw_logits(content: Any) -> Any:
    """A phase's result as it stands in results.json: surfaces and numbers, no per-item logits, at any depth."""
    raw = ("letter_logits", "rest", "answers")
    if isinstance(content, Mapping):
        return {key: without_raw_logits(value) for key, value in content.items() if key not in raw}
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        return [without_raw_logits(value) for value in content]
    return content
