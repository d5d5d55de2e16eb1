"""Mean loss of any module over batches, one number per task, and its derivatives; sums and counts are divided once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from llm_forgetting.arrays import Floats
from llm_forgetting.curvature.double_backward import Derivatives, add_derivatives, double_backward
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.interrupts import Interruptible

# loss(model, batch): a mean as a scalar, losses of items as a vector, or (sum, count). None: model(**batch).loss.
Loss = Callable[[Any, Any], Any] | None
Batches = Iterable[Any]
IGNORED = -100
# Two passes may differ by what a GPU rounds differently, not by more.
SAME = 1e-4
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class MeanLosses:
    """Mean loss of every task over its batches, at the point where the model stands.

    A vector that `loss` returns holds the losses of items. A scalar is a mean: over the predicted tokens of a batch that has
    `labels`, else over the items (the length of the batch's first tensor). Batches of different sizes therefore weigh what
    they hold. `interruptible` is entered for every batch.
    """

    def __init__(
        self, model: torch.nn.Module, loss: Loss, tasks: Mapping[str, Batches], interruptible: Interruptible
    ) -> None:
        self._model, self._loss, self._interruptible = model, loss, interruptible
        self._tasks = {name: _re_iterable(name, batches) for name, batches in tasks.items()}
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.names = tuple(tasks)

    def values(self) -> Floats:
        """(tasks,) mean losses; not finite where a batch's is not."""
        return np.array([_mean(self._pass(name)) for name in self.names])

    def check(self) -> Floats:
        """(tasks,) mean losses of a first pass; UserError where a second one gives batches other losses."""
        means = []
        for name in self.names:
            first, second = self._pass(name), self._pass(name)
            if not len(first) or not first[:, 1].sum():
                raise UserError(f"{_called(name)} must hold something to predict, they hold nothing")
            if first.shape != second.shape or not np.allclose(first, second, rtol=SAME, atol=SAME, equal_nan=True):
                raise UserError(
                    f"two passes over {_called(name)} must give the same losses batch by batch, they do not: the order must be "
                    f"fixed (a loader with shuffle=False) and nothing random in items, model or loss"
                )
            means.append(_mean(first))
        return np.array(means)

    def gradient(self, leaves: Sequence[torch.Tensor], before: Callable[[], None] = lambda: None) -> list[torch.Tensor]:
        """Gradient of the mean of the tasks' losses.

        Args:
            leaves: What is differentiated for.
            before: Called before every batch.

        Returns:
            A tensor per leaf.
        """
        return self._derivatives(leaves, lambda loss: torch.autograd.grad(loss, leaves, allow_unused=True), before)

    def hessian(
        self, leaves: Sequence[torch.Tensor], step: Sequence[torch.Tensor], before: Callable[[], None] = lambda: None
    ) -> list[torch.Tensor]:
        """Hessian of the mean of the tasks' losses times a step.

        Args:
            leaves: What is differentiated for.
            step: A tensor per leaf.
            before: Called before every batch.

        Returns:
            A tensor per leaf.
        """
        return self._derivatives(leaves, lambda loss: double_backward(loss, leaves, step)[1], before)

    def _derivatives(
        self,
        leaves: Sequence[torch.Tensor],
        differentiate: Callable[[torch.Tensor], Derivatives],
        before: Callable[[], None],
    ) -> list[torch.Tensor]:
        """The mean over the tasks of what `differentiate` makes of the sums of their batches, divided once by their counts."""
        total = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
        for name in self.names:
            sums, weight = [torch.zeros_like(part) for part in total], 0.0
            for batch in self._tasks[name]:
                with torch.enable_grad(), self._interruptible():
                    before()
                    loss, count = self._measured(batch)
                    if count:
                        add_derivatives(sums, differentiate(loss))
                weight += count
            for part, gradient in zip(total, sums, strict=True):
                part.add_(gradient, alpha=1 / (weight * len(self.names)))
        return total

    def _pass(self, name: str) -> Floats:
        """(batches, 2): sum and count of every batch."""
        sums = []
        for batch in self._tasks[name]:
            with self._interruptible():
                loss, count = self._measured(batch)
                sums.append((float(loss.detach().double()), count))
        return np.array(sums, dtype=np.float64).reshape(-1, 2)

    def _measured(self, batch: Any) -> tuple[torch.Tensor, float]:
        """Sum of the losses of one batch, and how many they are."""
        batch = _moved(batch, self._device)
        result = self._predicted(batch) if self._loss is None else self._loss(self._model, batch)
        if isinstance(result, tuple | list) and len(result) == 2:
            return torch.as_tensor(result[0], dtype=None).sum(), float(result[1])
        if not isinstance(result, torch.Tensor):
            raise UserError(
                f"loss(model, batch) must return a tensor or (sum, count), returned {type(result).__name__}"
            )
        if result.ndim:
            return result.sum(), float(result.numel())
        count = _weight(self._model, batch)
        # A mean over nothing is 0 / 0 and weighs nothing.
        return (result * count if count else torch.zeros_like(result)), count

    def _predicted(self, batch: Any) -> torch.Tensor:
        if not isinstance(batch, Mapping):
            raise UserError(
                f"batches that are no dicts need a loss: pass loss(model, batch), which returns a mean or (sum, count); the "
                f"batch is a {type(batch).__name__}"
            )
        loss = getattr(self._model(**batch), "loss", None)
        if loss is None:
            raise UserError(
                f"model(**batch) must return a loss, it does not for {', '.join(batch)}: add labels, or pass loss="
            )
        return torch.as_tensor(loss)


def _mean(passed: Floats) -> float:
    """From (batches, 2) sums and counts."""
    with np.errstate(invalid="ignore"):  # infinite minus infinite is NaN, without a warning
        total, count = passed.sum(axis=0)
    return float(total / count)


def _weight(model: Any, batch: Any) -> float:
    """Weight of a batch's mean in that of all batches.

    Args:
        model: Whether it shifts labels by one token decides whether the first of a row counts.
        batch: What `loss` was called with.

    Returns:
        The number of predicted tokens (labels that are not -100) where there are labels, else of items.

    Raises:
        UserError: The batch has neither.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        shifted = labels[..., 1:] if labels.ndim > 1 and _predicts_next(model) else labels
        return float((shifted != IGNORED).sum())
    first = next(_tensors(batch), None)
    if first is None or not first.ndim:
        raise UserError(
            "a scalar loss needs batches with a tensor whose length is the number of items; return (sum, count)"
        )
    return float(len(first))


def _predicts_next(model: Any) -> bool:
    """Whether a transformers model shifts the labels itself: those with a causal loss, and not encoder-decoders."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(inner, "config", None)
    kind = getattr(inner, "loss_type", None)
    causal = kind in ("ForCausalLM", "ForConditionalGeneration") or type(inner).__name__.endswith("LMHeadModel")
    return causal and not getattr(config, "is_encoder_decoder", False)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(part, device) for part in batch)
    return batch


def tasks_of(batches: Batches | Mapping[str, Batches]) -> dict[str, Batches]:
    """Batches by the name of their task; those without a name are the task `""`."""
    if not isinstance(batches, Mapping):
        return {"": batches}
    if any(isinstance(part, torch.Tensor) for part in batches.values()):
        raise UserError(
            "batches must be a list or loader of batches, or a dict of those by task; this is a single batch: [batch]"
        )
    if not batches:
        raise UserError("batches must name at least one task, the dict is empty")
    return dict(batches)


def _re_iterable(name: str, batches: Batches) -> Batches:
    """`batches` as something that can be gone through again, in the same order as far as one can see."""
    if isinstance(getattr(batches, "sampler", None), _SHUFFLING):
        raise UserError(
            f"{_called(name)} must come in a fixed order, this loader shuffles: make one with shuffle=False"
        )
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise UserError(
            f"{_called(name)} must be a list or loader of batches, were {type(batches).__name__}"
        ) from error
    return list(iterator) if iterator is batches else batches


def _called(name: str) -> str:
    return f"the batches of {name}" if name else "the batches"
