"""The learning-forgetting frontier against hand-worked polygons, dense quadrature, and a known truth."""

import numpy as np
import pytest

from llm_forgetting.forgetting.frontier import Frontier, frontier, matched_forgetting


def polygon(*points: tuple[float, float]) -> Frontier:
    learning, forgetting = np.array(points).T
    return Frontier(learning, forgetting)


STRAIGHT = polygon((0, 0), (0.4, 0.2), (0.8, 0.6))


def test_scores_become_learning_and_forgetting() -> None:
    """Accuracy of the new task 0, 1/2, 1 and of the old one 1, 1, 1/2."""
    new = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    old = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    measured = frontier(new, old)
    np.testing.assert_array_equal(measured.learning, [0, 0.5, 1])
    np.testing.assert_array_equal(measured.forgetting, [0, 0, 0.5])
    assert float(measured.reached) == 1


def test_forgetting_at_matched_learning_is_read_off_the_polygon() -> None:
    assert float(STRAIGHT.forgetting_at(0.0)) == 0
    assert float(STRAIGHT.forgetting_at(0.2)) == pytest.approx(0.1)
    assert float(STRAIGHT.forgetting_at(0.6)) == pytest.approx(0.4)
    assert float(STRAIGHT.forgetting_at(0.8)) == pytest.approx(0.6)
    assert np.isnan(STRAIGHT.forgetting_at(0.81))


def test_where_learning_goes_back_the_first_time_counts() -> None:
    there_and_back = polygon((0, 0), (0.5, 0.1), (0.3, 0.9), (0.7, 0.5))
    assert float(there_and_back.forgetting_at(0.4)) == pytest.approx(0.08)
    assert float(there_and_back.forgetting_at(0.6)) == pytest.approx(0.9 - 0.4 * 0.75)
    unlearning = polygon((0, 0), (-0.2, 0.3), (0.2, 0.5))
    assert float(unlearning.forgetting_at(0.1)) == pytest.approx(0.3 + 0.2 * 0.75)


@pytest.mark.parametrize(
    "measured",
    [
        STRAIGHT,
        polygon((0, 0), (0.5, 0.1), (0.3, 0.9), (0.7, 0.5)),
        polygon((0, 0), (-0.2, 0.3), (0.2, 0.5), (0.9, -0.1)),
    ],
)
@pytest.mark.parametrize("learning", [0.15, 0.45, 0.65])
def test_the_area_is_the_mean_of_forgetting_up_to_there(measured: Frontier, learning: float) -> None:
    """Midpoints of 2,000 strips."""
    if float(measured.reached) < learning:
        assert np.isnan(measured.area(learning))
        return
    strips = 2_000
    levels = (np.arange(strips) + 0.5) / strips * learning
    dense = np.mean([float(measured.forgetting_at(level)) for level in levels])
    assert float(measured.area(learning)) == pytest.approx(dense, abs=1e-3)


def test_resamples_are_frontiers_of_their_own() -> None:
    many = Frontier(np.stack([STRAIGHT.learning, STRAIGHT.learning / 2]), np.stack([STRAIGHT.forgetting] * 2))
    np.testing.assert_allclose(many.forgetting_at(0.2), [0.1, 0.2])
    np.testing.assert_allclose(many.forgetting_at(0.6), [0.4, np.nan])
    np.testing.assert_allclose(many.area(0.4), [0.1, float(polygon((0, 0), (0.2, 0.2), (0.4, 0.6)).area(0.4))])


def test_the_interval_covers_what_the_items_were_drawn_from() -> None:
    """True curves: learning 0, 0.45, 0.9 and forgetting 0, 0.1, 0.4; at learning 0.6 it is 0.2. 120 trainings of 80 items."""
    covered, truth = 0, 0.2
    for seed in range(120):
        rng = np.random.default_rng(seed)
        new = (rng.random(80) < np.array([[0.05], [0.5], [0.95]])).astype(float)
        old = (rng.random(80) < np.array([[0.9], [0.8], [0.5]])).astype(float)
        result = matched_forgetting(new, old, 0.6, seed=seed)
        assert result is not None
        assert result.interval is not None
        covered += result.interval.low <= truth <= result.interval.high
    assert 0.89 <= covered / 120 <= 0.99


def test_few_items_have_no_interval_and_too_little_learning_no_value() -> None:
    new, old = np.array([[0.0] * 39, [1.0] * 39]), np.array([[1.0] * 39, [0.0] * 39])
    few = matched_forgetting(new, old, 0.5, seed=0)
    assert few is not None
    assert (few.forgetting, few.area, few.interval) == (0.5, 0.25, None)
    assert matched_forgetting(new, old, 1.5, seed=0) is None
    with pytest.raises(ValueError, match="two or more"):
        Frontier(np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="above 0"):
        STRAIGHT.area(0.0)
