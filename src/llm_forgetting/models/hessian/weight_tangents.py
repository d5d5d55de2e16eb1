"""Directions in the space of one module's weights, and what a tangent pass collects along each kind of them.

They work in the precision `dtype` of the backbone and collect in the precision that they were given in.
"""

import torch

from llm_forgetting.landscape.gauge import Factors


class AdapterTangent:
    """V = dB A + B dA of a step (dB, dA) of the factors; collects gradient and Hessian-vector product in those factors."""

    def __init__(self, factors: Factors, step: Factors, dtype: torch.dtype) -> None:
        self._rank = factors.A.shape[0]
        self._left = torch.cat([step.B, factors.B], dim=1).to(dtype)
        self._right = torch.cat([factors.A, step.A]).to(dtype)
        self._of_B = torch.zeros(factors.B.shape[0], 2 * self._rank).to(factors.B)
        self._of_A = torch.zeros(2 * self._rank, factors.A.shape[1]).to(factors.A)

    def spread(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add V x[0], in the factors, to y[1]."""
        P = x @ self._right.T
        y[1].addmm_(P[0], self._left.T)
        return P

    def collect(self, x: torch.Tensor, grad_y: torch.Tensor, grad_x: torch.Tensor | None, kept: torch.Tensor) -> None:
        """Collect M1 A^T + M0 dA^T and B^T M1 + dB^T M0, with M1, M0 the derivatives of Phi for weight and V."""
        r, P, Q = self._rank, kept, grad_y @ self._left
        if grad_x is not None:
            grad_x[0].addmm_(Q[1], self._right)
        of_A, of_dA = P[0, :, :r], P[1, :, :r] + P[0, :, r:]
        self._of_B += grad_y[1].T @ torch.cat([of_A, of_dA], dim=1)
        self._of_B[:, r:] += grad_y[0].T @ of_A
        of_B, of_dB = Q[1, :, r:], Q[0, :, r:] + Q[1, :, :r]
        self._of_A += torch.cat([of_B, of_dB], dim=1).T @ x[0]
        self._of_A[r:] += of_B.T @ x[1]

    @property
    def gradient(self) -> Factors:
        """Derivatives of the objective for B and A."""
        return Factors(B=self._of_B[:, : self._rank], A=self._of_A[: self._rank])

    @property
    def product(self) -> Factors:
        """The Hessian's product with (dB, dA)."""
        return Factors(B=self._of_B[:, self._rank :], A=self._of_A[self._rank :])


class LowRankTangent:
    """V = B A of any rank; collects <V, H V> and nothing of the size of the weights."""

    def __init__(self, update: Factors, dtype: torch.dtype) -> None:
        self._update = Factors(update.B.to(dtype), update.A.to(dtype))
        self.curvature = update.B.new_zeros((), dtype=torch.float64)

    def spread(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add V x[0], in the factors, to y[1]."""
        P = x @ self._update.A.T
        y[1].addmm_(P[0], self._update.B.T)
        return P

    def collect(self, x: torch.Tensor, grad_y: torch.Tensor, grad_x: torch.Tensor | None, kept: torch.Tensor) -> None:
        """Collect the number, which stays on the device, from products of rank r."""
        Q = grad_y @ self._update.B
        if grad_x is not None:
            grad_x[0].addmm_(Q[1], self._update.A)
        self.curvature += (Q * kept).sum(dtype=torch.float64)


class DenseTangent:
    """Any V (d_out, d_in); collects H V, of the same size."""

    def __init__(self, direction: torch.Tensor, dtype: torch.dtype) -> None:
        self._direction = direction.to(dtype)
        self.product = torch.zeros_like(direction)

    def spread(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add V x[0] to y[1]."""
        y[1].addmm_(x[0], self._direction.T)

    def collect(self, x: torch.Tensor, grad_y: torch.Tensor, grad_x: torch.Tensor | None, kept: None) -> None:
        """Collect H V in place."""
        back = grad_y[1] @ self._direction
        if grad_x is not None:
            grad_x[0] += back
        if self.product.dtype == x.dtype:
            self.product.addmm_(grad_y.flatten(0, 1).T, x.flatten(0, 1))
        else:
            self.product += grad_y.flatten(0, 1).T @ x.flatten(0, 1)
