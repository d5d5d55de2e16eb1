"""Smooth functions on a line, square or triangle from few values: polynomial fits at nested points, with a measured error.

In adapter space the logits of every item are smooth along a plane, so their values at a few well-placed points determine
them everywhere. What is fitted are the letter logits and the rest of the vocabulary, not the loss: losses, accuracies and
letter mass follow from them at any resolution, and the loss cannot become negative.

They are fitted by Chebyshev series. A polynomial of total degree n in two variables has (n + 1)(n + 2) / 2 coefficients.
Discrete Leja points (Bos, De Marchi, Sommariva & Vianello 2010) are as many, fit it without wild swings in between (Lebesgue
constants 7, 10, 9, 18, 16 for degrees 4 to 8 on the square), and are nested: the points of degree n begin those of degree
n + 1, so a surface that needs more wastes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray
from scipy.linalg import lu_factor

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.domains import Domain, mesh, random_points
from llm_forgetting.landscape.metrics import RANGE_CAP, rounding
from llm_forgetting.seeding import generator

HIGHEST_DEGREE = 14
FIRST_DEGREE = 4
# Nodes are where errors peak, random points are not: check points are tried when the forecast is within this multiple.
OPTIMISM = 4.0
# The error is expected to fall by no more than 5 and no less than 1 from one degree to the next.
RATES = (0.2, 1.0)


class NotSmoothError(Exception):
    """Values that are not finite: nothing can be fitted, a grid is the way."""


def terms(degree: int, dimensions: int = 2) -> int:
    """Coefficients of a polynomial of total degree `degree` in one or two variables."""
    return comb(degree + dimensions, dimensions)


def vandermonde(points: Floats, degree: int) -> Floats:
    """(p, terms) Chebyshev polynomials T_i(x) or products T_i(x) T_j(y), i + j <= degree, at `points` (p, 1 or 2) in [-1, 1]^d.

    Ordered by total degree, so that the first `terms(n)` columns are those of degree n.

    Returns:
        (p, terms) values of the basis.
    """
    if points.shape[1] == 1:
        return np.asarray(chebvander(points[:, 0], degree))
    x, y = (chebvander(points[:, axis], degree) for axis in (0, 1))
    pairs = [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]
    return np.stack([x[:, i] * y[:, j] for i, j in pairs], axis=1)


@lru_cache(maxsize=4)
def leja_points(shape: str = "square") -> Floats:
    """(terms(14), d) nested points of a reference region; the first `terms(n)` determine the polynomials of degree n.

    Row pivots of an LU factorisation of the Vandermonde matrix on a fine mesh of the region (Chebyshev's on segment and
    square, so that the centre is the first of them).

    Returns:
        (terms(14), d) points.
    """
    axis = np.cos(np.pi * np.arange(61) / 60)
    if shape == "square":
        points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    else:
        points = axis[:, None] if shape == "segment" else mesh(shape, 61)
    points = np.round(points[np.argsort(np.abs(points).max(axis=1), kind="stable")], 12) + 0.0
    order = np.arange(len(points))
    _, pivots = lu_factor(vandermonde(points, HIGHEST_DEGREE))
    for row, pivot in enumerate(pivots):
        order[[row, pivot]] = order[[pivot, row]]
    chosen = np.asarray(points[order[: terms(HIGHEST_DEGREE, points.shape[1])]])
    chosen.setflags(write=False)
    return chosen


@dataclass(frozen=True)
class Fit:
    """Polynomials of one total degree for m functions on `domain`: `coefficients` (terms, m) in the Chebyshev basis.

    Functions that are -inf at every node (the surplus letters of an item with fewer options) stay -inf everywhere.
    """

    domain: Domain
    degree: int
    coefficients: Floats
    absent: np.ndarray

    def __call__(self, points: Floats) -> Floats:
        """(p, m) values at `points` (p, 2) of the domain."""
        values = vandermonde(self.domain.unit(points), self.degree) @ self.coefficients
        values[:, self.absent] = -np.inf
        return np.asarray(values)

    def of(self, columns: NDArray[np.intp]) -> "Fit":
        """The fit of some of the functions, by their numbers."""
        return replace(self, coefficients=self.coefficients[:, columns], absent=self.absent[columns])


def fit(domain: Domain, points: Floats, values: Floats, degree: int) -> Fit:
    """Fit values (p, m) at points (p, 2); exact interpolation where p = terms(degree), least squares where p is larger.

    Returns:
        The fit of total degree `degree`.

    Raises:
        ValueError: There are fewer points than coefficients.
        NotSmoothError: A value is not finite.
    """
    needed = terms(degree, points.shape[1])
    if len(points) < needed:
        raise ValueError(f"degree {degree} needs {needed} points, has {len(points)}")
    absent = np.asarray(np.isneginf(values).all(axis=0))
    usable = np.where(absent, 0.0, values)
    if not np.isfinite(usable).all():
        raise NotSmoothError(f"{int((~np.isfinite(usable)).any(axis=1).sum())} of {len(points)} points are not finite")
    coefficients, *_ = np.linalg.lstsq(vandermonde(domain.unit(points), degree), usable, rcond=None)
    return Fit(domain, degree, np.asarray(coefficients, dtype=np.float64), absent)


@dataclass(frozen=True)
class Rule:
    """When a fit is good enough: its largest error at `checks` fresh random points is at most `tolerance` x min(range, 2 nats).

    At most `budget` evaluations are spent, check points included. No degree below `first_degree` is tried.
    """

    tolerance: float = 0.01
    checks: int = 8
    budget: int = 64
    seed: int = 0
    first_degree: int = FIRST_DEGREE


@dataclass(frozen=True)
class SpectralSurface:
    """A fit with its measured error.

    `error` (K,) is the largest error of every loss (nats) where the fit had not seen the loss: at the check points, and at
    earlier ones, which have become data, by the fit to all others but each one;
    `previous` is the fit one degree lower, to the same data: its difference from `fit` is the error of derivatives.
    `points` (p, 2) and `values` (p, m) are all evaluations: nodes, earlier check points, and as the last `checks` of them the
    check points behind `error`. `ranges` (K,) are the losses' ranges over the domain.
    """

    fit: Fit
    previous: Fit
    points: Floats
    values: Floats
    checks: int
    error: Floats
    ranges: Floats
    converged: bool

    @property
    def evaluations(self) -> int:
        """Points at which the functions were evaluated."""
        return len(self.points)

    @property
    def relative_error(self) -> Floats:
        """(K,) error over min(range, 2 nats); 0 for a loss whose range is within the rounding of the values."""
        return _relative(self.error, self.ranges, rounding(self.values))


def fit_surface(
    evaluate: Callable[[Floats], Floats], losses: Callable[[Floats], Floats], domain: Domain, rule: Rule
) -> SpectralSurface:
    """Raise the degree until the measured error is within the rule, or the budget is spent.

    `evaluate` maps points (p, 2) to values (p, m) of the smooth functions, `losses` values (q, m) to the K losses (q, K)
    whose error counts. Evaluations go to nodes as long as the fit of the degree before, extrapolated at the rate at which
    errors fell so far, promises no success; then `checks` fresh random points are tried, and if they say no they become
    data like all others. From then on earlier check points, each left out in turn, count as much: where eight points found an
    error once, another eight may just have missed it. A value that is not finite raises NotSmoothError.

    Returns:
        The fit with its measured error.

    Raises:
        ValueError: The budget is too small for any fit.
    """
    design, everywhere = domain.place(leja_points(domain.shape)), domain.place(mesh(domain.shape, 33))

    def size(degree: int) -> int:
        return terms(degree, design.shape[1])

    degree, attempt = rule.first_degree, 0
    if size(degree) + rule.checks > rule.budget:
        raise ValueError(f"at least {size(degree) + rule.checks} evaluations are needed, may be {rule.budget}")
    surface: SpectralSurface | None = None
    nodes, values = design[: size(degree)], evaluate(design[: size(degree)])
    tried, tried_values = nodes[:0], values[:0]
    while True:
        affordable = degree < HIGHEST_DEGREE and size(degree + 1) + len(tried) + rule.checks <= rule.budget
        failed = surface is not None and surface.fit.degree == degree
        if affordable and (failed or _forecast(domain, degree, nodes, values, losses) > OPTIMISM * rule.tolerance):
            degree += 1
            fresh = design[len(nodes) : size(degree)]
            nodes, values = np.concatenate([nodes, fresh]), np.concatenate([values, evaluate(fresh)])
            continue
        if surface is not None and failed:
            return surface
        data, data_values = np.concatenate([nodes, tried]), np.concatenate([values, tried_values])
        fitted = fit(domain, data, data_values, degree)
        checks = domain.place(random_points(domain.shape, generator(rule.seed, "check points", attempt), rule.checks))
        measured = evaluate(checks)
        truth = _finite(losses(measured))
        fresh_error = np.abs(losses(fitted(checks)) - truth).max(axis=0)
        error = np.maximum(fresh_error, _left_out(fitted, data, data_values, len(tried), losses))
        ranges = np.ptp(np.concatenate([losses(data_values), truth, losses(fitted(everywhere))]), axis=0)
        surface = SpectralSurface(
            fit=fitted,
            previous=fit(domain, data, data_values, degree - 1),
            points=np.concatenate([data, checks]),
            values=np.concatenate([data_values, measured]),
            checks=rule.checks,
            error=error,
            ranges=ranges,
            converged=False,
        )
        if (surface.relative_error <= rule.tolerance).all():
            return replace(surface, converged=True)
        tried, tried_values = np.concatenate([tried, checks]), np.concatenate([tried_values, measured])
        attempt += 1


def _left_out(fitted: Fit, points: Floats, values: Floats, last: int, losses: Callable[[Floats], Floats]) -> Floats:
    """(K,) largest error of every loss at the `last` of `points`, each predicted by the fit to all others."""
    if not last:
        return np.zeros(losses(values).shape[1])
    basis, _ = np.linalg.qr(vandermonde(fitted.domain.unit(points), fitted.degree))
    leverage = (basis[-last:] ** 2).sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        predicted = (fitted(points[-last:]) - leverage * values[-last:]) / (1 - leverage)
    predicted[:, fitted.absent] = -np.inf
    return np.asarray(np.abs(losses(predicted) - losses(values[-last:])).max(axis=0))


def _forecast(domain: Domain, degree: int, nodes: Floats, values: Floats, losses: Callable[[Floats], Floats]) -> float:
    """Relative error to expect of the fit of `degree` to its nodes.

    The fits of the two degrees before are held against the nodes that their successors added; the error is taken to fall
    once more at the same rate.

    Returns:
        The largest over the losses, a share of min(range, 2 nats).
    """
    truth = _finite(losses(values))
    errors = []
    for lower in (degree - 2, degree - 1):
        own, reach = (terms(d, nodes.shape[1]) for d in (lower, lower + 1))
        predicted = losses(fit(domain, nodes[:own], values[:own], lower)(nodes[own:reach]))
        error, ranges = np.abs(predicted - truth[own:reach]).max(axis=0), np.ptp(truth, axis=0)
        errors.append(float(_relative(error, ranges, rounding(values)).max()))
    return errors[1] * float(np.clip(errors[1] / errors[0], *RATES)) if errors[0] > 0 else errors[1]


def _finite(losses: Floats) -> Floats:
    broken = ~np.isfinite(losses).all(axis=1)
    if broken.any():
        raise NotSmoothError(f"{int(broken.sum())} of {len(losses)} points are not finite")
    return losses


def _relative(error: Floats, ranges: Floats, flat_below: float) -> Floats:
    flat = (ranges < flat_below) | (ranges == 0)
    return np.asarray(np.where(flat, 0.0, error / np.where(flat, 1.0, np.minimum(ranges, RANGE_CAP))))
