"""Axes on which one number far from the rest does not squeeze the rest into a line."""

import numpy as np
import pytest

from llm_forgetting.report.figures.axis_scale import Stretch, stretch_for

ORDINARY = np.linspace(0.5, 3.0, 40)


def test_ordinary_numbers_stay_linear():
    assert stretch_for(ORDINARY) == Stretch()
    assert stretch_for(np.random.default_rng(0).normal(size=200)).kind == "linear"
    assert stretch_for(np.array([1.0, 2.0, 1e6])).kind == "linear"  # too few to say what is usual
    assert stretch_for(np.ones(20)).kind == "linear"
    assert stretch_for(np.array([])).kind == "linear"


def test_one_number_far_away_makes_it_logarithmic_or_asinh():
    assert stretch_for(np.append(ORDINARY, 948.0)).kind == "log"
    stretch = stretch_for(np.append(ORDINARY, -844.0))
    assert stretch.kind == "asinh"
    assert stretch.width == pytest.approx(1.75, abs=0.1)
    assert stretch_for(np.append(ORDINARY, 948.0), -ORDINARY).kind == "asinh"  # one axis for both


def test_asinh_keeps_the_order_and_the_room_of_the_rest():
    values = np.append(ORDINARY, -844.0)
    placed = stretch_for(values).place(values)
    assert (np.diff(placed[:-1]) > 0).all()
    assert np.ptp(placed[:-1]) / np.ptp(placed) > 0.1 > np.ptp(ORDINARY) / np.ptp(values)


def test_ticks_are_round_apart_and_within():
    values = np.append(ORDINARY, -844.0)
    stretch = stretch_for(values)
    ticks = stretch.ticks(values)
    assert {0.0} < set(ticks)
    assert all(f"{abs(tick):e}"[0] in "0125" for tick in ticks)
    places = stretch.place(np.array(ticks))
    assert np.diff(places).min() >= np.ptp(stretch.place(values)) / 8 - 1e-12
    assert -8440 < min(ticks) <= -100
    assert 4 <= len(ticks) <= 10
