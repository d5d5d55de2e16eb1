"""Answers in texts, what is ignored, ROUGE-L, and `score` of a definitions file."""

import json
from pathlib import Path

import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.definitions import open_defined
from llm_forgetting.tasks.scoring import TEACHER_FORCED, Scoring, rouge_l
from llm_forgetting.tasks.sources import open_source

NUMBERS = {
    "She has 3 + 4 = 7 eggs.\n#### 18": "18",
    "He pays $1,234.50.": "1234.5",
    "so 10-5": "5",
    "it is -5 degrees": "-5",
    "a loss of -$5.00": "-5",
    "1,2,3": "3",
    "007": "7",
    "-0.0": "0",
    "none": None,
    "": None,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_the_last_number(text: str, number: str | None) -> None:
    assert Scoring(answer="number").answer_in(text) == number


def test_last_line_and_a_pattern() -> None:
    assert Scoring(answer="last_line").answer_in("so\n it is four \n\n") == "it is four"
    assert Scoring(answer="last_line").answer_in(" \n") is None
    strict = Scoring(answer=r"#### (\-?[0-9\.\,]+)")  # as in the harness's gsm8k
    assert strict.answer_in("#### 18 or #### 19") == "18"
    assert strict.answer_in("18") is None
    assert Scoring(answer="(a)?b").answer_in("b") is None
    assert Scoring().answer_in("as it is ") == "as it is "


def test_what_is_ignored_makes_no_difference() -> None:
    plain = Scoring()
    assert plain.same("a b", "a b")
    assert not plain.same("a b", "a  b")
    assert not plain.same(None, "")
    squad = Scoring(ignore=("case", "punctuation", "articles", "whitespace"))
    assert squad.same(" The Quick, brown  fox!", "quick brown fox")
    assert not squad.same("quick fox", "quick brown fox")
    assert Scoring(ignore=("case",)).same("PARIS", "Paris")
    assert not Scoring(ignore=("case",)).same("Paris.", "Paris")
    assert Scoring(ignore=("punctuation",)).same("Paris.", "Paris")
    assert Scoring(ignore=("whitespace",)).same(" Paris\n", "Paris")
    assert not Scoring(ignore=("articles",)).same("theatre", "atre")


def test_text_ends_before_the_first_stop_and_the_limit_follows_the_right_text() -> None:
    assert Scoring(until=("\n", "Q:")).ended("one Q: two\nthree") == "one "
    assert Scoring().ended("one\ntwo") == "one\ntwo"
    assert (Scoring().limit(10), Scoring(max_new_tokens=5).limit(10)) == (36, 5)


def test_rouge_l_is_that_of_the_longest_common_subsequence() -> None:
    pytest.importorskip("rouge_score")
    # "police the gunman" is common: precision 3/5, recall 3/4
    assert rouge_l("police kill the last gunman", "police killed the gunman") == pytest.approx(2 / (5 / 3 + 4 / 3))
    assert rouge_l("", "police") == 0.0
    assert rouge_l("Police!", "police") == 1.0


def opened(tmp_path: Path, score: str, completion: str = " 4", kind: str = "completion") -> Completion:
    (tmp_path / "sums.jsonl").write_text(
        json.dumps({"prompt": "2 + 2 =", "completion": completion, "text": "a b"}) + "\n"
    )
    (tmp_path / "own.yaml").write_text(f"sums: {{path: sums.jsonl, format: {kind}, score: {score}}}\n")
    source = open_defined(tmp_path / "own.yaml", lambda: open_source(source="synthetic"), print, ["sums"])
    ((name, subjects),) = source.resolve(["sums"])
    (item,) = source.pool(name, subjects).rows
    assert isinstance(item, Completion)
    return item


def test_fields_of_score(tmp_path: Path) -> None:
    given = "{answer: number, ignore: [case, articles], until: [Q], max_new_tokens: 64, rouge: false}"
    expected = Scoring("generation", "number", ("case", "articles"), ("Q",), 64, rouge=False)
    item = opened(tmp_path, given)
    assert item.scoring == expected
    assert item.sha256 == opened(tmp_path, "{by: teacher_forcing}").sha256
    assert opened(tmp_path, "{by: teacher_forcing}").scoring == TEACHER_FORCED
    assert opened(tmp_path, '{until: "\\n"}').scoring.until == ("\n",)  # white space ends a text too


def test_a_generated_skill_can_be_scored_by_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("hard: {source: skills, subjects: [facts], score: {answer: last_line}}\n")
    source = open_defined(tmp_path / "own.yaml", lambda: open_source(source="synthetic"), print, ["hard"])
    ((name, subjects),) = source.resolve(["hard"])
    pool = source.pool(name, subjects)
    assert {item.scoring.answer for item in (*pool.rows, *pool.held_out) if isinstance(item, Completion)} == {
        "last_line"
    }


MISTAKES = {
    "{by: guess}": "score.by must be one of",
    "{by: teacher_forcing, answer: number}": "score.answer needs sums.score.by=generation",
    "{answer: '####'}": "with one group",
    "{answer: '(a)(b)'}": "with one group",
    "{answer: '(a'}": "no regular expression",
    "{ignore: [accents]}": "score.ignore may name case, punctuation, articles, whitespace, named 'accents'",
    "{normalise: [case]}": "score.normalise is not a field",
    "{max_new_tokens: 0}": "score.max_new_tokens must be a whole number",
    "{max_new_tokens: many}": "score.max_new_tokens must be a whole number",
    "{rouge: maybe}": "score.rouge must be true or false",
    "{until: [[]]}": "score.until must be a list of texts",
    "generation": "score must hold fields",
    "{answer: 'x(y)'}": "the right completion must hold an answer by score.answer='x(y)', has none: ' 4'",
}


@pytest.mark.parametrize(("score", "said"), MISTAKES.items())
def test_a_mistake_in_score_is_one_line(tmp_path: Path, score: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(tmp_path, score)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_score_has_no_meaning_without_a_prompt_or_with_options(tmp_path: Path) -> None:
    for kind in ("text", "multiple_choice"):
        with pytest.raises(UserError, match="leave it out"):
            opened(tmp_path, "{by: generation}", kind=kind)
    (tmp_path / "own.yaml").write_text("toy: {source: synthetic, score: {answer: number}}\n")
    source = open_defined(tmp_path / "own.yaml", lambda: open_source(source="synthetic"), print, ["toy"])
    with pytest.raises(UserError, match="score is for completions"):
        source.pool(*source.resolve(["toy"])[0])


def test_rouge_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_forgetting.tasks.definition_files.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-forgetting\[rouge\]'"):
        opened(tmp_path, "{rouge: true}")
