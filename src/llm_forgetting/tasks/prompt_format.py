"""The words around a question: what is said before it, how it is put, and the cue after the options."""

import string
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """Templates of a task's prompt; the defaults are those of Hendrycks et al. and lm-evaluation-harness.

    `description` opens the prompt and may name `{subject}`; empty for none. `question` may name any column of a record, and
    is filled in when the record is read. `answer` is the cue that the prompt ends in.
    """

    description: str = "The following are multiple choice questions (with answers) about {subject}."
    question: str = "{question}"
    answer: str = "Answer:"


MMLU_FORMAT = PromptFormat()


def names_in(template: str) -> tuple[str, ...]:
    """The names in braces, in order; `{{` and `}}` are braces of the text. ValueError for a template that is none.

    A name is taken as it is written: no attribute, index, conversion or format of `str.format` has a meaning in it.
    """
    return tuple(name for _, name in _pieces(template) if name is not None)


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with every name replaced by its value; braces inside a value stay what they are."""
    return "".join(literal + ("" if name is None else values[name]) for literal, name in _pieces(template))


def _pieces(template: str) -> list[tuple[str, str | None]]:
    pieces = []
    for literal, name, specification, conversion in string.Formatter().parse(template):
        if name == "" or specification or conversion:
            raise ValueError("braces must hold the name of a column and nothing else; {{ and }} stand for braces")
        pieces.append((literal, name))
    return pieces
