"""The prompt, and what is left out of one that is too long."""

import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.prompts import fit, render
from llm_forgetting.tasks.task import Item

ITEM = Item("bird_song/test/0", "bird_song", " Which bird\nsings at night? ", ("wren", "nightingale", "0", "None"), 1)
SHOTS = tuple(Item(f"bird_song/dev/{n}", "bird_song", f"Shot number {n}?", ("p", "q", "r", "s"), 3) for n in range(3))
HEADER = "The following are multiple choice questions (with answers) about bird song.\n\n"


def words(text: str) -> int:
    return len(text.split())


def test_the_prompt_is_that_of_lm_evaluation_harness() -> None:
    asked = "Which bird\nsings at night?\nA. wren\nB. nightingale\nC. 0\nD. None\nAnswer:"
    assert render(ITEM) == HEADER + asked
    assert render(ITEM, SHOTS[:1]) == HEADER + "Shot number 0?\nA. p\nB. q\nC. r\nD. s\nAnswer: D\n\n" + asked


def test_k_options_give_k_letters() -> None:
    assert render(Item("x/test/0", "x", "q", ("one", "two"), 0)).endswith("q\nA. one\nB. two\nAnswer:")
    assert render(Item("x/test/0", "x", "q", tuple("vwxyz"), 0)).endswith("\nE. z\nAnswer:")


def test_a_prompt_that_fits_is_left_alone() -> None:
    fitted = fit(ITEM, SHOTS, 1000, words)
    assert fitted.text == render(ITEM, SHOTS)
    assert fitted.n_tokens == words(fitted.text)
    assert (fitted.shots_dropped, fitted.question_truncated, fitted.options_truncated) == (0, False, False)


def test_the_earliest_shots_go_first() -> None:
    for dropped in range(4):
        fitted = fit(ITEM, SHOTS, words(render(ITEM, SHOTS[dropped:])), words)
        assert (fitted.text, fitted.shots_dropped) == (render(ITEM, SHOTS[dropped:]), dropped)
        assert not fitted.question_truncated


def test_then_words_from_the_left_of_the_question() -> None:
    fitted = fit(ITEM, SHOTS, words(render(ITEM)) - 2, words)
    assert fitted.text == HEADER + "sings at night?\nA. wren\nB. nightingale\nC. 0\nD. None\nAnswer:"
    assert (fitted.shots_dropped, fitted.question_truncated, fitted.options_truncated) == (3, True, False)
    empty = fit(ITEM, (), words(render(ITEM)) - 5, words)
    assert empty.text == HEADER + "\nA. wren\nB. nightingale\nC. 0\nD. None\nAnswer:"


def test_then_everything_but_the_answer_cue() -> None:
    fitted = fit(ITEM, (), 4, words)
    assert (fitted.text, fitted.n_tokens) == ("0\nD. None\nAnswer:", 4)
    assert fitted.question_truncated
    assert fitted.options_truncated
    assert fit(ITEM, (), 1, words).text == "Answer:"


@pytest.mark.parametrize("max_tokens", range(7, 200, 3))
def test_the_longest_prompt_that_fits_is_taken(max_tokens: int) -> None:
    fitted = fit(ITEM, SHOTS, max_tokens, len)
    assert fitted.n_tokens == len(fitted.text) <= max_tokens
    assert fitted.text.endswith("Answer:")


def test_max_tokens_must_hold_the_answer_cue() -> None:
    with pytest.raises(UserError, match=r"max_tokens=6 must hold at least 'Answer:' \(7 tokens\)"):
        fit(ITEM, SHOTS, 6, len)
