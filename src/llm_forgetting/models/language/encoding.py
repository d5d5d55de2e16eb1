"""From items to tokens: prompts in at most so many tokens, answer letters in context."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_forgetting.config.sections import Weighting
from llm_forgetting.errors import UserError
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.completions import encode_completion
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.prompts import fit
from llm_forgetting.tasks.task import AnyItem, Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    items: Sequence[AnyItem],
    shots: Mapping[str, Sequence[AnyItem]],
    max_tokens: int,
    weighting: Weighting = "token",
) -> list[EncodedItem]:
    """Every item in at most `max_tokens` tokens, after the worked examples of its subject; what was cut is recorded in each.

    `weighting`: whether every token of a completion counts the same in a mean loss, or every item.
    """
    return [
        _weighted(encode_completion(tokenizer, item, shots.get(item.subject, ()), max_tokens), weighting)
        if isinstance(item, Completion)
        else _encode_question(tokenizer, item, shots.get(item.subject, ()), max_tokens)
        for item in items
    ]


def _weighted(item: EncodedItem, weighting: Weighting) -> EncodedItem:
    return item if weighting == "token" else replace(item, weight=1 / len(item.predictions))


def _encode_question(
    tokenizer: "PreTrainedTokenizerBase", item: Item, shots: Sequence[AnyItem], max_tokens: int
) -> EncodedItem:
    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    prompt = fit(item, [shot for shot in shots if isinstance(shot, Item)], max_tokens, count)
    return EncodedItem(
        item=item,
        input_ids=tuple(tokenizer(prompt.text)["input_ids"]),
        letter_ids=letter_tokens(tokenizer, prompt.text, item.letters),
        shots_dropped=prompt.shots_dropped,
        truncated=prompt.question_truncated or prompt.options_truncated,
    )
