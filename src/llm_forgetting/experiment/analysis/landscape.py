"""The landscape phase of an experiment: surfaces, their numbers, and the proof that they do not depend on the gauge."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise, regauged
from llm_forgetting.landscape.metrics import (
    FLAT_RANGE,
    Curvature,
    basin_radius,
    fitted_curvature,
    mean_rise,
    surface_metrics,
)
from llm_forgetting.landscape.nodes import cached
from llm_forgetting.landscape.records import (
    BasinRadius,
    CheckpointLandscape,
    FitError,
    FitSummary,
    GaugeSelfTest,
    LineProfiles,
    TaskSurface,
)
from llm_forgetting.landscape.scan import LINE_NODES, LineScan, PlaneScan, scan_lines, scan_plane
from llm_forgetting.landscape.spaces import AdapterSpace, RawSpace, Space, WeightSpace
from llm_forgetting.landscape.spectral import FIRST_DEGREE, Fit, Rule, SpectralSurface, terms
from llm_forgetting.models.adapter.widened import NARROW
from llm_forgetting.models.any_module.parameters import room_for_directions
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import Items, LandscapeObjective
from llm_forgetting.models.language.scoring_batches import TOKENS_PER_BATCH
from llm_forgetting.progress import Advance
from llm_forgetting.seeding import derive_seed

SELF_TEST_TOLERANCE = 1e-4
CHECK_POINTS = 8
NO_COORDINATES = (
    "the update is more than plain LoRA (s B A), so landscapes are those of weight space, at its own distance (for another: "
    "landscape.space=weight and landscape.distance)"
)


def evaluations(config: LandscapeConfig) -> int:
    """Fewest passes over the landscape items that one checkpoint costs, the (smaller) passes of the self-test not counted."""
    plane = config.resolved_resolution**2 if config.method == "grid" else terms(FIRST_DEGREE) + CHECK_POINTS
    return plane + len(LINE_NODES) * (config.directions - 2)


def rule_of(config: LandscapeConfig) -> Rule:
    """When a fitted surface of this configuration is good enough."""
    return Rule(tolerance=config.tolerance, checks=CHECK_POINTS, budget=config.max_evaluations, seed=config.seed)


def space_of(model: LanguageModel, config: LandscapeConfig, factors: WeightUpdate | None = None) -> Space:
    """The configured direction space at the live adapter, or at the same adapter written as `factors`."""
    config, written = suited(model, config), model.adapter_factors() if factors is None else factors
    if config.space == "raw":
        return RawSpace(written)
    if config.space == "weight":
        require_space(model, config)
        return WeightSpace(written, model.weight_row_norms(written), room_for_directions())
    return AdapterSpace(canonicalise(written))


def suited(model: LanguageModel, config: LandscapeConfig) -> LandscapeConfig:
    """`config` with weight space where the model's update is not plain LoRA and has no coordinates of its own.

    A distance in units of an adapter's norm means nothing there.
    """
    if model.low_rank or config.space != "adapter":
        return config
    return replace(config, space="weight", distance=None)


def require_space(
    model: LanguageModel, config: LandscapeConfig, notify: Callable[[str], None] = lambda line: None
) -> None:
    """UserError where the configured space cannot be measured on this model; `notify` hears where it is another one."""
    if suited(model, config) != config:
        notify(NO_COORDINATES)
    if config.space == "raw":
        model.require_low_rank("landscape.space=raw")
    config = suited(model, config)
    if config.space == "weight" and model.precision in NARROW:
        raise UserError(
            f"landscape.space=weight needs float32 arithmetic (in {str(model.precision).removeprefix('torch.')} a small step "
            f"would be rounded away), landscape.arithmetic is native: set it to float32"
            + (", or use landscape.space=adapter" if model.low_rank else "")
        )


def objective_of(model: LanguageModel, items: Items, config: LandscapeConfig) -> LandscapeObjective:
    """The landscape objective, with as many points in a forward pass as `rows_per_forward` says."""
    rows = rows_per_forward([item for _, group in items for item in group], config, gpu=model.device.type == "cuda")
    return LandscapeObjective(model, items, config.batch_size, rows if model.low_rank else 1)


def rows_per_forward(items: Sequence[EncodedItem], config: LandscapeConfig, *, gpu: bool) -> int:
    """Points that share a forward of the backbone: 1 in weight space and on a CPU; on a GPU as many as make some thousand
    tokens, unless told otherwise.
    """
    if config.space == "weight":
        return 1
    if config.points_per_forward is not None or not gpu:
        return config.points_per_forward or 1
    longest = sorted((len(item.input_ids) for item in items), reverse=True)
    return max(1, TOKENS_PER_BATCH // sum(longest[: config.batch_size]))


def analyse_landscape(
    model: LanguageModel,
    items: Items,
    config: LandscapeConfig,
    *,
    reference_norm: float | None,
    advance: Advance,
    journal: Path | None = None,
    update: WeightUpdate | None = None,
) -> CheckpointLandscape:
    """Plane, lines and gauge self-test at the live adapter or another `update`, for the tasks (name, items).

    `reference_norm` is |P| of the reference checkpoint, in units of which distances are counted; None: this one's own.
    An update that is not plain LoRA is measured in weight space, and has no gauge to be tested.
    Every evaluation is written to `journal` when it is made, and one that stands there already is not made again.
    """
    config = suited(model, config)
    update = model.adapter_factors() if update is None else update
    objective, space = objective_of(model, items, config), space_of(model, config, update)
    own, distance = space.norm, config.resolved_distance
    length = own if reference_norm is None else reference_norm
    directions = space.directions(config.seed, max(config.directions, 2), length)
    d, e = directions[:2]
    with cached(objective, journal, lambda: advance(1, "")) as nodes:
        plane = scan_plane(
            nodes,
            lambda row: space.point([(row[0], d), (row[1], e)]),
            objective.losses,
            distance=distance,
            cells=config.resolved_resolution,
            method=config.method,
            rule=rule_of(config),
        )
        lines = scan_lines(nodes, space, directions, plane, objective.losses, distance=distance)
    return CheckpointLandscape(
        space=config.space,
        method="grid" if plane.surface is None else "spectral",
        distance=distance,
        alphas=plane.alphas,
        betas=plane.betas,
        adapter_norm=own,
        reference_norm=length,
        relative_scale=own / length,
        update_norm=update.norm(),
        direction_cosine=space.cosine(d, e),
        evaluations=nodes.evaluations,
        fit=None if plane.surface is None else fit_summary(plane.surface, config.tolerance),
        note=plane.note,
        points=plane.points,
        surfaces={name: _surface(index, objective, plane, lines, config) for index, name in enumerate(objective.names)},
        gauge_self_test=gauge_self_test(model, items[0], config, length, space) if model.low_rank else None,
    )


def fit_summary(surface: SpectralSurface, tolerance: float) -> FitSummary:
    """Degree, cost and verdict of a fit."""
    return FitSummary(
        degree=surface.fit.degree,
        evaluations=surface.evaluations,
        check_points=surface.checks,
        tolerance=tolerance,
        converged=surface.converged,
    )


def fit_error(index: int, objective: LandscapeObjective, surface: SpectralSurface) -> FitError:
    """Error of task number `index`, measured at the check points."""
    checks = slice(-surface.checks, None)
    truth, predicted = (
        objective.statistics(values)[index] for values in (surface.values[checks], surface.fit(surface.points[checks]))
    )
    return FitError(
        largest=float(surface.error[index]),
        relative=float(surface.relative_error[index]),
        wrong_letters=float((truth.predictions != predicted.predictions).mean()),
    )


def _surface(
    index: int, objective: LandscapeObjective, plane: PlaneScan, lines: LineScan, config: LandscapeConfig
) -> TaskSurface:
    """Everything about task number `index` on a scanned plane and its lines."""
    scan, measured = (objective.statistics(values)[index] for values in (plane.values, plane.measured))
    loss, surface, half = scan.surface("loss"), plane.surface, len(plane.alphas) // 2

    def curvature(fit: Fit) -> Curvature:
        own = fit.of(objective.columns(index))
        return fitted_curvature(lambda points: objective.loss(index, own(points)), config.resolved_distance)

    profiles = lines.losses[:, :, index]
    with np.errstate(invalid="ignore"):
        stderr = profiles.std(axis=0, ddof=1) / len(profiles) ** 0.5
    return TaskSurface(
        items=objective.item_ids(index),
        loss=loss,
        four_way_loss=scan.surface("four_way_loss"),
        accuracy=scan.surface("accuracy"),
        letter_mass=scan.surface("letter_mass"),
        error=None if surface is None else fit_error(index, objective, surface),
        metrics=surface_metrics(
            plane.alphas,
            plane.betas,
            loss,
            tau=config.tau,
            curvature=None if surface is None else curvature(surface.fit),
            coarser=None if surface is None else curvature(surface.previous),
            flat_below=FLAT_RANGE,
        ),
        mean_rise=mean_rise(float(loss[half, half]), profiles[:, [0, -1]]),
        lines=LineProfiles(
            steps=lines.steps,
            losses=profiles,
            mean=profiles.mean(axis=0),
            stderr=stderr,
            nodes=lines.nodes,
            basin_radius=BasinRadius(config.tau, basin_radius(lines.steps, profiles, config.tau)),
        ),
        measured_loss=measured.surface("loss"),
        letter_logits=measured.letter_logits,
        rest=measured.rest,
        answers=measured.answers,
    )


def gauge_self_test(
    model: LanguageModel, task: tuple[str, Sequence[EncodedItem]], config: LandscapeConfig, length: float, space: Space
) -> GaugeSelfTest:
    """One landscape value and one second difference, for the adapter as it is (`space`) and rewritten by random M per module.

    Both adapters are the same function, so both numbers must agree; in raw coordinates they would not.
    `relative_difference` is of each number's own size. A second difference of a nearly flat line is a difference of equal
    numbers, so `passed` allows it the rounding of the loss too, and of a nat where it is less, being a difference of large
    logits: float32's rounding, or the backbone's own where that is coarser.
    """
    factors, h = model.adapter_factors(), config.resolved_distance
    items = list(task[1][: config.self_test_items])
    objective = objective_of(model, [(task[0], items)], config)
    points = []
    rewritten = WeightUpdate(regauged(factors, derive_seed(config.seed, "gauge self-test")))
    for around in (space, space_of(model, config, rewritten)):
        (direction,) = around.directions(config.seed, 1, length)
        points += [around.point([(step, direction)]) for step in (-h, 0.0, h)]
    with objective.evaluating() as values_at:
        losses = [float(objective.losses(values)[0]) for values in values_at(points)]
    (value, second, centre), (value_other, second_other, _) = [
        (high, (low - 2 * centre + high) / h**2, centre) for low, centre, high in (losses[:3], losses[3:])
    ]
    low = model.precision in NARROW
    precision = torch.finfo(model.precision if low else torch.float32).eps
    tolerance = max(SELF_TEST_TOLERANCE, 4 * precision) if low else SELF_TEST_TOLERANCE
    rounding = (4 if low else 64) * precision * max(1.0, abs(centre) + abs(value)) / h**2
    return GaugeSelfTest(
        items=len(items),
        value=(value, value_other),
        value_relative_difference=_relative(value, value_other),
        second_difference=(second, second_other),
        second_difference_relative_difference=_relative(second, second_other),
        tolerance=tolerance,
        passed=bool(
            _relative(value, value_other) < tolerance
            and abs(second - second_other) < tolerance * abs(second) + rounding
        ),
    )


def _relative(a: float, b: float) -> float:
    scale = max(abs(a), abs(b))
    return abs(a - b) / scale if scale else 0.0
