"""What may be changed in the training of a task: SAM, replay, an L2 anchor, and a rescaling that changes no function.

Everything is off by default, and training is then bit-identical to training without this file.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from llm_forgetting.config.sections import InterventionsConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.results import AnchorRecord, InterventionRecord, SharpnessAwareRecord
from llm_forgetting.seeding import generator

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


def rewinding(device: torch.device) -> Callable[[], None]:
    """What brings the random numbers of the CPU and of `device` back to where they are now."""
    states = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((partial(module.set_rng_state, device=device), module.get_rng_state(device)))

    def rewind() -> None:
        for restore, state in states:
            restore(state)

    return rewind


@dataclass(frozen=True)
class Anchor:
    """strength / 2 |delta W - delta W_start|_F^2 over all adapted modules, in nats; gauge-invariant.

    With delta W = B A and delta W_start = B0 A0 of the same ranks the difference is exactly

        B A - B0 A0 = [B - B0, B0] [A; A - A0],

    whose norm is a product of two 2r x 2r Gram matrices: no matrix of the size of the weights is formed, and the large terms
    have been subtracted before they are squared, so that float32 is accurate close to the start, too.
    """

    strength: float
    start: WeightUpdate

    def squared_distance(self, update: WeightUpdate) -> torch.Tensor:
        """|delta W - delta W_start|_F^2 over all modules, with a graph where `update` has one."""
        terms = []
        for name, pair in update.items():
            B0, A0 = self.start[name].B, self.start[name].A
            B = torch.cat([pair.B - B0, B0], dim=1)
            A = torch.cat([pair.A, pair.A - A0], dim=0)
            terms.append(((B.T @ B) * (A @ A.T)).sum())
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def penalty(self, update: WeightUpdate) -> torch.Tensor:
        """strength / 2 |delta W - delta W_start|_F^2, nats."""
        return self.strength / 2 * self.squared_distance(update)


@dataclass(frozen=True)
class Interventions:
    """What the training on one task is changed by; as built by default, by nothing.

    `replayed` holds the items of earlier tasks, by task, that every epoch contains too. `rescale` says what has been done to
    the factors before training; it has no part in the training itself.
    """

    sam: SharpnessAware | None = None
    anchor: Anchor | None = None
    replayed: Mapping[str, tuple[EncodedItem, ...]] = field(default_factory=dict)
    rescale: float = 1.0

    @property
    def replayed_items(self) -> list[EncodedItem]:
        """The items of all earlier tasks, in the order of the tasks."""
        return [item for items in self.replayed.values() for item in items]

    @torch.no_grad()
    def record(self, model: AdaptedModel) -> InterventionRecord:
        """What was on in a training that is over, which items were replayed, and where the anchored adapter ended."""
        anchor = None
        if self.anchor is not None:
            squared = max(float(self.anchor.squared_distance(model.live_factors())), 0.0)
            anchor = AnchorRecord(self.anchor.strength, self.anchor.strength / 2 * squared, math.sqrt(squared))
        return InterventionRecord(
            sam=None if self.sam is None else SharpnessAwareRecord(self.sam.rho, self.sam.adaptive),
            replayed={task: tuple(item.item.id for item in items) for task, items in self.replayed.items()},
            anchor=anchor,
            rescale=self.rescale,
        )


def intervene(
    settings: InterventionsConfig, model: AdaptedModel, earlier: Sequence[EncodedTask], seed: int
) -> Interventions:
    """What `settings` mean for the task that is learnt after `earlier`, `model` being at the checkpoint before it.

    The live adapter is rescaled here, and is what the anchor holds on to. Neither changes the function.
    """
    with_sam = settings.sam_rho > 0 and (settings.sam_on == "all" or not earlier)
    rescale = settings.rescale if earlier else 1.0
    if rescale != 1:
        model.rescale(rescale)
    return Interventions(
        sam=SharpnessAware(settings.sam_rho, settings.sam_adaptive) if with_sam else None,
        anchor=Anchor(settings.anchor, model.adapter_factors()) if settings.anchor > 0 and earlier else None,
        replayed={task.name: replay_subset(task, settings.replay_items, seed) for task in earlier}
        if settings.replay_items
        else {},
        rescale=rescale,
    )


def replay_subset(task: EncodedTask, count: int, seed: int) -> tuple[EncodedItem, ...]:
    """`count` trained items of `task` (all, if it has fewer), in their own order; the same ones for every later task."""
    rows = generator(seed, "replay", task.name).permutation(len(task.train))[:count]
    return tuple(task.train[row] for row in sorted(rows))
