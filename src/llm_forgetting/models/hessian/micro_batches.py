"""The landscape objective in micro-batches: mean -log p(right token) of fixed items, every prediction by its weight."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from llm_forgetting.models.language.answer_loss import answer_tokens, summed_losses
from llm_forgetting.models.language.batches import EncodedItem, length_buckets, prediction_weights, total_weight
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import tokens_that_fit, with_smaller_pieces
from llm_forgetting.models.language.packing import Pack, packs

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class MicroBatches:
    """Fixed items, packed where the model allows it; how many make a micro-batch changes no number beyond rounding.

    At most `size` make one, fewer where their tokens would not fit into memory.
    """

    def __init__(self, model: LanguageModel, items: Sequence[EncodedItem], size: int) -> None:
        self._items = items
        self._model = model
        self.total = total_weight(items)
        longest = max(len(item.input_ids) for item in items)
        self._size = max(1, min(size, len(items), tokens_that_fit(model.peft_model, model.device) // longest))
        self._divide(self._size)

    def _divide(self, size: int) -> None:
        model, items = self._model, self._items
        self.packs = [pack.to(model.device) for pack in packs(items, size)] if model.supports_packing else []
        lengths = [len(item.input_ids) for item in items]
        self._groups = [pack.items for pack in self.packs] or length_buckets(lengths, size)

    def sparing(self, compute: Callable[[], Result]) -> Result:
        """What `compute` makes of all micro-batches, begun again with half as large ones where memory runs out."""

        def divided(size: int) -> Result:
            if size != self._size:
                self._divide(size)
            return compute()

        result, self._size = with_smaller_pieces(divided, self._size, self._model.device)
        return result

    @property
    def within_window(self) -> bool:
        """Whether no pack is longer than the model's sliding window, if it has one."""
        window = getattr(self._model.backbone.config, "sliding_window", None)
        return window is None or all(pack.layout.keys.shape[1] <= window for pack in self.packs)

    def answers(self, pack: Pack) -> torch.Tensor:
        """(m,) right tokens of a pack's predictions."""
        return answer_tokens([self._items[n] for n in pack.items]).to(self._model.device)

    def weights(self, pack: Pack) -> torch.Tensor | None:
        """(m,) weights of a pack's predictions; None where each counts once."""
        weights = prediction_weights([self._items[n] for n in pack.items])
        return None if weights is None else weights.to(self._model.device)

    def losses(self) -> Iterator[torch.Tensor]:
        """Sum of the losses of every micro-batch, by their weights, over the weight of all predictions, with a graph."""
        for group in self._groups:
            yield summed_losses(self._model, [self._items[n] for n in group]) / self.total


def sparing(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """A method that goes over all micro-batches of its object's `_items`, as `MicroBatches.sparing`."""

    @wraps(method)
    def spared(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        items: MicroBatches = self._items
        return items.sparing(lambda: method(self, *args, **kwargs))

    return spared
