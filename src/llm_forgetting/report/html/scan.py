"""The page of a scan: the loss around one or two adapters, and between them."""

import shlex
from pathlib import Path

from llm_forgetting.landscape.between_records import PathProfile
from llm_forgetting.landscape.records import CheckpointLandscape, TaskSurface
from llm_forgetting.report.html.blocks import Block, Code, Page, Points, Prose, Section
from llm_forgetting.report.html.checkpoint_plane import plane_blocks
from llm_forgetting.report.html.lines import lines_blocks
from llm_forgetting.report.html.paths import path_blocks
from llm_forgetting.report.html.reproduction import configuration, cost, versions, what_ran
from llm_forgetting.report.html.surfaces import landscape_blocks
from llm_forgetting.report.set_up import model_name
from llm_forgetting.report.tables.landscape import percent_above
from llm_forgetting.report.tables.run import display_name, number, value_and_error
from llm_forgetting.report.views.surfaces import split_word
from llm_forgetting.results import ScanResults


def scan_page(results: ScanResults) -> Page:
    """The page; what was not measured is left out, with the reason among the warnings."""
    model = results.model
    first, *others = (Path(path).name or path for path in results.adapters.values())
    return Page(
        title=f"The loss landscape around {first}" + "".join(f", and on the path to {other}" for other in others),
        kicker=f"llm-forgetting landscape · {model_name(model)} · {model.parameters:,} parameters",
        answers=[*_around(results), *_on_the_way(results)],
        warnings=results.warnings,
        sections=_sections(results),
        footer=[f"llm-forgetting {results.versions['llm-forgetting']}; random directions of one seed."],
    )


def _around(results: ScanResults) -> list[tuple[str, list[str]]]:
    """Per adapter a sentence for each task: the loss there, and how far it rises on average."""
    split = split_word(results)
    return [
        (
            f"Around {display_name(name)} ({results.adapters[name]})",
            [_describe_surface(task, surface, landscape, split) for task, surface in landscape.surfaces.items()],
        )
        for name, landscape in results.landscapes.items()
    ]


def _describe_surface(task: str, surface: TaskSurface, landscape: CheckpointLandscape, split: str) -> str:
    rise, basin, distance = surface.mean_rise, surface.lines.basin_radius, f"{landscape.distance:g}"
    radius = f"{distance}, the furthest measured" if basin.value is None else number(basin.value)
    return (
        f"The loss of {display_name(task)} ({len(surface.items)} {split} items) is {number(surface.metrics.centre)} nats; it "
        f"{'falls' if rise.value < 0 else 'rises'} by {value_and_error(abs(rise.value), rise.stderr)} nats at distance "
        f"{distance} (mean of {rise.directions} random directions ± standard error), and rises by at most {basin.tau:g} nats "
        f"up to distance {radius}.{_unsure(surface, landscape)}"
    )


def _unsure(surface: TaskSurface, landscape: CheckpointLandscape) -> str:
    """A warning on a surface whose fit did not reach its tolerance."""
    if surface.error is None or landscape.fit is None or surface.error.relative <= landscape.fit.tolerance:
        return ""
    return f" The surface's fit did not converge (error {percent_above(surface.error.relative)})."


def _on_the_way(results: ScanResults) -> list[tuple[str, list[str]]]:
    """Per path a sentence for each task, and one for t*."""
    return [
        (
            f"On the straight path from {display_name(path.start)} to {display_name(path.to)}",
            [
                *(_describe_profile(task, profile) for task, profile in path.tasks.items()),
                f"The mean loss of the tasks is least at t* = {number(path.repair.t)}, chosen on the same items.",
            ],
        )
        for path in results.paths
    ]


def _describe_profile(task: str, profile: PathProfile) -> str:
    height, error = profile.barrier.value, profile.error.largest
    barrier = (
        f"a barrier of {value_and_error(height, error)} nats at t = {number(profile.barrier.at)}"
        if height > error
        else "no barrier above the fit's error"
    )
    return (
        f"The loss of {display_name(task)} goes from {number(profile.loss[0])} to {number(profile.loss[-1])} nats, with "
        f"{barrier}."
    )


def _sections(results: ScanResults) -> list[Section]:
    any_between = results.paths or results.checkpoint_plane or results.between_notes
    between = [*plane_blocks(results), *path_blocks(results)] if any_between else []
    return [
        Section("landscape", "Loss landscape", landscape_blocks(results)),
        Section("directions", "Along random directions", lines_blocks(results)),
        *([Section("between", "Between the adapters", between)] if between else []),
        Section("method", "Method", [Points(_METHOD)]),
        Section("again", "How to reproduce", _again(results)),
    ]


_METHOD = (
    "The loss is minus the log-probability of the right token among all tokens, the mean over the same items at every point "
    "(of completions over all their tokens).",
    "Random directions are drawn in coordinates that do not depend on how LoRA happens to write its update, unless "
    "landscape.space says otherwise; distance 1 is the norm of the first adapter.",
    "Surfaces are fits to the logits of answers and of all other tokens at some well-placed points; their error is the largest "
    "at fresh random points, and not a bound.",
    "A mean rise's standard error is over directions; it says nothing of other items.",
)


def _again(results: ScanResults) -> list[Block]:
    first, *others = results.adapters.values()
    words = ["llm-forgetting", "landscape", first, *(word for other in others for word in ("--to", other))]
    words += [word for task in results.config.data.tasks for word in ("--task", task)]
    return [
        Prose("And every field of the configuration below that is not its default, by its dotted path."),
        Code(shlex.join(words)),
        what_ran(results),
        versions(results),
        cost(results.timings),
        configuration(results),
    ]
