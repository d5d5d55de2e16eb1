"""Records of an adapter's evaluation: accuracy per subject and task, trained rows apart from held-out ones."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llm_forgetting.files import OMITTED
from llm_forgetting.forgetting.intervals import Proportion
from llm_forgetting.forgetting.mean_intervals import Mean


@dataclass(frozen=True)
class SubjectEvaluation:
    """Evaluation of one subject on n rows: accuracy (share), loss (nats), mean letter mass, seconds; `shortened` rows
    did not fit as they were. `trained` and `held_out` are the accuracies on the rows that the adapter was trained on and
    on the others, None where there is no such row or no row was trained on. `completions`: the rows are prompts with
    completions, whose accuracy is exact match; left out for questions. `rouge_l`: mean F1 of ROUGE-L of what was written,
    where that was asked for.
    """

    name: str
    n: int
    shots: tuple[str, ...]
    shortened: int
    accuracy: Proportion
    loss: Mean
    letter_mass: float
    seconds: float
    trained: Proportion | None = None
    held_out: Proportion | None = None
    completions: Annotated[Literal[True] | None, OMITTED] = None
    rouge_l: Annotated[float | None, OMITTED] = None

    @property
    def headline(self) -> Proportion:
        """Accuracy on held-out rows where some were trained on, else on all."""
        return self.held_out or self.accuracy


@dataclass(frozen=True)
class PooledAccuracy:
    """Accuracy over all n rows of a task, with the harness's pooled stderr (None where a subject has one row)."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class TaskEvaluation:
    """Evaluation of one task, subject by subject; `trained` and `held_out` as of a subject. `measure`: what the accuracy of
    completions is; absent for questions, and in older evaluations.
    """

    name: str
    subjects: tuple[SubjectEvaluation, ...]
    accuracy: PooledAccuracy
    trained: PooledAccuracy | None = None
    held_out: PooledAccuracy | None = None
    measure: Annotated[str | None, OMITTED] = None

    @property
    def is_exact_match(self) -> bool:
        """Whether its accuracy is exact match: of completions that are not judged among options."""
        return all(subject.completions for subject in self.subjects) and "exact match" in (
            self.measure or "exact match"
        )

    @property
    def headline(self) -> PooledAccuracy:
        """Accuracy on held-out rows where some were trained on, else on all."""
        return self.held_out or self.accuracy
