"""A training that ends at a chosen optimiser step, as if its process were killed."""

from collections.abc import Iterator
from contextlib import contextmanager

from llm_forgetting.progress import Advance, Silent


class Killed(BaseException):
    """What a killed process is to the code that it runs."""


class KillingProgress(Silent):
    """Ends the training at an optimiser step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        def advance(steps: int, text: str) -> None:
            self.left -= steps
            if self.left == 0:
                raise Killed

        yield advance
