"""From prompts and completions to tokens: which are learnt, after TRL's formats."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_forgetting.errors import UserError
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.tasks.completion import Completion, Message
from llm_forgetting.tasks.task import AnyItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = list[int]


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", item: Completion, shots: Sequence[AnyItem], max_tokens: int
) -> EncodedItem:
    """The item's tokens, at most `max_tokens`, and where those that are learnt stand.

    Learnt are all tokens after the prompt, the end token that is put after a plain completion included; of a conversation
    without a prompt the assistant's turns, by the tokenizer's chat template; of a text without a prompt all but the first.
    Worked examples stand before a prompt that is text, blank lines between them. What is too long loses examples first, then
    tokens on the prompt's left, after what the tokenizer begins every text with; nothing that is learnt.

    Raises:
        UserError: Where nothing is left to learn, where what is learnt is longer than `max_tokens`, where the chat template
            fails or does not continue its own beginning, and for worked examples of a conversation.
    """
    if shots and not isinstance(item.completion, str):
        raise UserError(f"item {item.id}: worked examples are for prompts that are text; set data.few_shot=0")
    encoded = _encoded(tokenizer, item, shots, max_tokens, _learnt)
    if not (item.options and item.scoring.of_options):
        return encoded
    texts = [replace(item, completion=f" {option}", options=()) for option in item.options]
    others = [_encoded(tokenizer, text, shots, max_tokens, _continued) for text in texts]
    # Without worked examples only the options of one prompt have a beginning in common.
    group = None if shots else item.id
    return replace(encoded, alternatives=tuple(replace(other, prefix_group=group) for other in others))


def _encoded(
    tokenizer: "PreTrainedTokenizerBase",
    item: Completion,
    shots: Sequence[AnyItem],
    max_tokens: int,
    learnt_of: "Callable[[PreTrainedTokenizerBase, Completion, Sequence[AnyItem]], tuple[Tokens, Tokens]]",
) -> EncodedItem:
    for dropped in range(len(shots) + 1):
        tokens, learnt = learnt_of(tokenizer, item, shots[dropped:])
        if len(tokens) <= max_tokens:
            break
    special = set(tokenizer.all_special_ids)
    if all(tokens[place] in special for place in learnt):
        raise UserError(f"item {item.id}: the completion must hold a token that is learnt, it has special tokens only")
    tokens, learnt, truncated = _shortened(tokenizer, item, tokens, learnt, max_tokens)
    return EncodedItem(
        item=item,
        input_ids=tuple(tokens[: learnt[-1]]),
        letter_ids=(),
        shots_dropped=dropped,
        truncated=truncated,
        places=tuple(place - 1 for place in learnt),
        targets=tuple(tokens[place] for place in learnt),
    )


def _learnt(tokenizer: "PreTrainedTokenizerBase", item: Completion, shots: Sequence[AnyItem]) -> tuple[Tokens, Tokens]:
    """All tokens, and the places of those that are learnt."""
    if isinstance(item.completion, str):
        return _plain(tokenizer, _asked(item, shots), item.completion)
    return _conversation(tokenizer, item) if item.prompt else _assistant_turns(tokenizer, item)


def _asked(item: Completion, shots: Sequence[AnyItem]) -> str:
    """A prompt that is text, after worked examples."""
    solved = [f"{shot.prompt}{shot.completion}\n\n" for shot in shots if isinstance(shot, Completion)]
    return "".join([*solved, str(item.prompt)])


def _continued(
    tokenizer: "PreTrainedTokenizerBase", item: Completion, shots: Sequence[AnyItem]
) -> tuple[Tokens, Tokens]:
    """Prompt and option without an end, and the places of the option's tokens, as lm-evaluation-harness divides them."""
    prompt = _asked(item, shots)
    before = tokenizer(prompt.rstrip())["input_ids"] if prompt.strip() else []
    tokens = list(tokenizer(f"{prompt}{item.completion}")["input_ids"])
    return tokens, list(range(max(1, len(before)), len(tokens)))


def _plain(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> tuple[Tokens, Tokens]:
    end = str(tokenizer.eos_token or "")
    text = prompt + completion
    before = list(tokenizer(prompt)["input_ids"]) if prompt else []
    tokens = list(tokenizer(text if text.endswith(end) else text + end)["input_ids"])
    # Some tokenizers join the last of the prompt and the first of the completion: learnt is what differs.
    same = [a == b for a, b in zip(before, tokens, strict=False)]
    shared = same.index(False) if False in same else len(same)
    return tokens, list(range(max(1, shared), len(tokens)))


def _conversation(tokenizer: "PreTrainedTokenizerBase", item: Completion) -> tuple[Tokens, Tokens]:
    assert not isinstance(item.prompt, str)
    assert not isinstance(item.completion, str)
    before = _rendered(tokenizer, item, item.prompt, begin=True)
    tokens = _rendered(tokenizer, item, (*item.prompt, *item.completion))
    _require_continued(item, before, tokens)
    return tokens, list(range(len(before), len(tokens)))


def _assistant_turns(tokenizer: "PreTrainedTokenizerBase", item: Completion) -> tuple[Tokens, Tokens]:
    """By the template's own marks, where it has some; else every turn from where the assistant begins to its end token."""
    assert not isinstance(item.completion, str)
    tokens = _rendered(tokenizer, item, item.completion)
    if "{% generation" in str(tokenizer.chat_template).replace("{%-", "{%"):
        marked = _fill(tokenizer, item, item.completion, return_dict=True, return_assistant_tokens_mask=True)
        return tokens, [place for place, mark in enumerate(marked["assistant_masks"]) if mark]
    learnt: Tokens = []
    special = set(tokenizer.all_special_ids)
    for n, turn in enumerate(item.completion):
        if turn.role != "assistant":
            continue
        before = _rendered(tokenizer, item, item.completion[:n], begin=True)
        after = _rendered(tokenizer, item, item.completion[: n + 1])
        _require_continued(item, before, after)
        _require_continued(item, after, tokens)
        ends = [place for place in range(len(before), len(after)) if after[place] in special]
        learnt += range(len(before), ends[-1] + 1 if ends else len(after))
    return tokens, learnt


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", item: Completion, turns: Sequence[Message], *, begin: bool = False
) -> Tokens:
    """The turns by the chat template; `begin`: with what opens the assistant's next."""
    return list(_fill(tokenizer, item, turns, add_generation_prompt=begin, return_dict=False))


def _fill(tokenizer: "PreTrainedTokenizerBase", item: Completion, turns: Sequence[Message], **options: Any) -> Any:
    if not tokenizer.chat_template:
        raise UserError(
            f"item {item.id} is a conversation, and the model's tokenizer has no chat template; choose a model that was tuned "
            f"for conversations, or give prompt and completion as text"
        )
    messages: Any = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=True, **options)
    except Exception as error:  # what a template raises is its author's choice
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"item {item.id}: the model's chat template cannot be filled with its messages: {said}"
        ) from error


def _require_continued(item: Completion, before: Tokens, tokens: Tokens) -> None:
    if tokens[: len(before)] != before:
        raise UserError(
            f"item {item.id}: the model's chat template must only add tokens as a conversation goes on, it changes earlier "
            f"ones; give prompt and completion as text"
        )


def _shortened(
    tokenizer: "PreTrainedTokenizerBase", item: Completion, tokens: Tokens, learnt: Tokens, most: int
) -> tuple[Tokens, Tokens, bool]:
    """The last `most` tokens, after the one that every text begins with; UserError where that would cut what is learnt."""
    excess = len(tokens) - most
    if excess <= 0:
        return tokens, learnt, False
    kept = 1 if tokens[0] == tokenizer.bos_token_id else 0
    if learnt[0] < max(1, kept) + excess:
        raise UserError(
            f"item {item.id}: a completion is never cut; with one token before it this one needs data.max_tokens="
            f"{len(tokens) - learnt[0] + max(1, kept)} or more, was {most}: raise data.max_tokens, or leave the item out"
        )
    return tokens[:kept] + tokens[kept + excess :], [place - excess for place in learnt], True
