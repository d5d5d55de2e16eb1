"""Provenance of a result: schema version, versions and machine; and what of a phase stands in results.json. No torch."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, TypeVar

from llm_forgetting.landscape.between_records import BetweenCheckpoints, PathProfile, PlaneSurface
from llm_forgetting.landscape.records import CheckpointLandscape, TaskSurface
from llm_forgetting.results import Environment

SCHEMA_VERSION: Final[Literal[1]] = 1
Scan = TypeVar("Scan", TaskSurface, PathProfile, PlaneSurface)
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


def versions(quantization: str | None = None) -> dict[str, str]:
    """Versions of Python and of every package that computes a number; of a quantised model also of that which its description
    begins with.
    """
    installed = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(quantization or "").split()[:1]):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed (run from source)"
    return installed


def environment() -> Environment:
    """The machine, as far as it can change a rounding error."""
    return Environment(platform.platform(), platform.machine(), os.cpu_count())


def surfaces_alone(landscape: CheckpointLandscape) -> CheckpointLandscape:
    """A landscape as it stands in results.json: no logits of items."""
    return replace(landscape, surfaces=_without_logits(landscape.surfaces))


def profiles_alone(between: BetweenCheckpoints) -> BetweenCheckpoints:
    """Paths and plane as they stand in results.json: no logits of items."""
    plane = between.checkpoint_plane
    return replace(
        between,
        paths=tuple(replace(path, tasks=_without_logits(path.tasks)) for path in between.paths),
        checkpoint_plane=None if plane is None else replace(plane, surfaces=_without_logits(plane.surfaces)),
    )


def _without_logits(scans: Mapping[str, Scan]) -> dict[str, Scan]:
    return {task: replace(scan, letter_logits=None, rest=None, answers=None) for task, scan in scans.items()}
