"""From items to tensors: token ids, answer letters in context, left padding with explicit positions, length buckets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.gauge import at_least_float32
from llm_forgetting.tasks.prompts import fit
from llm_forgetting.tasks.task import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# How much a logit may differ between two ways of computing it, by precision of the backbone. Llama logits are of order 20:
# float32 keeps them to 1e-4 or better, bfloat16 (8 bits) to a few tenths.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.1, torch.bfloat16: 0.75}


@dataclass(frozen=True)
class EncodedItem:
    """Token ids of a prompt that ends in `Answer:`, and the one token of every option letter after it.

    Items of one `prefix_key` (their subject, unless said) are packed together, for the prefix that they share.
    """

    item: Item
    input_ids: tuple[int, ...]
    letter_ids: tuple[int, ...]
    shots_dropped: int = 0
    truncated: bool = False
    prefix_group: str | None = None

    @property
    def prefix_key(self) -> str:
        """Whose prefix the item shares."""
        return self.item.subject if self.prefix_group is None else self.prefix_group


@dataclass(frozen=True)
class Batch:
    """Left-padded `input_ids`, `attention_mask`, `position_ids` (n, tokens); `letter_ids` (n, k), -1 where an item has
    fewer options; `answers` (n,).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    letter_ids: torch.Tensor
    answers: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def letter_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str, letters: str) -> tuple[int, ...]:
    """The token that " A", " B", ... is after `prompt`.

    LLaMA-2's " A" is the token "▁A" (319) in context and two tokens alone, so the letters are read off in context.
    """
    ids = tokenizer(prompt)["input_ids"]
    tokens = []
    for letter in letters:
        extended = tokenizer(f"{prompt} {letter}")["input_ids"]
        if len(extended) != len(ids) + 1 or extended[: len(ids)] != ids:
            raise UserError(
                f"every answer letter must be one token after the prompt; ' {letter}' is {len(extended) - len(ids)} with this "
                f"tokenizer ({type(tokenizer).__name__}): choose another model or prompt"
            )
        tokens.append(extended[-1])
    if len(set(tokens)) != len(tokens):
        raise UserError(
            "the answer letters must be different tokens; this tokenizer maps several to one (unknown?) token"
        )
    if tokenizer.unk_token_id in tokens:
        letter = letters[tokens.index(tokenizer.unk_token_id)]
        raise UserError(f"every answer letter must be a known token; ' {letter}' is unknown to this tokenizer")
    return tuple(tokens)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Item],
    shots: dict[str, tuple[Item, ...]],
    max_tokens: int,
) -> list[EncodedItem]:
    """Every item's prompt in at most `max_tokens` tokens; what was cut is recorded in each."""

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    encoded = []
    for item in items:
        prompt = fit(item, shots.get(item.subject, ()), max_tokens, count)
        encoded.append(
            EncodedItem(
                item=item,
                input_ids=tuple(tokenizer(prompt.text)["input_ids"]),
                letter_ids=letter_tokens(tokenizer, prompt.text, item.letters),
                shots_dropped=prompt.shots_dropped,
                truncated=prompt.question_truncated or prompt.options_truncated,
            )
        )
    return encoded


def collate(encoded: Sequence[EncodedItem], pad_id: int) -> Batch:
    """One left-padded batch: the answer position is the last column of every row."""
    width = max(len(item.input_ids) for item in encoded)
    options = max(len(item.letter_ids) for item in encoded)
    ids = torch.full((len(encoded), width), pad_id)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    letters = torch.full((len(encoded), options), -1)
    for row, item in enumerate(encoded):
        ids[row, width - len(item.input_ids) :] = torch.tensor(item.input_ids)
        mask[row, width - len(item.input_ids) :] = 1
        letters[row, : len(item.letter_ids)] = torch.tensor(item.letter_ids)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(ids, mask, positions, letters, torch.tensor([item.item.answer for item in encoded]))


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first, so that little is computed for padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_position_logits(model: Any, batch: Batch, accepted: frozenset[str]) -> torch.Tensor:
    """(n, vocabulary) logits, float32 or better, that follow `Answer:`.

    `accepted` names the arguments that the model's forward takes: position ids matter to models with absolute
    positions, and `logits_to_keep=1` spares the vocabulary projection everywhere else.
    """
    optional: dict[str, Any] = {"position_ids": batch.position_ids, "logits_to_keep": 1, "use_cache": False}
    kwargs = {name: value for name, value in optional.items() if name in accepted}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kwargs).logits
    return at_least_float32(logits[:, -1])


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
