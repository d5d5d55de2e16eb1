"""The prompt of a multiple-choice item, in the format of Hendrycks et al. and lm-evaluation-harness 0.4.13."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.task import Item

ANSWER = "Answer:"


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt of at most the tokens allowed, and what was left out for it.

    `question_truncated`: words are missing from the question's left. `options_truncated`: the question is gone and the
    text before `Answer:` is cut as well, so the item can no longer be read as asked.
    """

    text: str
    n_tokens: int
    shots_dropped: int = 0
    question_truncated: bool = False
    options_truncated: bool = False


def _body(question: str, item: Item) -> str:
    options = [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
    return "\n".join([question, *options])


def _description(item: Item) -> str:
    subject = item.subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


def render(item: Item, shots: Sequence[Item] = ()) -> str:
    """The prompt that ends in `Answer:`; the token expected next is the one of " A", " B", ...

    Source: lm-evaluation-harness 0.4.13, `tasks/mmlu/default`; k options give k letters.
    """
    solved = [f"{_body(shot.question.strip(), shot)}\n{ANSWER} {shot.letters[shot.answer]}\n\n" for shot in shots]
    return "".join([_description(item), *solved, f"{_body(item.question.strip(), item)}\n{ANSWER}"])


def _suffixes(text: str) -> list[str]:
    """The text without its first 0, 1, 2, ... words; the last is empty."""
    return [text[word.start() :] for word in re.finditer(r"\S+", text)] + [""]


def fit(item: Item, shots: Sequence[Item], max_tokens: int, count_tokens: Callable[[str], int]) -> FittedPrompt:
    """The prompt of `item` in at most `max_tokens` tokens as counted by `count_tokens`.

    If it is too long the earliest shots go first, then words from the left of the question, then words from the left of
    everything that is left; `Answer:` always stays at the end. `UserError` if not even that fits.
    """
    for dropped in range(len(shots) + 1):
        text = render(item, shots[dropped:])
        n_tokens = count_tokens(text)
        if n_tokens <= max_tokens:
            return FittedPrompt(text, n_tokens, dropped)

    def fits(candidate: str) -> bool:
        return count_tokens(candidate) <= max_tokens

    questions = [f"{_description(item)}{_body(rest, item)}\n{ANSWER}" for rest in _suffixes(item.question.strip())]
    if fits(questions[-1]):
        text = questions[bisect_left(questions, True, key=fits)]
        return FittedPrompt(text, count_tokens(text), len(shots), question_truncated=True)
    body = _description(item) + _body("", item)
    cut = [f"{rest}\n{ANSWER}" for rest in _suffixes(body)[:-1]] + [ANSWER]
    if not fits(cut[-1]):
        raise UserError(
            f"max_tokens={max_tokens} must hold at least {ANSWER!r} ({count_tokens(ANSWER)} tokens); raise max_tokens"
        )
    text = cut[bisect_left(cut, True, key=fits)]
    return FittedPrompt(text, count_tokens(text), len(shots), question_truncated=True, options_truncated=True)
