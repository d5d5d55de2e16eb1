"""What is measured where a token is predicted: logits of the options, the rest of the vocabulary, and what follows from them.

    z = logits of the option letters (m, k),   rest = logsumexp over all other tokens (m,),   lse = logaddexp(logsumexp z, rest)
    full-vocabulary loss = lse - z[y]     four-way loss = logsumexp(z) - z[y]     letter mass = sum exp(z - lse)

in nats, from one forward pass. Keeping `rest` and not `lse` makes every loss non-negative by construction, also after
interpolation. Predictions with fewer than k options carry z = -inf in the surplus places. A question has one prediction, a
completion one per token, each with the right token as its only option.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from llm_forgetting.arrays import Floats


class Judged(Protocol):
    """What an item is judged by, where that is not the likeliest token after the right ones."""

    @property
    def right(self) -> bool:
        """Whether it counts as right."""


@dataclass(frozen=True)
class AnswerStatistics:
    """`letter_logits` (..., m, k), `rest` (..., m) and `answers` (m,) of the m predictions of n items, item by item.

    Leading axes are points of a scan. An answer of -1: the only option, a completion's token. `sizes` (n,): predictions of each
    item; None: one. `likeliest` (m,): the most likely token of the whole vocabulary, where that is known, and `wanted` (m,) the
    right one. `judged` (n,): what an item is judged by instead, None where by nothing else. `weights` (n,): how often each
    prediction of an item counts in a mean loss; None: once.
    """

    letter_logits: Floats
    rest: Floats
    answers: NDArray[np.int64]
    sizes: NDArray[np.int64] | None = None
    likeliest: NDArray[np.int64] | None = None
    wanted: NDArray[np.int64] | None = None
    judged: tuple[Judged | None, ...] | None = None
    weights: Floats | None = None

    @property
    def _first(self) -> NDArray[np.int64] | None:
        """Per item its first prediction; None where each has one."""
        if self.sizes is None or (self.sizes == 1).all():
            return None
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    def of(self, items: slice) -> "AnswerStatistics":
        """Those of some items."""
        if self.sizes is None:
            rows = items
        else:
            ends = np.cumsum([0, *self.sizes])
            rows = slice(int(ends[items.start]), int(ends[items.stop]))
        return AnswerStatistics(
            self.letter_logits[..., rows, :],
            self.rest[..., rows],
            self.answers[rows],
            None if self.sizes is None else self.sizes[items],
            None if self.likeliest is None else self.likeliest[rows],
            None if self.wanted is None else self.wanted[rows],
            None if self.judged is None else self.judged[items],
            None if self.weights is None else self.weights[items],
        )

    @property
    def _answers(self) -> NDArray[np.int64]:
        return np.maximum(self.answers, 0)

    @property
    def _answer_logit(self) -> Floats:
        index = np.broadcast_to(self._answers[..., None], (*self.letter_logits.shape[:-1], 1))
        return np.take_along_axis(self.letter_logits, index, axis=-1)[..., 0]

    def _per_item(self, values: Floats) -> Floats:
        """(..., n) mean of values (..., m) over the predictions of each item."""
        if self._first is None:
            return values
        return np.asarray(np.add.reduceat(values, self._first, axis=-1) / self.sizes)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(n,) predictions of each item."""
        return np.ones(len(self.answers), dtype=np.int64) if self.sizes is None else self.sizes

    @property
    def token_losses(self) -> Floats:
        """(..., m) full-vocabulary loss of every prediction, nats."""
        with np.errstate(invalid="ignore"):  # a diverged point is NaN in the result, not a warning per item
            lse = np.logaddexp(logsumexp(self.letter_logits, axis=-1), self.rest)
            return np.asarray(lse - self._answer_logit)

    @property
    def losses(self) -> Floats:
        """(..., n) full-vocabulary loss of every item, nats per token: the training loss."""
        return self._per_item(self.token_losses)

    @property
    def weighted_losses(self) -> Floats:
        """(..., n) losses by the items' shares in the weight of all predictions, so that their mean is the training loss."""
        if self.sizes is None or self._first is None:
            return self.losses
        total = self.sizes if self.weights is None else self.sizes * self.weights
        return np.asarray(self.losses * (total / total.mean()))

    @property
    def mean_loss(self) -> Floats:
        """(...,) the training loss of all items: sum of w loss over sum of w."""
        return np.asarray(self.weighted_losses.mean(axis=-1))

    def mean_loss_of(self, chosen: NDArray[np.bool_], point: int | None = None) -> Floats:
        """(...,) the training loss of some items, or of one point of a scan."""
        losses = self.losses if point is None else self.losses[point]
        if self.sizes is None or self._first is None:
            return np.asarray(losses[..., chosen].mean(axis=-1))
        total = self.sizes if self.weights is None else self.sizes * self.weights
        return np.asarray(losses[..., chosen] @ (total[chosen] / total[chosen].sum()))

    @property
    def log_likelihoods(self) -> Floats:
        """(..., n, k) log p of every letter over the whole vocabulary, nats; -inf where an item has no such letter."""
        lse = np.logaddexp(logsumexp(self.letter_logits, axis=-1), self.rest)
        return np.asarray(self.letter_logits - lse[..., None])

    @property
    def four_way_losses(self) -> Floats:
        """(..., n) loss within the k letters, nats."""
        with np.errstate(invalid="ignore"):
            return self._per_item(np.asarray(logsumexp(self.letter_logits, axis=-1) - self._answer_logit))

    @property
    def predictions(self) -> NDArray[np.int64]:
        """(..., m) index of the first largest letter."""
        return np.asarray(np.argmax(self.letter_logits, axis=-1))

    def judged_by(self, judged: Sequence[Judged | None]) -> "AnswerStatistics":
        """The same of items that something else is known of."""
        return replace(self, judged=tuple(judged))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(..., n) whether an item is right, by what it is judged by."""
        if self.judged is None:
            return self.teacher_forced
        pairs = zip(self.teacher_forced, self.judged, strict=True)
        return np.array([bool(right) if other is None else other.right for right, other in pairs])

    @property
    def teacher_forced(self) -> NDArray[np.bool_]:
        """(..., n) whether the largest letter is the answer; of a completion whether every token is the most likely one.

        Where that is not known, a completion counts as right if every token is likelier than all others together: no more than
        are right.
        """
        right = np.asarray(self.predictions == self._answers) & np.isfinite(self._answer_logit)
        if (self.answers < 0).any():
            if self.likeliest is None or self.wanted is None:
                surely = self._answer_logit > self.rest
            else:
                surely = np.asarray(self.likeliest == self.wanted)
            right &= (self.answers >= 0) | surely
        return right if self._first is None else np.logical_and.reduceat(right, self._first, axis=-1)

    @property
    def letter_mass(self) -> Floats:
        """(..., n) probability that the model gives to the option letters together, or on average to a completion's tokens."""
        with np.errstate(invalid="ignore"):
            letters = logsumexp(self.letter_logits, axis=-1)
            return self._per_item(np.asarray(np.exp(letters - np.logaddexp(letters, self.rest))))

    def surface(self, kind: str) -> Floats:
        """(...,) mean of one of `SURFACES`, of the loss over the predictions by their weights, else over the items; not finite
        where logits are not.
        """
        if kind == "loss" and self.weights is not None:
            return self.mean_loss
        values = np.asarray(getattr(self, _PER_ITEM[kind]), dtype=np.float64)
        if kind == "accuracy":
            broken = self._per_item(np.asarray(np.isnan(self.letter_logits).any(axis=-1), dtype=np.float64)) > 0
            values = np.where(broken, np.nan, values)
        return np.asarray(values.sum(axis=-1) / values.shape[-1])


_PER_ITEM = {
    "loss": "token_losses",
    "four_way_loss": "four_way_losses",
    "accuracy": "teacher_forced",
    "letter_mass": "letter_mass",
}
SURFACES = tuple(_PER_ITEM)
