"""Records of forgetting, of the probes of spurious forgetting, and of the loss on unrelated text. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llm_forgetting.arrays import Floats, Floats1, Floats2
from llm_forgetting.files import OMITTED, reshaped
from llm_forgetting.forgetting.intervals import PairedProportionChange, Proportion
from llm_forgetting.forgetting.mean_intervals import Mean, PairedMeanChange
from llm_forgetting.forgetting.measures import Change, MeasureForgetting
from llm_forgetting.forgetting.scores import Measure, Split
from llm_forgetting.forgetting.transitions import Transitions


@dataclass(frozen=True)
class DetectableDrop:
    """Drop in accuracy (a share) that a task's n items could have shown, the share of them that changed, and that in
    words.
    """

    task: str
    n: int
    changed: float
    drop: float
    said: str


@dataclass(frozen=True, eq=False)
class SplitForgetting:
    """Forgetting on one split, in accuracy (shares) and in loss (nats), over T + 1 checkpoints and T tasks.

    letter_mass (T + 1, T): mean probability of the option letters together; detectable: per task but the last.
    """

    checkpoints: tuple[str, ...]
    split: str
    task_names: tuple[str, ...]
    accuracy: MeasureForgetting
    loss: MeasureForgetting
    letter_mass: Floats2
    detectable: tuple[DetectableDrop, ...]

    def measure(self, name: Measure) -> MeasureForgetting:
        """Forgetting in one measure by its name."""
        return self.accuracy if name == "accuracy" else self.loss


@dataclass(frozen=True, eq=False)
class ForgettingBySplit:
    """Forgetting of the trained items and of held-out ones."""

    train: SplitForgetting
    test: SplitForgetting

    @property
    def splits(self) -> tuple[SplitForgetting, SplitForgetting]:
        """Both splits, the trained items first."""
        return self.train, self.test


@dataclass(frozen=True)
class LetterCounts:
    """How often each letter was answered and was right, and half the sum of the differences of the two shares (0 to 1)."""

    answered: dict[str, int]
    right: dict[str, int]
    distance: float


@dataclass(frozen=True)
class Rotations:
    """Accuracies over the rotations of `n` items' options; `n` may be less than all where some have no rotations.

    mean: of all rotations; summed: of the option with the largest summed log-probability; consistent: share of items that
    are answered with one option throughout.
    """

    n: int
    mean: float
    summed: Proportion
    consistent: Proportion


@dataclass(frozen=True)
class SpuriousForgettingProbes:
    """Probes of one checkpoint on one task and split: plain accuracy, and what is left of it under each probe."""

    n: int
    accuracy: Proportion
    letters: LetterCounts
    prior_corrected: Proportion
    rotations: Rotations | None


@dataclass(frozen=True)
class Recovery:
    """What a few items bring back of a task, on its other trained items.

    items: how many were trained on again; forgotten: the change from the task's own checkpoint to the last; recovered: from
    the last to after the few items; share: of what was lost that came back, None where nothing was lost; fresh: the same few
    items from the base model on, the control for what they teach by themselves (None where it was not run).
    """

    items: int
    accuracy: dict[str, Proportion]
    forgotten: PairedProportionChange
    recovered: PairedProportionChange
    share: float | None


@dataclass(frozen=True)
class SpuriousForgetting:
    """Probes of one task's trained items, by checkpoint (after the task itself, after the last), and what a few items
    bring back (None where that was not tried). In JSON the checkpoints stand beside `recovery`.
    """

    probes: dict[str, SpuriousForgettingProbes]
    recovery: Recovery | None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return reshaped(
            handler(source), _gathered, lambda _, fields: {**fields["probes"], "recovery": fields["recovery"]}
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        properties = schema.pop("properties", None)
        if properties is not None:
            schema["additionalProperties"] = properties["probes"]["additionalProperties"]
            schema |= {"properties": {"recovery": properties["recovery"]}, "required": ["recovery"]}
        return schema


def _gathered(content: Mapping[str, Any]) -> dict[str, Any]:
    probes = {name: value for name, value in content.items() if name != "recovery"}
    return {"probes": probes, **({"recovery": content["recovery"]} if "recovery" in content else {})}


@dataclass(frozen=True)
class TextDrift:
    """Loss per token on text that belongs to no task (nats): by checkpoint, and its change from the base model. Both
    are empty where a loss is not finite.
    """

    passages: int
    loss: dict[str, Mean]
    change: dict[str, PairedMeanChange]


@dataclass(frozen=True)
class QuantisationCost:
    """Change of one task's scores where a checkpoint's merged weights are quantised to `kind` (4bit or 8bit) and back: of the
    loss in nats (None where one is not finite), and of the accuracy.
    """

    checkpoint: str
    kind: str
    task: str
    split: Split
    loss: PairedMeanChange | None
    accuracy: PairedProportionChange


@dataclass(frozen=True)
class ProbeChange:
    """Change of a probe from one checkpoint to the last, on the same items: of its score, and of its loss in nats (None where
    it has none, or one is not finite). `transitions`: right to wrong and wrong to right, None where the score is not 0 or 1.
    """

    start: str
    score: Change
    loss: PairedMeanChange | None
    transitions: Transitions | None


@dataclass(frozen=True)
class Probe:
    """Scores of a task that is never trained on, by checkpoint: n items, `measure` of them (accuracy, exact match, or a
    metric of lm-evaluation-harness), the score that guessing gives (None where that is not known), the loss in nats (empty
    for the harness' tasks), and what changed from every earlier checkpoint to the last.
    """

    name: str
    measure: str
    n: int
    chance: float | None
    score: dict[str, Proportion | Mean]
    loss: dict[str, Mean]
    changes: tuple[ProbeChange, ...]


@dataclass(frozen=True)
class ForgettingSummary:
    """Summary of a run's scores, as the phase `forgetting` leaves it: the answer in one sentence, and its parts by
    task;
    `quantised`: what quantisation costs, `probes`: what was never trained on, where those were asked for.
    """

    answer: str
    forgetting: ForgettingBySplit
    spurious: dict[str, SpuriousForgetting]
    text: TextDrift
    quantised: Annotated[tuple[QuantisationCost, ...] | None, OMITTED] = None
    probes: Annotated[tuple[Probe, ...] | None, OMITTED] = None


@dataclass(frozen=True, eq=False)
class ItemRecord:
    """Item as one checkpoint answered it: loss in nats over the whole vocabulary, letter_logits (k,), rest = logsumexp
    of all other logits, and rotated_letter_logits (k - 1, k) where its options were rotated. A completion has `tokens`,
    the number of those that are learnt, instead; its loss is that per token, and predicted are the likeliest tokens, each
    after the right ones before it. Of one that is judged by what the model writes, `generated` is all of that, `predicted` and
    `answer` the answers in it and in the right completion, `correct` whether they match, `teacher_forced` what the
    likeliest tokens would say, and `rouge_l` the F1 of ROUGE-L (0 to 1) where that was asked for. `weight`: how often each
    of its tokens counts in a mean loss, where not once. Of one that is judged among options, log_likelihoods (k,) are those of
    their texts after the prompt (nats), `predicted` the one chosen; `acc` and `acc_norm`: whether the likeliest, whole and
    per character, is right. The split of items of a task that is never
    trained on is `probe`.
    """

    checkpoint: str
    task: str
    split: Split | Literal["probe"]
    id: str
    subject: str
    answer: str
    predicted: str
    correct: bool
    loss: float
    letter_logits: Annotated[Floats1 | None, OMITTED] = None
    rest: Annotated[float | None, OMITTED] = None
    rotated_letter_logits: Annotated[Floats2 | None, OMITTED] = None
    tokens: Annotated[int | None, OMITTED] = None
    generated: Annotated[str | None, OMITTED] = None
    teacher_forced: Annotated[bool | None, OMITTED] = None
    rouge_l: Annotated[float | None, OMITTED] = None
    weight: Annotated[float | None, OMITTED] = None
    log_likelihoods: Annotated[Floats1 | None, OMITTED] = None
    acc: Annotated[bool | None, OMITTED] = None
    acc_norm: Annotated[bool | None, OMITTED] = None

    @property
    def options(self) -> int:
        """Number of options, letters or texts, 0 of another completion."""
        compared = self.log_likelihoods if self.letter_logits is None else self.letter_logits
        return 0 if compared is None else len(compared)

    @property
    def letters(self) -> Floats1:
        """Logits of the letters of a question; ValueError for a completion."""
        if self.letter_logits is None:
            raise ValueError(f"{self.id} has no letters: it is a completion")
        return self.letter_logits


def weighted_losses(records: Sequence[ItemRecord]) -> Floats:
    """(n,) losses by the items' shares in the weight of all tokens, so that their mean is the training loss; those of questions
    as they are.
    """
    weights = np.array([(record.tokens or 1) * (record.weight or 1) for record in records], dtype=float)
    return np.asarray(np.array([record.loss for record in records]) * (weights / weights.mean()))


@dataclass(frozen=True)
class PassageRecord:
    """Passage of unrelated text at one checkpoint: its loss in nats per token, over `tokens` of them."""

    checkpoint: str
    split: Literal["text"]
    id: str
    tokens: int
    loss: float


@dataclass(frozen=True)
class SampleRecord:
    """Sample of a task of lm-evaluation-harness at one checkpoint: `id` (doc_id) and `hash` (doc_hash) as the harness gives
    them, its metrics, and its number of options (0 where it is not multiple choice). `subject` is the harness' own task, where
    `task` is a group of several. Neither the document nor the answer is kept.
    """

    checkpoint: str
    task: str
    split: Literal["harness"]
    id: str
    subject: str
    hash: str
    metrics: dict[str, float]
    options: int


Line = Annotated[ItemRecord | PassageRecord | SampleRecord, Field(discriminator="split")]
"""A line of items.jsonl."""
