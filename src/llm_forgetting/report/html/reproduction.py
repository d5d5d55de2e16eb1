"""How to reproduce a result: what ran on what, versions, cost and configuration."""

from collections.abc import Mapping

import yaml

from llm_forgetting.files import to_plain
from llm_forgetting.report.html.blocks import Folded, Numbers
from llm_forgetting.report.set_up import model_name
from llm_forgetting.report.tables.run import Table
from llm_forgetting.results import EvaluationResults, ForecastResults, Results, ScanResults, Timing

AnyResults = Results | ScanResults | ForecastResults | EvaluationResults


def what_ran(results: AnyResults, *more: tuple[str, str]) -> Numbers:
    """Table of model, adapter and machine, and of `more` facts."""
    model, machine = results.model, results.environment
    adapter = f"LoRA on {model.adapted_modules} modules, {model.adapter_parameters:,} parameters"
    facts = (
        ("model", f"{model_name(model)} ({model.architecture}, {model.parameters:,} parameters, {model.precision})"),
        *((("arithmetic", model.arithmetic),) if model.arithmetic else ()),
        ("adapter", adapter if model.adapter_parameters else "none"),
        ("machine", f"{machine.platform}, {model.threads} threads on {model.device}"),
        *more,
    )
    return Numbers(Table("What was run", ("what", "value"), facts))


def versions(results: AnyResults) -> Numbers:
    """Table of every package that numbers depend on."""
    return Numbers(Table("Versions", ("package", "version"), tuple(results.versions.items())))


def cost(timings: Mapping[str, Timing]) -> Numbers:
    """Table of seconds and memory of every phase."""
    rows = tuple(
        (name.replace("_", " "), f"{timing.wall_seconds:.1f}", f"{timing.peak_memory_bytes / 2**30:.2f}")
        for name, timing in timings.items()
    )
    return Numbers(Table("Cost", ("phase", "seconds", "peak memory (GiB)"), rows))


def configuration(results: AnyResults) -> Folded:
    """All of the configuration, to be opened."""
    config = yaml.safe_dump(to_plain(results.config), sort_keys=False, allow_unicode=True).rstrip()
    return Folded("The whole configuration", config)
