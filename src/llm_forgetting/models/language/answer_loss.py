"""The training loss of a batch of items, with a graph: -log p(right token | those before it) over the whole vocabulary."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llm_forgetting.models.language.batches import EncodedItem, collate, prediction_weights
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import CannotPackError, packs


def answer_tokens(items: Sequence[EncodedItem]) -> torch.Tensor:
    """(m,) the right token of every prediction, item by item."""
    return torch.tensor([token for item in items for token in item.answer_tokens])


def answer_losses(model: LanguageModel, items: Sequence[EncodedItem], *, packed: bool = True) -> torch.Tensor:
    """(m,) nats per prediction, item by item in the order given (one each, of completions one per token).

    From one forward pass of all items, packed (see `packing`) where the model and `packed` allow it.
    """
    if packed and model.supports_packing:
        (pack,) = packs(items, len(items))
        try:
            logits = model.packed_logits([pack])[0][0]
        except CannotPackError as error:
            model.disable_packing(error)
        else:
            chosen = [items[n] for n in pack.items]
            losses = _cross_entropy(logits, chosen)
            places = [(n, k) for n in pack.items for k in range(len(items[n].predictions))]
            order = sorted(range(len(places)), key=places.__getitem__)
            return losses[torch.tensor(order, device=losses.device)]
    return _cross_entropy(model.answer_logits(collate(items, model.pad_id)), items)


def summed_losses(model: LanguageModel, items: Sequence[EncodedItem], *, packed: bool = True) -> torch.Tensor:
    """() sum of the items' losses in nats, every prediction by its weight; over `total_weight` it is their mean."""
    losses, weights = answer_losses(model, items, packed=packed), prediction_weights(items)
    return losses.sum() if weights is None else (losses * weights.to(losses)).sum()


def _cross_entropy(logits: torch.Tensor, items: Sequence[EncodedItem]) -> torch.Tensor:
    tokens = answer_tokens(items).to(logits.device)
    if not any(item.places for item in items):
        return F.cross_entropy(logits, tokens, reduction="none")
    # Over 49,152 tokens PyTorch's own is 2e-5 too small on a CPU, which the older kind of item keeps for its earlier numbers.
    return logits.logsumexp(dim=1) - logits.gather(1, tokens[:, None])[:, 0]
