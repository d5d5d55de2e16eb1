"""Spurious forgetting: what of a drop is lost knowledge, and what a changed habit of answering.

From per-item records alone (no model), four probes of the same drop:

- letters: how often each letter is answered. A model that now says "B" to everything has lost its aim first.
- prior-corrected accuracy: argmax of log p(letter) - b(letter), p over the item's letters and b such that the corrected
  probabilities are uniform on average over items; whatever the model prefers regardless of the question is taken out. One
  step from b = 0 is batch calibration (Zhou et al., ICLR 2024), which leaves most of a strong preference in.
- rotations: every item with its k options rotated through all k places. The accuracy of one rotation is that of the usual
  order for a model without a preference of place; the sum of log p over the rotations, option by option, has none by
  construction; consistency is the share of items whose answered option is the same in every rotation.
- recovery: fine-tuning on a few items of the task again, and the accuracy on its other items. If it comes back from a few,
  it was not gone (Zheng et al., "Spurious Forgetting in Continual Learning of Language Models", ICLR 2025).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from llm_forgetting.arrays import Floats
from llm_forgetting.forgetting.intervals import paired_proportion_change, proportion
from llm_forgetting.forgetting.records import (
    ItemRecord,
    LetterCounts,
    Recovery,
    Rotations,
    SpuriousForgettingProbes,
)


def spurious_forgetting_probes(records: Sequence[ItemRecord]) -> SpuriousForgettingProbes:
    """All probes of the records of one checkpoint, task and split."""
    correct = np.array([record.correct for record in records], dtype=np.bool_)
    return SpuriousForgettingProbes(
        n=len(records),
        accuracy=proportion(correct),
        letters=letter_counts(records),
        prior_corrected=proportion(prior_corrected(records)),
        rotations=rotations(records),
    )


def letter_counts(records: Sequence[ItemRecord]) -> LetterCounts:
    """Letters answered and right; every letter that an item offers is counted, also where its count is 0."""
    most = max(len(record.letters) for record in records)
    letters = [chr(ord("A") + n) for n in range(most)]
    answered = {letter: sum(record.predicted == letter for record in records) for letter in letters}
    right = {letter: sum(record.answer == letter for record in records) for letter in letters}
    distance = sum(abs(answered[letter] - right[letter]) for letter in letters) / (2 * len(records))
    return LetterCounts(answered, right, distance)


def log_probabilities(logits: ArrayLike) -> Floats:
    """(k,) log p of an item's letters among themselves."""
    z = np.asarray(logits, dtype=np.float64)
    return np.asarray(z - logsumexp(z))


def prior_corrected(records: Sequence[ItemRecord]) -> NDArray[np.bool_]:
    """(n,) whether the corrected answer is right. The prior is taken over items with as many options."""
    p = [log_probabilities(record.letters) for record in records]
    prior = {k: letter_prior(np.array([row for row in p if len(row) == k])) for k in {len(row) for row in p}}
    chosen = [int(np.argmax(row - prior[len(row)])) for row in p]
    return np.array(
        [letter_of(place) == record.answer for place, record in zip(chosen, records, strict=True)], dtype=np.bool_
    )


def letter_prior(p: Floats, steps: int = 500, tolerance: float = 1e-6) -> Floats:
    """(k,) b, of mean 0, for which the mean over items of softmax(p - b) is uniform; p: (n, k) log-probabilities.

    b grows by the log of the mean, step by step (a fixed point of batch calibration, as in Sinkhorn's algorithm). One
    item, or items that are certain of one letter, have no such b; they end after `steps`.
    """
    b = np.zeros(p.shape[1])
    for _ in range(steps):
        corrected = p - b
        excess = logsumexp(corrected - logsumexp(corrected, axis=1, keepdims=True), axis=0) - np.log(
            len(p) / p.shape[1]
        )
        b += excess
        if np.abs(excess).max() < tolerance:
            break
    return np.asarray(b - b.mean())


def letter_of(place: int) -> str:
    """The letter of the option at `place`."""
    return chr(ord("A") + place)


def rotations(records: Sequence[ItemRecord]) -> Rotations | None:
    """Accuracies over rotated options, of the records that have any; None where none has.

    `rotated_letter_logits`[r - 1][i] is the logit of letter i where the options were moved r places back, so that option
    (i + r) mod k stood there.
    """
    rotated = [record for record in records if record.rotated_letter_logits is not None]
    if not rotated:
        return None
    means, summed, consistent = [], [], []
    for record in rotated:
        by_option = options_by_rotation(record)
        answer = ord(record.answer) - ord("A")
        chosen = by_option.argmax(axis=1)
        means.append(float((chosen == answer).mean()))
        summed.append(int(by_option.sum(axis=0).argmax()) == answer)
        consistent.append(bool((chosen == chosen[0]).all()))
    return Rotations(
        n=len(rotated),
        mean=float(np.mean(means)),
        summed=proportion(np.array(summed)),
        consistent=proportion(np.array(consistent)),
    )


def options_by_rotation(record: ItemRecord) -> Floats:
    """(k, k) log p of every option (columns) in every rotation (rows, the usual order first)."""
    assert record.rotated_letter_logits is not None
    rows = [record.letters, *record.rotated_letter_logits]
    return np.stack([np.roll(log_probabilities(row), shift) for shift, row in enumerate(rows)])


def recovery(
    tuned: Sequence[ItemRecord],
    last: Sequence[ItemRecord],
    again: Sequence[ItemRecord],
    fresh: Sequence[ItemRecord],
    items: int,
) -> Recovery:
    """Recovery from the records of one task after itself, after the last task, after the few items, and of the control.

    Only items of `again` count: those that were not trained on again. `fresh` may be empty.
    """
    ids = [record.id for record in again]
    named = {"tuned": tuned, "last": last, "recovered": again, **({"fresh": fresh} if fresh else {})}
    by_id = {name: {record.id: record.correct for record in records} for name, records in named.items()}
    right = {name: np.array([correct[n] for n in ids], dtype=np.bool_) for name, correct in by_id.items()}
    lost = int(right["tuned"].sum()) - int(right["last"].sum())
    back = int(right["recovered"].sum()) - int(right["last"].sum())
    return Recovery(
        items=items,
        accuracy={name: proportion(correct) for name, correct in right.items()},
        forgotten=paired_proportion_change(right["tuned"], right["last"]),
        recovered=paired_proportion_change(right["last"], right["recovered"]),
        share=back / lost if lost > 0 else None,
    )
