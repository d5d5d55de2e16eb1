"""Sharpness-aware minimisation (SAM, ASAM): the gradient of a step is taken at the worst point of a ball around the weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

from llm_forgetting.config.rules import above
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.results import InterventionRecord, SharpnessAwareRecord
from llm_forgetting.training.method import Cost, Method, StepGradient
from llm_forgetting.training.random_numbers import rewinding

# Keeps the ascent finite where the gradient is 0; that of pytorch-optimizer's SAM.
TINY_NORM = 1e-12


@dataclass(frozen=True)
class SharpnessAware:
    """Sharpness-aware minimisation: the optimiser is given the gradient at the worst point of a ball around the weights.

        w + e,   e = rho T^2 g / |T g|,   T = 1 (SAM, Foret et al. 2021) or |w| elementwise (ASAM, Kwon et al. 2021)

    to first order in rho, with one norm over all trained weights. w are A and B as the optimiser holds them, so the ball of
    SAM (not that of ASAM) changes when B is multiplied and A divided by a number, though the function does not.
    """

    rho: float
    adaptive: bool = False

    @contextmanager
    def ascended(self, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """`parameters` at w + e, with the g that they hold; on leaving every bit is as before. Costs one copy of them."""
        moved = [p for p in parameters if p.grad is not None]
        before = [p.detach().clone() for p in moved]
        try:
            with torch.no_grad():
                self._ascend(moved)
            yield
        finally:
            with torch.no_grad():
                for p, kept in zip(moved, before, strict=True):
                    p.copy_(kept)

    def _ascend(self, parameters: Sequence[torch.Tensor]) -> None:
        gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        stretched = [g * p.abs() if self.adaptive else g for p, g in gradients]
        norm = float(torch.stack([torch.linalg.vector_norm(v).cpu() for v in stretched]).norm())
        for (p, _), v in zip(gradients, stretched, strict=True):
            p.add_(v * p.abs() if self.adaptive else v, alpha=self.rho / (norm + TINY_NORM))


class TwoPasses:
    """The gradient of one optimiser step under SAM, for a step that may consist of several micro-batches.

    The ascent needs the gradient of the whole step. So every micro-batch is passed through once, and after the last of them
    all are passed through again at the ascended weights. The second passes draw the random numbers of the first (dropout
    masks), so both gradients are of one function, and leave the generators where training without SAM would.
    """

    def __init__(self, sam: SharpnessAware, parameters: Sequence[torch.Tensor]) -> None:
        self._sam = sam
        self._parameters = list(parameters)
        self._passes: list[Callable[[], torch.Tensor]] = []
        self._losses: list[torch.Tensor] = []
        self._rewind: Callable[[], None] = lambda: None

    def add(self, backward: Callable[[], torch.Tensor], *, last: bool) -> torch.Tensor:
        """The loss of a micro-batch; `backward` adds its gradient and returns it. After the `last` one of a step the gradients
        are those at the ascended weights, and the weights are where they were.
        """
        if not self._passes:
            self._rewind = rewinding(self._parameters[0].device)
        self._passes.append(backward)
        self._losses.append(backward())
        loss = self._losses[-1]
        if last:
            self._pass_again()
            self._passes, self._losses = [], []
        return loss

    def _pass_again(self) -> None:
        with self._sam.ascended(self._parameters):
            for parameter in self._parameters:
                parameter.grad = None
            self._rewind()
            second = float(sum(backward() for backward in self._passes))
        if math.isfinite(float(sum(self._losses))) and not math.isfinite(second):
            raise UserError(
                f"the training loss at the weights that SAM ascends to became {second}; lower interventions.sam_rho "
                f"(was {self._sam.rho:g})"
            )


@dataclass(frozen=True)
class SamOptions:
    """Options of SAM.

    Args:
        rho: Radius, in units of the raw factors A and B.
        adaptive: Measure it relative to every weight's own size (ASAM).
        tasks: `all` tasks, or the `first` alone.
    """

    rho: float = above(0, default=0.05)
    adaptive: bool = False
    tasks: Literal["first", "all"] = "all"


class Sam(Method[SamOptions]):
    """SAM around Trainer's optimiser; two gradients per step."""

    Options = SamOptions

    title = "SAM"

    def acts(self, number: int) -> bool:
        """On all tasks, or on the first alone."""
        return self.options.tasks == "all" or number == 1

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """An optimiser that steps within the backward pass leaves no gradient."""
        optimizer = config.training.optimizer
        if optimizer in ("lomo", "adalomo") or optimizer.endswith("layerwise"):
            yield f"needs an optimiser that steps after the backward pass, training.optimizer={optimizer} steps within it"

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """Weights and gradients of the first pass are kept."""
        return Cost(passes=2, adapter_copies=2)

    def gradient(self, parameters: Sequence[torch.Tensor]) -> StepGradient:
        """That at the ascended weights."""
        return TwoPasses(SharpnessAware(self.options.rho, self.options.adaptive), parameters)

    def record(self, before: InterventionRecord, model: AdaptedModel) -> InterventionRecord:
        """Radius and kind."""
        return replace(before, sam=SharpnessAwareRecord(self.options.rho, self.options.adaptive))


METHOD = Sam
