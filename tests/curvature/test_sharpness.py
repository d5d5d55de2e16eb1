"""Sharpness of quadratics, in closed form, and the guards where it means nothing."""

import numpy as np
import pytest
import torch

from llm_forgetting.curvature.sharpness import average_case, critical_sharpness, worst_case

H = torch.diag(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64))
G = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def loss(offset: torch.Tensor) -> float:
    return float(1.7 + G @ offset + offset @ H @ offset / 2)


def gradient(offset: torch.Tensor) -> torch.Tensor:
    return G + H @ offset


def test_one_step_goes_along_the_gradient() -> None:
    found = worst_case(loss, gradient, G, 0.1, 0)
    step = 0.1 * G / G.norm()
    assert found.one_step == found.ascent == pytest.approx(loss(step) - 1.7)


@pytest.mark.parametrize("radius", [0.05, 1.0, 10.0])
def test_ascent_finds_the_highest_point_of_the_ball(radius: float) -> None:
    """On the sphere of a convex quadratic: (mu - H) e = g with mu > 4, |e| = radius."""
    low, high = 4.0, 1e4
    for _ in range(200):
        mu = (low + high) / 2
        e = torch.linalg.solve(mu * torch.eye(3, dtype=torch.float64) - H, G)
        low, high = (mu, high) if float(e.norm()) > radius else (low, mu)
    found = worst_case(loss, gradient, G, radius, 40)
    assert found.ascent == pytest.approx(loss(e) - 1.7, rel=1e-6)
    assert found.one_step <= found.ascent * (1 + 1e-12)


def test_average_case_is_a_mean_with_its_error() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    offsets = 0.5 * drawn / drawn.norm(dim=1, keepdim=True)
    found = average_case([loss(e) - 1.7 for e in offsets], 0.5)
    expected = float(H.trace()) / 3 * 0.25 / 2
    assert abs(found.value - expected) < 4 * found.stderr
    assert found.samples == 4000
    assert average_case([1.0], 0.5).stderr == float("inf")


@pytest.mark.parametrize("u", [G, torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64), 1e-3 * G])
def test_critical_sharpness_of_a_quadratic(u: torch.Tensor) -> None:
    """L(theta - eta u) = L at eta = 2 g.u / u.Hu: 2 / eta is u.Hu / g.u, for the loss's own gradient a Rayleigh quotient."""
    slope, curvature = float(G @ u), float(u @ H @ u)
    found = critical_sharpness(loss, u, slope, curvature)
    assert found.value == pytest.approx(curvature / slope, rel=0.02)
    assert found.step == pytest.approx(2 * slope / curvature, rel=0.02)
    assert found.slope == pytest.approx(slope / float(u.norm()))
    assert found.curvature == pytest.approx(curvature / float(u.norm()) ** 2)


def test_a_step_that_is_far_too_long_at_first_is_shortened() -> None:
    found = critical_sharpness(lambda e: loss(e) + 1e4 * float(e @ e) ** 2, G, float(G @ G), float(G @ H @ G))
    assert found.step is not None
    eta = found.step
    rise = [loss(-x * G) + 1e4 * float((x * G) @ (x * G)) ** 2 - 1.7 for x in (0.98 * eta, 1.02 * eta)]
    assert rise[0] < 0 < rise[1]


def test_the_loss_that_rises_at_once_has_no_critical_step() -> None:
    found = critical_sharpness(loss, -G, -float(G @ G), float(G @ H @ G))
    assert found.value is None
    assert found.slope < 0
    assert found.curvature == pytest.approx(float(G @ H @ G / (G @ G)))


def test_a_loss_that_never_comes_back_has_none_either() -> None:
    found = critical_sharpness(lambda e: float(G @ e), G, float(G @ G), 0.0)
    assert found.value is None
    assert found.longest > 1e6


def test_a_loss_that_is_not_finite_is_above_its_start() -> None:
    found = critical_sharpness(
        lambda e: loss(e) if float(e.norm()) < 0.1 else float("nan"), G, float(G @ G), float(G @ H @ G)
    )
    assert found.step == pytest.approx(0.1 / float(G.norm()), rel=0.02)


def test_no_gradient_no_sharpness() -> None:
    assert critical_sharpness(loss, 0 * G, 0.0, 0.0).value is None
    assert np.isfinite(worst_case(loss, gradient, 0 * G, 0.1, 0).one_step)
