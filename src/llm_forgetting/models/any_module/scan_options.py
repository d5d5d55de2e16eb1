"""What every scan of one's own model has in common: the guarded model, its losses at points, and the rules of a fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar

import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.nodes import Evaluator
from llm_forgetting.landscape.results import Evaluations
from llm_forgetting.landscape.spectral import FIRST_DEGREE, Fit, Rule, SpectralSurface, terms
from llm_forgetting.models.adapter.interrupts import defer_interrupts
from llm_forgetting.models.any_module.directions import Mover, SpaceName
from llm_forgetting.models.any_module.losses import Batches, Loss, MeanLosses, tasks_of
from llm_forgetting.models.any_module.preserved_state import preserve_model_state

Progress = Callable[[], object]
Method = Literal["spectral", "grid"]
Tasks = Mapping[str, Batches]
# Fresh random points at which a fit is checked; with four on a line, one kink in six passed for smooth.
CHECKS = 8
# Cells along an axis where a fit gives them, and where every one of them is evaluated.
FITTED_CELLS, GRID_CELLS = 41, 11

Result = TypeVar("Result")


class FitOptions(TypedDict, total=False):
    """Keywords of every scan that is fitted; see `scan_plane`."""

    tolerance: float
    max_evaluations: int
    seed: int
    progress: Progress | None


class SpaceOptions(TypedDict, total=False):
    """Keywords of every scan around a model as it stands; see `scan_plane`."""

    distance: float
    space: SpaceName | None
    parameters: Sequence[str] | None
    reference_norm: float | None


@contextmanager
def measuring(model: torch.nn.Module, loss: Loss, batches: Batches | Tasks) -> Iterator[MeanLosses]:
    """The losses of `model`, checked to be the same twice; afterwards it is as it was, also after an error or Ctrl-C."""
    with defer_interrupts() as interruptible, preserve_model_state(model):
        losses = MeanLosses(model, loss, tasks_of(batches), interruptible)
        losses.check()
        yield losses


@dataclass(frozen=True)
class ModuleObjective:
    """Mean losses of a module's tasks as a landscape objective: what is fitted is the loss itself, nothing is known about
    how it comes about.
    """

    mean_losses: MeanLosses
    perturbed: Mover

    @property
    def names(self) -> Sequence[str]:
        """The tasks."""
        return self.mean_losses.names

    @contextmanager
    def evaluating(self) -> Iterator[Evaluator]:
        """Context with an evaluator; the module moves meanwhile, and is as before afterwards."""
        with self.perturbed() as move:

            def evaluate(points: Iterable[WeightUpdate]) -> Iterator[Floats]:
                for point in points:
                    move(point)
                    yield self.mean_losses.values()

            yield evaluate

    @staticmethod
    def losses(values: Floats) -> Floats:
        """The values themselves."""
        return values


def unwrap_single_task(by_task: Mapping[str, Result]) -> Result | dict[str, Result]:
    """Results by task, or the only one of a task without a name."""
    return by_task[""] if set(by_task) == {""} else dict(by_task)


def silent() -> None:
    """No progress reports."""


def rule(tolerance: float, budget: int, checks: int, axes: int, seed: int) -> Rule:
    """When a fit is good enough; UserError where the budget is too small for any."""
    least = terms(FIRST_DEGREE, axes) + checks
    if budget < least:
        raise UserError(f"max_evaluations must be at least {least}, was {budget}")
    if not tolerance > 0:
        raise UserError(f"tolerance must be greater than 0, was {tolerance}")
    return Rule(tolerance=tolerance, checks=checks, budget=budget, seed=seed)


def cells_of(method: str, resolution: int | None) -> int:
    """Cells along an axis; UserError where the checkpoint would not be one of them."""
    if method not in ("spectral", "grid"):
        raise UserError(f"method must be 'spectral' or 'grid', was {method!r}")
    cells = (GRID_CELLS if method == "grid" else FITTED_CELLS) if resolution is None else resolution
    if cells < 3 or cells % 2 == 0:
        raise UserError(f"resolution must be odd (the centre is a cell) and at least 3, was {cells}")
    return cells


def refuse_distance(distance: float) -> None:
    """UserError where `distance` is none."""
    if not 0 < distance < float("inf"):
        raise UserError(f"distance must be greater than 0, was {distance}")


@dataclass(frozen=True)
class Measured:
    """All evaluations of a scan: `points` (p, axes), `losses` (p, tasks), and the fit to them, or why there is none."""

    points: Floats
    losses: Floats
    fitted: SpectralSurface | None
    note: str | None = None

    def of_task(self, index: int, tolerance: float) -> Evaluations:
        """What the result of task number `index` rests on."""
        fitted = self.fitted
        relative = None if fitted is None else float(fitted.relative_error[index])
        return Evaluations(
            points=self.points,
            losses=self.losses[:, index],
            degree=None if fitted is None else fitted.fit.degree,
            checks=0 if fitted is None else fitted.checks,
            error=None if fitted is None else float(fitted.error[index]),
            relative_error=relative,
            tolerance=tolerance,
            converged=self.note is None and (relative is None or relative <= tolerance),
            note=self.note,
        )


def fit_of(index: int, fitted: Fit) -> Fit:
    """The polynomial of task number `index` alone."""
    return Fit(fitted.domain, fitted.degree, fitted.coefficients[:, [index]], fitted.absent[[index]])
