"""How to do it again: what ran on what, versions, cost and configuration, of anything that writes a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.report.html.blocks import Folded, Numbers
from llm_forgetting.report.tables.run import Table

Content = Mapping[str, Any]


def model_name(model: Content) -> str:
    """What a headline calls the model: a folder by its last part, one of the hub in full."""
    path = Path(model["name"])
    return path.name if path.is_absolute() else str(model["name"])


def what_ran(content: Content, *more: tuple[str, str]) -> Numbers:
    """Model, adapter and machine, and whatever else is given."""
    model, machine = content["model"], content["environment"]
    adapter = f"LoRA on {model['adapted_modules']} modules, {model['adapter_parameters']:,} parameters"
    facts = (
        ("model", f"{model['name']} ({model['architecture']}, {model['parameters']:,} parameters, {model['dtype']})"),
        ("adapter", adapter if model["adapter_parameters"] else "none"),
        ("machine", f"{machine['platform']}, {model['threads']} threads on {model['device']}"),
        *more,
    )
    return Numbers(Table("What was run", ("what", "value"), facts))


def versions(content: Content) -> Numbers:
    """Of every package that numbers depend on."""
    return Numbers(Table("Versions", ("package", "version"), tuple(content["versions"].items())))


def cost(timings: Mapping[str, Mapping[str, float]]) -> Numbers:
    """Seconds and memory of every phase."""
    rows = tuple(
        (name.replace("_", " "), f"{found['wall_seconds']:.1f}", f"{found['peak_memory_bytes'] / 2**30:.2f}")
        for name, found in timings.items()
    )
    return Numbers(Table("Cost", ("phase", "seconds", "peak memory (GiB)"), rows))


def configuration(content: Content) -> Folded:
    """All of it, to be opened."""
    config = yaml.safe_dump(content["config"], sort_keys=False, allow_unicode=True).rstrip()
    return Folded("The whole configuration", config)
