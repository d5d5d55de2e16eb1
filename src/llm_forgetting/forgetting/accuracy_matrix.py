"""Forgetting and transfer as functions of the accuracy matrix R[i, j] alone; inputs are never changed.

R has shape (T + 1, T): row i is the model after task i (row 0 the base model), column j - 1 is task j. Where the base row
has no part in the formula, `base_row=False` takes the (T, T) matrix without it.
"""

import numpy as np
from numpy.typing import NDArray

_Matrix = NDArray[np.float64]


def average_accuracy(R: _Matrix) -> float:
    """mean_j R[T, j] for R of shape (T + 1, T), or (T, T) without the base row."""
    return float(np.mean(np.asarray(R)[-1]))


def learning(R: _Matrix) -> _Matrix:
    """R[j, j] - R[0, j] for every task j, shape (T,), from R of shape (T + 1, T) with the base row."""
    matrix = _require_shape(R, base_row=True)
    gained: _Matrix = np.diagonal(matrix[1:]) - matrix[0]
    return gained


def absolute_forgetting(R: _Matrix, *, base_row: bool = True) -> _Matrix:
    """R[j, j] - R[T, j] for every task j < T, shape (T - 1,); positive = forgotten.

    R has shape (T + 1, T) with the base row first, or (T, T) with `base_row=False`; ValueError otherwise.
    """
    after = _after_tasks(R, base_row)
    lost: _Matrix = (np.diagonal(after) - after[-1])[:-1]
    return lost


def backward_transfer(R: _Matrix, *, base_row: bool = True) -> float:
    """mean_{j<T} (R[T, j] - R[j, j]), Lopez-Paz & Ranzato 2017. R as in `absolute_forgetting`, T >= 2."""
    _require_two_tasks(R)
    return 0.0 - float(np.mean(absolute_forgetting(R, base_row=base_row)))


def forgetting_measure(R: _Matrix, *, base_row: bool = True) -> float:
    """mean_{j<T} (max_{1<=l<T} R[l, j] - R[T, j]), Chaudhry et al. 2018. R as in `absolute_forgetting`, T >= 2.

    The maximum runs over all checkpoints after fine-tuning but the last, so the value can be negative. Where R is lower
    triangular, all above its diagonal NaN, it runs over those that were measured, j <= l < T.
    """
    after = _after_tasks(R, base_row)
    _require_two_tasks(R)
    candidates = after[:-1].copy()
    above = np.triu_indices_from(candidates, 1)
    if np.isnan(candidates[above]).all():
        candidates[above] = -np.inf
    return float(np.mean((candidates.max(axis=0) - after[-1])[:-1]))


def forward_transfer(R: _Matrix) -> float:
    """mean_{j>1} (R[j-1, j] - R[0, j]) for R of shape (T + 1, T) with the base row, T >= 2."""
    matrix = _require_shape(R, base_row=True)
    _require_two_tasks(R)
    return float(np.mean((np.diagonal(matrix[:-1]) - matrix[0])[1:]))


def _require_shape(R: _Matrix, *, base_row: bool) -> _Matrix:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 1 or matrix.shape[0] != matrix.shape[1] + base_row:
        raise ValueError(f"R must have shape {'(T + 1, T)' if base_row else '(T, T)'}, got {matrix.shape}")
    return matrix


def _after_tasks(R: _Matrix, base_row: bool) -> _Matrix:
    return _require_shape(R, base_row=base_row)[int(base_row) :]


def _require_two_tasks(R: _Matrix) -> None:
    if np.shape(R)[-1] < 2:
        raise ValueError("this measure needs at least two tasks")
