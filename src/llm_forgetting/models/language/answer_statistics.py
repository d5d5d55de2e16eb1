"""What is measured at the answer position: letter logits, the rest of the vocabulary, and what follows from them.

    z = logits of the option letters (n, k),   rest = logsumexp over all other tokens (n,),   lse = logaddexp(logsumexp z, rest)
    full-vocabulary loss = lse - z[y]     four-way loss = logsumexp(z) - z[y]     letter mass = sum exp(z - lse)

in nats, from one forward pass. Keeping `rest` and not `lse` makes every loss non-negative by construction, also after
interpolation. Items with fewer than k options carry z = -inf in the surplus places.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from llm_forgetting.arrays import Floats


@dataclass(frozen=True)
class AnswerStatistics:
    """`letter_logits` (..., n, k), `rest` (..., n) and `answers` (n,) of n items; leading axes are points of a scan."""

    letter_logits: Floats
    rest: Floats
    answers: NDArray[np.int64]

    @property
    def _answer_logit(self) -> Floats:
        index = np.broadcast_to(self.answers[..., None], (*self.letter_logits.shape[:-1], 1))
        return np.take_along_axis(self.letter_logits, index, axis=-1)[..., 0]

    @property
    def losses(self) -> Floats:
        """(..., n) full-vocabulary loss of every item, nats: the training loss."""
        with np.errstate(invalid="ignore"):  # a diverged point is NaN in the result, not a warning per item
            lse = np.logaddexp(logsumexp(self.letter_logits, axis=-1), self.rest)
            return np.asarray(lse - self._answer_logit)

    @property
    def log_likelihoods(self) -> Floats:
        """(..., n, k) log p of every letter over the whole vocabulary, nats; -inf where an item has no such letter."""
        lse = np.logaddexp(logsumexp(self.letter_logits, axis=-1), self.rest)
        return np.asarray(self.letter_logits - lse[..., None])

    @property
    def four_way_losses(self) -> Floats:
        """(..., n) loss within the k letters, nats."""
        with np.errstate(invalid="ignore"):
            return np.asarray(logsumexp(self.letter_logits, axis=-1) - self._answer_logit)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """(..., n) index of the first largest letter."""
        return np.asarray(np.argmax(self.letter_logits, axis=-1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(..., n) whether the largest letter is the answer."""
        return np.asarray(self.predictions == self.answers) & np.isfinite(self._answer_logit)

    @property
    def letter_mass(self) -> Floats:
        """(..., n) probability that the model gives to the option letters together."""
        with np.errstate(invalid="ignore"):
            letters = logsumexp(self.letter_logits, axis=-1)
            return np.asarray(np.exp(letters - np.logaddexp(letters, self.rest)))

    def surface(self, kind: str) -> Floats:
        """(...,) mean over the items of one of `SURFACES`; not finite where logits are not."""
        values = np.asarray(getattr(self, _PER_ITEM[kind]), dtype=np.float64)
        if kind == "accuracy":
            values = np.where(np.isnan(self.letter_logits).any(axis=-1), np.nan, values)
        return np.asarray(values.sum(axis=-1) / values.shape[-1])


_PER_ITEM = {"loss": "losses", "four_way_loss": "four_way_losses", "accuracy": "correct", "letter_mass": "letter_mass"}
SURFACES = tuple(_PER_ITEM)
