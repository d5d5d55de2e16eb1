"""The loss on text that belongs to no task: whether fine-tuning damaged more than the tasks it is about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch

from llm_forgetting.errors import UserError
from llm_forgetting.files import read_regular, user_path
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.tasks.completion import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MOST_TEXT = 10_000_000
"""Bytes of a control text: all of it is scored at every checkpoint."""


@dataclass(frozen=True)
class Passage:
    """A passage as tokens (those of BOS included where the tokenizer adds one); its loss is that of all but the first."""

    id: str
    input_ids: tuple[int, ...]


def passages(path: str | None, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[Passage]:
    """The passages of a UTF-8 text file, blank lines between them, cut to `max_tokens` tokens each.

    None stands for twelve short ones that come along, on everyday matters, written for this project. UserError where the file
    cannot be read or holds no passage of two tokens.
    """
    if path is None:
        text = resources.files("llm_forgetting").joinpath("data/unrelated_text.txt").read_text(encoding="utf-8")
    else:
        try:
            text = read_regular(user_path(path), f"evaluation.text={path}", "a text file", MOST_TEXT).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"evaluation.text={path} must be a text file in UTF-8: {error}") from error
    blocks = [block.strip() for block in text.replace("\r\n", "\n").split("\n\n")]
    encoded = [tuple(tokenizer(block)["input_ids"][:max_tokens]) for block in blocks if block]
    kept = [Passage(f"passage/{n}", ids) for n, ids in enumerate(encoded) if len(ids) > 1]
    if not kept:
        raise UserError(f"evaluation.text={path} must hold a passage of at least two tokens, holds none")
    return kept


def passage_item(passage: Passage) -> EncodedItem:
    """The passage as an item to train on: all its tokens but the first are learnt."""
    ids = passage.input_ids
    return EncodedItem(
        Completion(passage.id, "text", "", "a passage of control text"), ids[:-1], (), places=tuple(range(len(ids) - 1)),
        targets=ids[1:],
    )  # fmt: skip


def text_losses(
    model: LanguageModel, texts: Sequence[Passage], advance: Callable[[int], None] = lambda passages: None
) -> list[float]:
    """Per passage the mean of -log p(token | those before it) over its tokens but the first, nats; eval mode."""
    model.peft_model.eval()
    losses = []
    with torch.inference_mode(), model.computing():
        for text in texts:
            ids = torch.tensor([text.input_ids], device=model.device)
            logits = model.peft_model(input_ids=ids).logits[0, :-1].float()
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").double()))
            advance(1)
    return [loss / (len(text.input_ids) - 1) for loss, text in zip(losses, texts, strict=True)]
