"""The landscape phase of an experiment: surfaces, their numbers, and the proof that they do not depend on the gauge."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llm_forgetting.batches import EncodedItem
from llm_forgetting.config import LandscapeConfig
from llm_forgetting.evaluation import score_tasks
from llm_forgetting.landscape.directions import inner, norm, orthogonal_directions
from llm_forgetting.landscape.gauge import Adapter, Factors, adapter_norm, canonicalise, regauged, update_norm
from llm_forgetting.landscape.metrics import mean_rise, surface_metrics
from llm_forgetting.landscape.scan import Objective, scan_line, scan_plane
from llm_forgetting.language_model import LanguageModel
from llm_forgetting.objective import SURFACES, AnswerStatistics
from llm_forgetting.progress import Advance
from llm_forgetting.seeding import derive_seed

SELF_TEST_TOLERANCE = 1e-4


def evaluations(config: LandscapeConfig) -> int:
    """Passes over the landscape items that one checkpoint costs, the (smaller) passes of the self-test not counted."""
    return config.resolution**2 + 2 * (config.directions - 2)


def analyse_landscape(
    model: LanguageModel,
    items: Sequence[tuple[str, Sequence[EncodedItem]]],
    config: LandscapeConfig,
    *,
    reference_norm: float | None,
    advance: Advance,
) -> dict[str, Any]:
    """Plane, mean rise and gauge self-test at the live adapter, for the tasks (name, items), as plain JSON values.

    `reference_norm` is |P| of the reference checkpoint, in units of which distances are counted; None: this one's own.
    """
    groups = [list(group) for _, group in items]
    adapter = canonicalise(model.adapter_factors())
    own = adapter_norm(adapter)
    length = own if reference_norm is None else reference_norm
    directions = orthogonal_directions(adapter, config.seed, config.directions, length)
    d, e, *others = directions
    with model.perturbed() as move:

        def objective(point: dict[str, Factors]) -> list[AnswerStatistics]:
            move(point)
            return score_tasks(model, groups, config.batch_size)

        def step() -> None:
            advance(1, "")

        plane = scan_plane(
            objective, adapter, d, e, distance=config.distance, resolution=config.resolution, advance=step
        )
        ends = [scan_line(objective, adapter, f, (-config.distance, config.distance), step) for f in others]
    half = config.resolution // 2
    surfaces = {}
    for index, (name, group) in enumerate(items):
        scan = plane.tasks[index]
        loss = scan.surface("loss")
        in_plane = [(loss[0, half], loss[-1, half]), (loss[half, 0], loss[half, -1])]
        rises = np.array([*in_plane, *(tuple(line[index].surface("loss")) for line in ends)])
        surfaces[name] = {
            "items": [item.item.id for item in group],
            **{kind: scan.surface(kind).tolist() for kind in SURFACES},
            "metrics": dataclasses.asdict(surface_metrics(plane.alphas, plane.betas, loss)),
            "mean_rise": dataclasses.asdict(mean_rise(float(loss[half, half]), rises)),
            "letter_logits": scan.letter_logits.tolist(),
            "rest": scan.rest.tolist(),
            "answers": scan.answers.tolist(),
        }
    return {
        "space": config.space,
        "distance": config.distance,
        "alphas": plane.alphas.tolist(),
        "betas": plane.betas.tolist(),
        "adapter_norm": own,
        "reference_norm": length,
        "relative_scale": own / length,
        "update_norm": update_norm(adapter),
        "direction_cosine": inner(d, e) / (norm(d) * norm(e)),
        "evaluations": evaluations(config),
        "surfaces": surfaces,
        "gauge_self_test": gauge_self_test(model, items[0][1], config, length),
    }


def gauge_self_test(
    model: LanguageModel, items: Sequence[EncodedItem], config: LandscapeConfig, length: float
) -> dict[str, Any]:
    """One landscape value and one second difference, for the adapter as it is and rewritten by random M per module.

    Both adapters are the same function, so both numbers must agree; in raw coordinates they would not.
    `relative_difference` is of each number's own size. A second difference of a nearly flat line is a difference of equal
    numbers, so `passed` allows it float32's rounding of the loss too.
    """
    factors = model.adapter_factors()
    group = [list(items[: config.self_test_items])]
    with model.perturbed() as move:

        def objective(point: dict[str, Factors]) -> list[AnswerStatistics]:
            move(point)
            return score_tasks(model, group, config.batch_size)

        found = [
            _value_and_second_difference(objective, canonicalise(written), config, length)
            for written in (factors, regauged(factors, derive_seed(config.seed, "gauge self-test")))
        ]
    (value, second, centre), (value_other, second_other, _) = found
    rounding = 64 * torch.finfo(torch.float32).eps * (abs(centre) + abs(value)) / config.distance**2
    return {
        "items": len(group[0]),
        "value": [value, value_other],
        "value_relative_difference": _relative(value, value_other),
        "second_difference": [second, second_other],
        "second_difference_relative_difference": _relative(second, second_other),
        "tolerance": SELF_TEST_TOLERANCE,
        "passed": bool(
            _relative(value, value_other) < SELF_TEST_TOLERANCE
            and abs(second - second_other) < SELF_TEST_TOLERANCE * abs(second) + rounding
        ),
    }


def _value_and_second_difference(
    objective: Objective, adapter: Adapter, config: LandscapeConfig, length: float
) -> tuple[float, float, float]:
    h = config.distance
    (direction,) = orthogonal_directions(adapter, config.seed, 1, length)
    low, centre, high = scan_line(objective, adapter, direction, (-h, 0.0, h))[0].surface("loss").tolist()
    return high, (low - 2 * centre + high) / h**2, centre


def _relative(a: float, b: float) -> float:
    scale = max(abs(a), abs(b))
    return abs(a - b) / scale if scale else 0.0
