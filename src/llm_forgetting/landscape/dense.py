"""Changes of single parameters that have no low-rank factors: read one at a time, when they are needed, and then forgotten."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Dense(Protocol):
    """The change of one parameter. A linear map's is (d_out, d_in), whichever way round the module keeps it."""

    @property
    def shape(self) -> torch.Size:
        """Of the change, which is not read for it."""
        ...

    def read(self) -> torch.Tensor:
        """The change, in float32 or better."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """A change that is small enough to be kept: of a bias, of a norm."""

    change: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the change."""
        return self.change.shape

    def read(self) -> torch.Tensor:
        """The change."""
        return self.change


@dataclass(frozen=True, eq=False)
class Combined:
    """sum c_i change_i of one parameter."""

    terms: Sequence[tuple[float, Dense]]

    @property
    def shape(self) -> torch.Size:
        """Of every term."""
        return self.terms[0][1].shape

    def read(self) -> torch.Tensor:
        """The sum, term by term."""
        (c, first), *rest = self.terms
        total = c * first.read()
        for c, change in rest:
            part = change.read()
            total = total.to(torch.promote_types(total.dtype, part.dtype)).add(part.to(total.device), alpha=c)
        return total
