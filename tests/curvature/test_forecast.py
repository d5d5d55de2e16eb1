"""Forecasts of forgetting in closed form."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from llm_forgetting.arrays import mean_stderr
from llm_forgetting.curvature.forecast import (
    alignment,
    average_rise,
    divergence,
    quadratic,
    quadratic_bound,
    validity,
)
from llm_forgetting.curvature.operators import DirectionalDerivatives
from llm_forgetting.curvature.results import Trace

ALONG = DirectionalDerivatives(loss=0.28, slope=-0.465, curvature=4.41)


def test_the_reference_run() -> None:
    assert ALONG.second_order == pytest.approx(1.74)


def test_the_quadratic_along_the_path() -> None:
    assert quadratic(ALONG, np.array([0.0, 0.5, 1.0])) == pytest.approx([0.28, 0.28 - 0.2325 + 0.55125, 0.28 + 1.74])


def test_the_forecast_holds_until_it_is_off_by_more_than_the_tolerance() -> None:
    steps = np.linspace(0, 1, 101)
    true = quadratic(ALONG, steps) + steps**3
    assert validity(steps, true, ALONG, 0.1).fraction == pytest.approx(0.47)  # 0.1^(1/3) = 0.464
    assert validity(steps, true, ALONG, 1.5).fraction == 1.0


def test_the_bound_of_a_quadratic_is_met_along_its_steepest_direction() -> None:
    """Mirzadeh et al.'s bound is 1/2 lambda |D|^2; gauge_toy's numbers: lambda 30.38 and |D| 0.25 give 0.95."""
    assert quadratic_bound(30.4, 0.25) == pytest.approx(0.95)


def test_a_random_step_and_how_much_more_curved_this_one_is() -> None:
    trace = Trace(12.0, 1.0)
    assert average_rise(trace, 6, 2.0) == Trace(4.0, 1 / 3)
    assert alignment(DirectionalDerivatives(0.0, 0.0, 16.0), 2.0, trace, 6) == pytest.approx(2.0)
    assert alignment(DirectionalDerivatives(0.0, 0.0, 16.0), 2.0, Trace(2.9, 1.0), 6) is None
    assert alignment(DirectionalDerivatives(0.0, 0.0, 16.0), 2.0, Trace(-12.0, 1.0), 6) == pytest.approx(-2.0)
    assert alignment(DirectionalDerivatives(0.0, 0.0, 16.0), 0.0, trace, 6) is None


def test_divergence_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = 3 * rng.normal(size=(2, 5, 11))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (first, second))
    found = divergence(first + 7.0, second - 100.0)
    assert found == pytest.approx([entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert divergence(first, first) == pytest.approx(np.zeros(5), abs=1e-15)


def test_mean_and_its_error() -> None:
    assert mean_stderr(np.array([1.0, 3.0])) == (2.0, 1.0)
    assert mean_stderr(np.array([2.0])) == (2.0, math.inf)
