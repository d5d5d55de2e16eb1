"""Landscape objective: letter logits and rest of fixed items of all tasks, as one vector per point of a scan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.arrays import Floats
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.nodes import Evaluator
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import CannotPackError
from llm_forgetting.models.language.scoring import item_weights, score, score_points, split_groups

Items = Sequence[tuple[str, Sequence[EncodedItem]]]


class LandscapeObjective:
    """Losses of fixed items of named tasks in fixed batches, the same at every point and checkpoint.

    A point's values are z (m, k) and rest (m,) of all m predictions in one row of m (k + 1) numbers, smooth functions that a
    fit need not understand; `statistics` and `losses` read them.
    """

    def __init__(
        self,
        model: LanguageModel,
        items: Items,
        batch_size: int,
        points_per_forward: int = 1,
    ) -> None:
        self._model = model
        self.items = items
        self.names = tuple(name for name, _ in items)
        self._items = [item for _, group in items for item in group]
        self._sizes = [len(group) for _, group in items]
        self._batch_size = batch_size
        self._rows = points_per_forward
        self._options = max(len(tokens) for item in self._items for tokens in item.options)
        self._answers = np.array([answer for item in self._items for answer in item.answers])
        self._predictions = np.array([len(item.predictions) for item in self._items])
        self._weights = item_weights(self._items)

    def only(self, tasks: Sequence[int]) -> "LandscapeObjective":
        """The same of the tasks at these places alone."""
        if list(tasks) == list(range(len(self.items))):
            return self
        return LandscapeObjective(self._model, [self.items[place] for place in tasks], self._batch_size, self._rows)

    def item_ids(self, index: int) -> tuple[str, ...]:
        """Names of the items of task number `index`."""
        return tuple(item.item.id for item in self.items[index][1])

    @contextmanager
    def evaluating(self) -> Iterator[Evaluator]:
        """Context with an evaluator; the model moves meanwhile, and is as before afterwards."""
        together = self._rows > 1 and self._model.supports_packing
        with self._model.unmerged() if together else self._alone() as move:

            def values_at(points: Iterable[WeightUpdate]) -> Iterator[Floats]:
                waiting = iter(points)
                while chunk := list(islice(waiting, self._rows if together else 1)):
                    move(chunk)
                    scored = (
                        self._side_by_side(len(chunk))
                        if together
                        else [score(self._model, self._items, self._batch_size)]
                    )
                    for statistics in scored:
                        yield np.concatenate([statistics.letter_logits.reshape(-1), statistics.rest])

            yield values_at

    def _side_by_side(self, points: int) -> list[AnswerStatistics]:
        try:
            return score_points(self._model, self._items, self._batch_size, points)
        except CannotPackError as error:
            raise UserError(
                f"points can share a forward pass only where items can be packed, and {error} forbids it; set "
                f"landscape.points_per_forward=1"
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[Callable[[Sequence[WeightUpdate]], None]]:
        with self._model.perturbed() as move:
            yield lambda points: move(points[0])

    def statistics(self, values: Floats) -> list[AnswerStatistics]:
        """Per task the statistics of values (..., m (k + 1)), leading axes kept."""
        return split_groups(self._read(values, slice(0, len(self._items))), self._sizes)

    def _read(self, values: Floats, items: slice) -> AnswerStatistics:
        """Statistics of some items, from the values of their predictions."""
        sizes = self._predictions[items]
        first, m, k = int(self._predictions[: items.start].sum()), int(sizes.sum()), self._options
        z = values[..., : m * k].reshape(*values.shape[:-1], m, k)
        weights = None if self._weights is None else self._weights[items]
        return AnswerStatistics(z, values[..., m * k :], self._answers[first : first + m], sizes, weights=weights)

    def _of(self, index: int) -> slice:
        """The items of task number `index`."""
        first = sum(self._sizes[:index])
        return slice(first, first + self._sizes[index])

    def columns(self, index: int) -> NDArray[np.intp]:
        """Which of a point's values are those of task number `index`."""
        ends, k = np.cumsum([0, *self._predictions]), self._options
        items = self._of(index)
        rows = np.arange(ends[items.start], ends[items.stop])
        return np.concatenate([(rows[:, None] * k + np.arange(k)).reshape(-1), ends[-1] * k + rows])

    def loss(self, index: int, values: Floats) -> Floats:
        """(...) mean loss of task number `index`, from values of its `columns`."""
        return self._read(values, self._of(index)).surface("loss")

    def losses(self, values: Floats) -> Floats:
        """(..., tasks) mean loss of each task."""
        return np.stack([entry.surface("loss") for entry in self.statistics(values)], axis=-1)
