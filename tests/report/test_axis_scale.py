"""Axes on which one number far from the rest does not squeeze the rest into a line."""

import numpy as np
import pytest

from llm_forgetting.report.views.axis_scale import AxisScale, choose_scale

ORDINARY = np.linspace(0.5, 3.0, 40)


def test_ordinary_numbers_stay_linear():
    assert choose_scale(ORDINARY) == AxisScale()
    assert choose_scale(np.random.default_rng(0).normal(size=200)).kind == "linear"
    assert choose_scale(np.array([1.0, 2.0, 1e6])).kind == "linear"  # too few to say what is usual
    assert choose_scale(np.ones(20)).kind == "linear"
    assert choose_scale(np.array([])).kind == "linear"


def test_one_number_far_away_makes_it_logarithmic_or_asinh():
    assert choose_scale(np.append(ORDINARY, 948.0)).kind == "log"
    scale = choose_scale(np.append(ORDINARY, -844.0))
    assert scale.kind == "asinh"
    assert scale.width == pytest.approx(1.75, abs=0.1)
    assert choose_scale(np.append(ORDINARY, 948.0), -ORDINARY).kind == "asinh"  # one axis for both


def test_asinh_keeps_the_order_and_the_room_of_the_rest():
    values = np.append(ORDINARY, -844.0)
    placed = choose_scale(values).place(values)
    assert (np.diff(placed[:-1]) > 0).all()
    assert np.ptp(placed[:-1]) / np.ptp(placed) > 0.1 > np.ptp(ORDINARY) / np.ptp(values)


def test_ticks_are_round_apart_and_within():
    values = np.append(ORDINARY, -844.0)
    scale = choose_scale(values)
    ticks = scale.ticks(values)
    assert {0.0} < set(ticks)
    assert all(f"{abs(tick):e}"[0] in "0125" for tick in ticks)
    places = scale.place(np.array(ticks))
    assert np.diff(places).min() >= np.ptp(scale.place(values)) / 8 - 1e-12
    assert -8440 < min(ticks) <= -100
    assert 4 <= len(ticks) <= 10
