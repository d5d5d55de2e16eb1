"""The training loss of a batch of items, with a graph: -log p(answer letter | prompt) over the whole vocabulary."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llm_forgetting.models.language.batches import EncodedItem, collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import CannotPackError, packs


def answer_losses(model: LanguageModel, items: Sequence[EncodedItem], *, packed: bool = True) -> torch.Tensor:
    """(n,) nats, in one forward pass of all items, packed (see `packing`) where the model and `packed` allow it."""
    answers = torch.tensor([item.letter_ids[item.item.answer] for item in items], device=model.device)
    if packed and model.supports_packing:
        (pack,) = packs(items, len(items))
        try:
            logits = model.packed_logits([pack])[0][0]
        except CannotPackError as error:
            model.disable_packing(error)
        else:
            losses = F.cross_entropy(logits, answers[list(pack.items)], reduction="none")
            return losses[torch.argsort(torch.tensor(pack.items, device=losses.device))]
    return F.cross_entropy(model.answer_logits(collate(items, model.pad_id)), answers, reduction="none")
