"""From items to tensors: token ids, answer letters in context, left padding with explicit positions, length buckets."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llm_forgetting.landscape.gauge import at_least_float32
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.task import Item

if TYPE_CHECKING:
    pass


# How much a logit may differ between two ways of computing it, by precision of the backbone. Llama logits are of order 20:
# float32 keeps them to 1e-4 or better, bfloat16 (8 bits) to a few tenths.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.1, torch.bfloat16: 0.75}


@dataclass(frozen=True)
class EncodedItem:
    """Token ids of an item, and what is predicted from them.

    A question's `input_ids` end in `Answer:`; predicted is one of `letter_ids`, the tokens of its option letters. Of a
    completion `targets` are the tokens that are learnt, `places` where the token before each stands in `input_ids`; it has no
    letters. Items of one `prefix_key` (their subject, unless said) are packed together, for the prefix that they share. Each
    of its predictions counts `weight` times in a mean loss (sum of w loss over sum of w), trained or measured. `alternatives`:
    the options that it is judged among, encoded alike but without an end.
    """

    item: Item | Completion
    input_ids: tuple[int, ...]
    letter_ids: tuple[int, ...]
    shots_dropped: int = 0
    truncated: bool = False
    prefix_group: str | None = None
    places: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    weight: float = 1
    alternatives: tuple["EncodedItem", ...] = ()

    @property
    def prefix_key(self) -> str:
        """Whose prefix the item shares."""
        return self.item.subject if self.prefix_group is None else self.prefix_group

    @property
    def predictions(self) -> tuple[int, ...]:
        """Places in `input_ids` after which a token is predicted, in order: the last, or those of a completion."""
        return self.places or (len(self.input_ids) - 1,)

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """Per prediction the tokens whose logits are kept: the letters, or the one token that is learnt."""
        return tuple((token,) for token in self.targets) if self.places else (self.letter_ids,)

    @property
    def answers(self) -> tuple[int, ...]:
        """Per prediction which of its options is right; -1 where there is only one, a completion's token."""
        return (-1,) * len(self.places) if isinstance(self.item, Completion) else (self.item.answer,)

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """Per prediction the right token."""
        return tuple(options[answer] for options, answer in zip(self.options, self.answers, strict=True))


def prediction_weights(items: Sequence[EncodedItem]) -> torch.Tensor | None:
    """(m,) weight of every prediction, item by item; None where each counts once."""
    if all(item.weight == 1 for item in items):
        return None
    return torch.tensor([item.weight for item in items for _ in item.predictions])


def total_weight(items: Sequence[EncodedItem]) -> float:
    """Sum of the weights of all predictions: how many there are, where each counts once."""
    return sum(item.weight * len(item.predictions) for item in items)


@dataclass(frozen=True)
class Batch:
    """Left-padded `input_ids`, `attention_mask`, `position_ids` (n, tokens) of items that predict m tokens together.

    `rows`, `columns` (m,): after which tokens, none of which is before the last `kept`; `letter_ids` (m, k): the options, -1
    where there are fewer; `answers` (m,): which of them is right.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    letter_ids: torch.Tensor
    answers: torch.Tensor
    kept: int

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        moved: Any = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **moved)


def collate(encoded: Sequence[EncodedItem], pad_id: int) -> Batch:
    """One left-padded batch: the last token of every item stands in the last column."""
    width = max(len(item.input_ids) for item in encoded)
    ids = torch.full((len(encoded), width), pad_id)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    for row, item in enumerate(encoded):
        ids[row, width - len(item.input_ids) :] = torch.tensor(item.input_ids)
        mask[row, width - len(item.input_ids) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    rows = [row for row, item in enumerate(encoded) for _ in item.predictions]
    columns = [width - len(item.input_ids) + place for item in encoded for place in item.predictions]
    answers = [answer for item in encoded for answer in item.answers]
    letters, kept = padded_options(encoded), width - min(columns)
    return Batch(ids, mask, positions, torch.tensor(rows), torch.tensor(columns), letters, torch.tensor(answers), kept)


def padded_options(encoded: Sequence[EncodedItem]) -> torch.Tensor:
    """(m, k) options of all predictions of the items, one item after the other; -1 where there are fewer."""
    options = [tokens for item in encoded for tokens in item.options]
    most = max(map(len, options))
    return torch.tensor([[*tokens, *[-1] * (most - len(tokens))] for tokens in options])


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first, so that little is computed for padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_position_logits(model: Any, batch: Batch, accepted: frozenset[str]) -> torch.Tensor:
    """(m, vocabulary) logits, float32 or better, after the tokens of `batch` that something is predicted after.

    `accepted` names the arguments that the model's forward takes: position ids matter to models with absolute
    positions, and `logits_to_keep` spares the vocabulary projection of the columns before.
    """
    optional: dict[str, Any] = {
        "position_ids": batch.position_ids,
        "logits_to_keep": batch.kept,
        "use_cache": False,
    }
    kwargs = {name: value for name, value in optional.items() if name in accepted}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kwargs).logits
    if batch.kept == 1:
        return at_least_float32(logits[:, -1])
    return at_least_float32(logits[batch.rows, batch.columns - (batch.input_ids.shape[1] - logits.shape[1])])


def split_logits(logits: torch.Tensor, letter_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Letter logits z (n, k) and rest = logsumexp over all other tokens (n,), from logits (n, vocabulary)."""
    missing = letter_ids < 0
    index = torch.where(missing, letter_ids[:, :1], letter_ids)
    z = logits.gather(1, index).masked_fill(missing, -torch.inf)
    return z, logits.scatter(1, index, -torch.inf).logsumexp(dim=1)


@dataclass(frozen=True)
class EncodedTask:
    """A task's two splits as tokens."""

    name: str
    train: tuple[EncodedItem, ...]
    test: tuple[EncodedItem, ...]

    def split(self, name: str) -> tuple[EncodedItem, ...]:
        """The items of split `train` or `test`."""
        return {"train": self.train, "test": self.test}[name]
