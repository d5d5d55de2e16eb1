"""The page of `llm-forgetting landscape`: how steep it is around one or two adapters, and what lies between."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forgetting.report.html.blocks import Block, Code, Page, Points, Prose, Section
from llm_forgetting.report.html.curves import lines_blocks
from llm_forgetting.report.html.paths import between_blocks
from llm_forgetting.report.html.reproduction import configuration, cost, model_name, versions, what_ran
from llm_forgetting.report.html.surfaces import landscape_blocks
from llm_forgetting.report.tables.run import SPLIT_WORDS, number, share, spoken, value_and_error

Content = Mapping[str, Any]


def scan_page(content: Content) -> Page:
    """What was not measured is left out, with the reason among the warnings."""
    model, adapters = content["model"], content["adapters"]
    first, *others = (Path(path).name or path for path in adapters.values())
    return Page(
        title=f"The loss landscape around {first}" + "".join(f", and on the way to {other}" for other in others),
        kicker=f"llm-forgetting landscape · {model_name(model)} · {model['parameters']:,} parameters",
        answers=[*_around(content), *_on_the_way(content)],
        warnings=content["warnings"],
        sections=_sections(content),
        footer=[f"llm-forgetting {content['versions']['llm-forgetting']}; random directions of one seed."],
    )


def _around(content: Content) -> list[tuple[str, list[str]]]:
    """Per adapter a sentence for each task: the loss there, and how far it rises on average."""
    split = SPLIT_WORDS[content["config"]["landscape"]["items"]]
    answers = []
    for name, landscape in content["landscapes"].items():
        sentences = []
        for task, surface in landscape["surfaces"].items():
            rise, radius = surface["mean_rise"], surface["lines"]["basin_radius"]
            value, distance = float(rise["value"]), f"{landscape['distance']:g}"
            held = f"{distance}, the furthest measured" if radius["value"] is None else number(radius["value"])
            sentences.append(
                f"The loss of {spoken(task)} ({len(surface['items'])} {split} items) is "
                f"{number(surface['metrics']['centre'])} nats; it {'falls' if value < 0 else 'rises'} by "
                f"{value_and_error(abs(value), rise['stderr'])} nats at distance {distance} (mean of {rise['directions']} "
                f"random directions ± standard error), and rises by at most {float(radius['tau']):g} nats up to distance "
                f"{held}.{_unsure(surface['error'], landscape['fit'])}"
            )
        answers.append((f"Around {spoken(name)} ({content['adapters'][name]})", sentences))
    return answers


def _unsure(error: Mapping[str, Any] | None, fit: Mapping[str, Any] | None) -> str:
    """A warning on a surface whose fit did not reach its tolerance."""
    if error is None or fit is None or float(error["relative"]) <= float(fit["tolerance"]):
        return ""
    return f" The surface's fit did not converge (error {share(error['relative'])})."


def _on_the_way(content: Content) -> list[tuple[str, list[str]]]:
    answers = []
    for path in content["paths"]:
        sentences = []
        for task, found in path["tasks"].items():
            height, error = float(found["barrier"]["value"]), float(found["error"]["largest"])
            barrier = (
                f"a barrier of {value_and_error(height, error)} nats at t = {number(found['barrier']['at'])}"
                if height > error
                else "no barrier above the fit's error"
            )
            sentences.append(
                f"The loss of {spoken(task)} goes from {number(found['loss'][0])} to {number(found['loss'][-1])} nats, with "
                f"{barrier}."
            )
        sentences.append(
            f"The mean loss of the tasks is least at t* = {number(path['repair']['t'])}, chosen on the same items."
        )
        answers.append((f"On the straight path from {spoken(path['from'])} to {spoken(path['to'])}", sentences))
    return answers


def _sections(content: Content) -> list[Section]:
    between = bool(content["paths"] or content["checkpoint_plane"] or content["between_notes"])
    return [
        Section("landscape", "Loss landscape", landscape_blocks(content)),
        Section("directions", "Along random directions", lines_blocks(content)),
        *([Section("between", "Between the adapters", between_blocks(content))] if between else []),
        Section("method", "Method", [Points(_METHOD)]),
        Section("again", "How to reproduce", _again(content)),
    ]


_METHOD = (
    "The loss is minus the log-probability of the right letter among all tokens, the mean over the same items at every point.",
    "Random directions are drawn in coordinates that do not depend on how LoRA happens to write its update, unless "
    "landscape.space says otherwise; distance 1 is the norm of the first adapter.",
    "Surfaces are fits to letter logits at some well-placed points; their error is the largest at fresh random points, and not "
    "a bound.",
    "A mean rise's standard error is over directions; it says nothing of other items.",
)


def _again(content: Content) -> list[Block]:
    first, *others = content["adapters"].values()
    words = ["llm-forgetting", "landscape", first, *(word for other in others for word in ("--to", other))]
    words += [word for task in content["config"]["data"]["tasks"] for word in ("--task", task)]
    return [
        Prose("And every field of the configuration below that is not its default, by its dotted path."),
        Code(shlex.join(words)),
        what_ran(content),
        versions(content),
        cost(content["timings"]),
        configuration(content),
    ]
