"""Prompts with completions: items whose answer is a text of many tokens, in the formats that TRL has."""

import hashlib
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.files import is_text
from llm_forgetting.tasks.scoring import TEACHER_FORCED, Scoring

LONGEST = 1_000_000
"""Characters of an item's text."""


@dataclass(frozen=True)
class Message:
    """A turn of a conversation."""

    role: str
    content: str


Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and what is to follow it.

    `prompt` and `completion` are both text, or both turns of a conversation. The loss is that of the whole completion; of a
    conversation without a prompt it is that of the assistant's turns, of a text without a prompt that of all its tokens but
    the first. `id` is `subject/split/row` as in `Item`. `scoring` is how it is judged: no part of what the item is.
    `options`: the texts that it is judged among, one of which the completion is, after a space.
    """

    id: str
    subject: str
    prompt: Text
    completion: Text
    scoring: Scoring = TEACHER_FORCED
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str) != isinstance(self.completion, str) and self.prompt:
            raise UserError(f"item {self.id}: prompt and completion must both be text or both be messages, they differ")
        if not isinstance(self.completion, str) and self.completion and self.completion[-1].role != "assistant":
            raise UserError(
                f"item {self.id}: the last message must be the assistant's, which is what is learnt; it is of "
                f"{self.completion[-1].role!r}"
            )
        if not self.answer.strip():
            raise UserError(f"item {self.id}: the completion must hold a text, it is empty")
        text = "".join(map(_flat, (self.prompt, self.completion)))
        if len(text) > LONGEST or not is_text(text):
            raise UserError(
                f"item {self.id}: prompt and completion must be text in UTF-8 without NUL, at most {LONGEST:,} characters; "
                f"are {text[:40]!r}..., {len(text):,}"
            )
        if self.options and (self.options.count(self.answer[1:]) != 1 or not all(map(str.strip, self.options))):
            raise UserError(
                f"item {self.id}: the options must be texts, the right one among them once; are {str(self.options)[:80]}"
            )
        if self.scoring.answer_in(self.answer) is None:
            raise UserError(
                f"item {self.id}: the right completion must hold an answer by score.answer={self.scoring.answer!r}, has none: "
                f"{self.answer[-60:]!r}"
            )

    @property
    def question(self) -> str:
        """What is asked, for reading: the prompt, or the turns before the last."""
        if isinstance(self.completion, str) or self.prompt:
            return _flat(self.prompt)
        return _flat(self.completion[:-1])

    @property
    def answer(self) -> str:
        """What is to be said: the completion, or its last turn."""
        if isinstance(self.completion, str):
            return self.completion
        return self.completion[-1].content if self.completion else ""

    @property
    def content_key(self) -> tuple[str, tuple[str, ...]]:
        """What makes two rows duplicates: prompt, completion and options as they are."""
        return _flat(self.prompt), (_flat(self.completion), *self.options)

    @property
    def sha256(self) -> str:
        """Hash of prompt, completion and options; the same from every source."""
        prompt, answers = self.content_key
        return hashlib.sha256("\x1e".join((prompt, *answers)).encode()).hexdigest()

    @property
    def right(self) -> int:
        """Which of its options is right."""
        return self.options.index(self.answer[1:])


def _flat(text: Text) -> str:
    return text if isinstance(text, str) else "\x1f".join(f"{turn.role}: {turn.content}" for turn in text)
