"""Symmetric operators that are known by their products with vectors, and what derivatives say along one direction."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from llm_forgetting.landscape.gauge import numbers


class SupportsProducts(Protocol):
    """A symmetric operator, or a plain symmetric matrix."""

    def __matmul__(self, vector: torch.Tensor, /) -> torch.Tensor: ...


class SymmetricOperator(ABC):
    """A symmetric matrix H (n, n) of which only products `H @ v` are known.

    Attributes:
        shape: (n, n).
        dtype: Of vectors and products.
        device: Of vectors and products.
        blocks: Named parts of a vector: the slices of each.
        products: Number of products so far.
    """

    def __init__(
        self,
        dimension: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        blocks: Mapping[str, Sequence[slice]] | None = None,
    ) -> None:
        self.shape = (dimension, dimension)
        self.dtype, self.device = dtype, device
        self.blocks: Mapping[str, Sequence[slice]] = blocks or {}
        self.products = 0

    def __matmul__(self, vector: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self._product(vector)

    @abstractmethod
    def _product(self, vector: torch.Tensor) -> torch.Tensor:
        """H v, (n,)."""

    def to_scipy(self) -> LinearOperator:
        """The operator for scipy (`eigsh`) and what is built on it (curvlinops' estimators).

        Returns:
            A linear operator of the same shape on numpy vectors: float64 where the products are, else float32.
        """
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

        def product(vector: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(self.device, self.dtype)
            return (self @ v).to("cpu", dtype).numpy()

        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, dtype=torch.empty(0, dtype=dtype).numpy().dtype
        )


class LossOperator(SymmetricOperator):
    """The Hessian of a loss at a point, with the gradient there."""

    @abstractmethod
    def gradient(self) -> torch.Tensor:
        """g, (n,)."""


@dataclass(frozen=True)
class DirectionalDerivatives:
    """Derivatives along a direction v at theta: `loss` f (nats), `slope` g.v and `curvature` v.Hv.

    `curvature_error` is the error of v.Hv where it comes from differences; None: it is exact but for rounding.
    """

    loss: float
    slope: float
    curvature: float
    curvature_error: float | None = None

    @property
    def second_order(self) -> float:
        """Change of the loss to second order over the whole of v: g.v + v.Hv / 2."""
        return self.slope + self.curvature / 2


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """Inner product of two tensors of one shape, summed in float64."""
    return float((x.double() * y.double()).sum())


class Weights(dict[str, torch.Tensor]):
    """Dense matrices (d_out, d_in) by module, as one vector."""

    def inner(self, other: "Weights") -> float:
        """Frobenius product over all modules, summed in float64."""
        return sum(numbers((part * other[name]).sum(dtype=torch.float64) for name, part in self.items()))

    def norm(self) -> float:
        """Frobenius norm over all modules."""
        return math.sqrt(self.inner(self))

    @classmethod
    def combine(cls, terms: Sequence[tuple[float, "Weights"]]) -> "Weights":
        """sum c_i V_i, in one copy."""
        total = cls(terms[0][1])
        total.become(terms)
        return total

    def become(self, terms: Sequence[tuple[float, "Weights"]]) -> None:
        """Take the value of sum c_i V_i, module by module: where this is one of the V_i, no second copy of it is made."""
        (first, x), *others = terms
        for name in self:
            part = first * x[name]
            for c, y in others:
                part.add_(y[name], alpha=c)
            self[name] = part
