"""The landscape objective in micro-batches: mean -log p(answer) of fixed items, every item with weight 1 / n."""

from collections.abc import Iterator, Sequence

import torch

from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem, length_buckets
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import Pack, packs


class MicroBatches:
    """Fixed items, packed where the model allows it; how many make a micro-batch changes no number beyond rounding."""

    def __init__(self, model: LanguageModel, items: Sequence[EncodedItem], size: int) -> None:
        self._items = items
        self._model = model
        self.count = len(items)
        self.packs = [pack.to(model.device) for pack in packs(items, size)] if model.supports_packing else []
        lengths = [len(item.input_ids) for item in items]
        self._groups = [pack.items for pack in self.packs] or length_buckets(lengths, size)

    @property
    def within_window(self) -> bool:
        """Whether no pack is longer than the model's sliding window, if it has one."""
        window = getattr(self._model.peft_model.get_base_model().config, "sliding_window", None)
        return window is None or all(pack.layout.keys.shape[1] <= window for pack in self.packs)

    def answers(self, pack: Pack) -> torch.Tensor:
        """(n,) answer tokens of a pack."""
        chosen = [self._items[n] for n in pack.items]
        return torch.tensor([item.letter_ids[item.item.answer] for item in chosen], device=self._model.device)

    def losses(self) -> Iterator[torch.Tensor]:
        """Sum of the losses of every micro-batch over the number of all items, with a graph."""
        for group in self._groups:
            yield answer_losses(self._model, [self._items[n] for n in group]).sum() / self.count
