"""Views of the forecasts: each beside the observed change and its standard error."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from llm_forgetting.arrays import standard_error
from llm_forgetting.forgetting.records import ItemRecord, Line
from llm_forgetting.report.tables.run import SPLIT_WORDS, display_name, measured, value_and_error
from llm_forgetting.results import Results


@dataclass(frozen=True)
class ComparedForecast:
    """Forecasts by order and the observed change of one earlier task and split on one step, nats.

    `stderr` is that of the observed change over the `items`, which are the same at both ends; None where they are not known.
    """

    name: str
    split: str
    forecasts: Mapping[str, float]
    observed: float
    stderr: float | None
    items: int

    @property
    def failed(self) -> bool:
        """Whether the second order lies outside of the observed change's 95% t interval."""
        if self.stderr is None or self.items < 2:
            return False
        half = float(stats.t.ppf(0.975, self.items - 1)) * self.stderr
        return abs(self.forecasts["second_order"] - self.observed) > half


def compared_forecasts(results: Results, items: Sequence[Line]) -> list[ComparedForecast]:
    """Every forecast that was compared with what happened."""
    losses: dict[tuple[str, str, str, str], float] = {
        (item.checkpoint, item.task, item.split, item.id): item.loss for item in items if isinstance(item, ItemRecord)
    }
    return [
        ComparedForecast(
            f"{display_name(task)}, {SPLIT_WORDS[split]}, {display_name(step.start)} to {display_name(step.to)}",
            split,
            {"first_order": forecast.first_order, "second_order": forecast.second_order},
            forecast.observed,
            _paired_stderr(
                *(
                    [losses.get((checkpoint, task, split, item)) for item in forecast.items]
                    for checkpoint in (step.start, step.to)
                )
            ),
            len(forecast.items),
        )
        for step in results.forecasts
        for task, splits in step.tasks.items()
        for split, forecast in splits.items()
    ]


def _paired_stderr(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    pairs = [(x, y) for x, y in zip(before, after, strict=True) if x is not None and y is not None]
    stderr = standard_error([y - x for x, y in pairs]) if len(pairs) == len(before) else None
    return None if stderr is None or math.isnan(stderr) else stderr


def forecast_sentence(forecasts: Sequence[ComparedForecast]) -> str:
    """Which forecasts failed; empty if none did, or if the items are not known."""
    failed = [
        f"{each.name}: second order {measured(each.forecasts['second_order'])}, observed "
        f"{value_and_error(each.observed, each.stderr)} nats"
        for each in forecasts
        if each.failed
    ]
    return f"The forecast failed ({'; '.join(failed)})." if failed else ""
