"""The prompt of a multiple-choice item: the format of Hendrycks et al. and lm-evaluation-harness, or a task's own."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.prompt_format import filled
from llm_forgetting.tasks.task import Item


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt of at most the tokens allowed, and what was left out for it.

    `question_truncated`: words are missing from the question's left. `options_truncated`: the question is gone and the
    text before the cue `Answer:` is cut as well, so the item can no longer be read as asked.
    """

    text: str
    n_tokens: int
    shots_dropped: int = 0
    question_truncated: bool = False
    options_truncated: bool = False


def _body(question: str, item: Item) -> str:
    options = [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
    return "\n".join([question, *options])


def _asked(item: Item, question: str) -> str:
    return f"{_body(question, item)}\n{_cue(item)}"


def _cue(item: Item) -> str:
    return filled(item.format.answer, {})


def _description(item: Item) -> str:
    text = filled(item.format.description, {"subject": item.subject.replace("_", " ")})
    return f"{text}\n\n" if text else ""


def render(item: Item, shots: Sequence[Item] = ()) -> str:
    """The prompt that ends in the item's cue, `Answer:`; the token expected next is the one of " A", " B", ...

    Source of the default format: lm-evaluation-harness 0.4.13, `tasks/mmlu/default`; k options give k letters.
    """
    solved = [f"{_asked(shot, shot.question.strip())} {shot.letters[shot.answer]}\n\n" for shot in shots]
    return "".join([_description(item), *solved, _asked(item, item.question.strip())])


def _suffixes(text: str) -> list[str]:
    """The text without its first 0, 1, 2, ... words; the last is empty."""
    return [text[word.start() :] for word in re.finditer(r"\S+", text)] + [""]


def fit(item: Item, shots: Sequence[Item], max_tokens: int, count_tokens: Callable[[str], int]) -> FittedPrompt:
    """The prompt of `item` in at most `max_tokens` tokens as counted by `count_tokens`.

    If it is too long the earliest shots go first, then words from the left of the question, then words from the left of
    everything that is left; the cue `Answer:` always stays at the end. `UserError` if not even that fits.
    """
    for dropped in range(len(shots) + 1):
        text = render(item, shots[dropped:])
        n_tokens = count_tokens(text)
        if n_tokens <= max_tokens:
            return FittedPrompt(text, n_tokens, dropped)

    def fits(candidate: str) -> bool:
        return count_tokens(candidate) <= max_tokens

    questions = [_description(item) + _asked(item, rest) for rest in _suffixes(item.question.strip())]
    if fits(questions[-1]):
        text = questions[bisect_left(questions, True, key=fits)]
        return FittedPrompt(text, count_tokens(text), len(shots), question_truncated=True)
    body, cue = _description(item) + _body("", item), _cue(item)
    cut = [f"{rest}\n{cue}" for rest in _suffixes(body)[:-1]] + [cue]
    if not fits(cut[-1]):
        raise UserError(
            f"max_tokens={max_tokens} must hold at least {cue!r} ({count_tokens(cue)} tokens); raise max_tokens"
        )
    text = cut[bisect_left(cut, True, key=fits)]
    return FittedPrompt(text, count_tokens(text), len(shots), question_truncated=True, options_truncated=True)
