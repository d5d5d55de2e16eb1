"""How a task's completions are judged: by what the model writes or finds likely, and what the answer in a text is."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

By = Literal["teacher_forcing", "generation", "likelihood", "likelihood_per_character"]
TITLES: Mapping[By, str] = {
    "teacher_forcing": "teacher-forced exact match",
    "generation": "exact match of generated answers",
    "likelihood": "likeliest option (acc)",
    "likelihood_per_character": "likeliest option per character (acc_norm)",
}
"""What the accuracy of a task is called, by `Scoring.by`."""
IGNORED = ("case", "punctuation", "articles", "whitespace")
NUMBER, LAST_LINE = "number", "last_line"
_NUMBER = re.compile(r"(?<![\d.])(?:(?<!\w)-\$?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@dataclass(frozen=True)
class Scoring:
    """How an item of completions is judged; the fields are those of `score` in a definitions file.

    Attributes:
        by: Whether every token is the likeliest after the right ones (`teacher_forcing`), what greedy decoding writes
            (`generation`), or which option has the largest log-likelihood, whole or per character, as the harness's `acc` and
            `acc_norm`.
        answer: What of a text is compared: `number` (the last), `last_line`, or a regular expression with one group, whose
            first match counts; None for all of it.
        ignore: Which of `IGNORED` make no difference.
        until: Texts of which the first ends what is written.
        max_new_tokens: Tokens that are written at most; None for twice those of the right completion and 16 more.
        rouge: Whether ROUGE-L is measured too.
    """

    by: By = "teacher_forcing"
    answer: str | None = None
    ignore: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    rouge: bool = False

    @property
    def of_options(self) -> bool:
        """Whether options are compared."""
        return self.by in ("likelihood", "likelihood_per_character")

    @property
    def title(self) -> str:
        """What its accuracy is."""
        return TITLES[self.by]

    def limit(self, right: int) -> int:
        """Tokens that may be written where the right completion has `right`."""
        return 2 * right + 16 if self.max_new_tokens is None else self.max_new_tokens

    def ended(self, text: str) -> str:
        """The text before the first of `until`."""
        return text[: min((place for stop in self.until if (place := text.find(stop)) >= 0), default=len(text))]

    def answer_in(self, text: str) -> str | None:
        """The answer in a text; None where it has none."""
        if self.answer is None:
            return text
        if self.answer == NUMBER:
            numbers = _NUMBER.findall(text)
            return _plain_number(numbers[-1]) if numbers else None
        if self.answer == LAST_LINE:
            return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
        found = re.search(self.answer, text)
        return None if found is None or found[1] is None else found[1].strip()

    def same(self, given: str | None, right: str) -> bool:
        """Whether an answer is the right one, but for what is ignored; one that is not there is wrong."""
        return given is not None and self._kept(given) == self._kept(right)

    def _kept(self, text: str) -> str:
        """The text without what is ignored, in the order of SQuAD's script."""
        if "case" in self.ignore:
            text = text.lower()
        if "punctuation" in self.ignore:
            text = text.translate(str.maketrans("", "", string.punctuation))
        if "articles" in self.ignore:
            text = re.sub(r"\b(a|an|the)\b", " ", text, flags=re.IGNORECASE)
        if "whitespace" in self.ignore or "articles" in self.ignore:
            text = " ".join(text.split())
        return text


TEACHER_FORCED = Scoring()


def _plain_number(text: str) -> str:
    """Without thousands separators, a currency's sign, and zeros after the decimal point: 1,234.50 is 1234.5."""
    number = Decimal(text.replace(",", "").replace("$", ""))
    plain = f"{number:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


def rouge_l(written: str, right: str) -> float:
    """F1 of the longest common subsequence of words, as the package rouge_score has it, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"], use_stemmer=False).score(right, written)["rougeL"].fmeasure)
