"""Sums, products and truncations of updates, and the plane through three of them, against dense matrices."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, regauged
from llm_forgetting.landscape.lowrank import truncated

pytestmark = pytest.mark.usefixtures("one_thread")

Tensor = torch.Tensor
SHAPES = {"first.q_proj": (7, 5), "first.v_proj": (4, 9), "second.q_proj": (6, 6)}
RANKS = {"first.q_proj": 2, "first.v_proj": 3, "second.q_proj": 1}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(seed: int, ranks: Mapping[str, int] = RANKS, size: float = 1.0) -> WeightUpdate:
    return WeightUpdate(
        {
            name: Factors(B=size * draw(rows, ranks[name], seed=seed), A=draw(ranks[name], columns, seed=seed + 1))
            for name, (rows, columns) in SHAPES.items()
        }
    )


def single(update: WeightUpdate) -> WeightUpdate:
    return WeightUpdate({name: Factors(B=pair.B.float(), A=pair.A.float()) for name, pair in update.items()})


def matrices(update: Mapping[str, Factors]) -> dict[str, Tensor]:
    return {name: pair.B.double() @ pair.A.double() for name, pair in update.items()}


def vector(update: Mapping[str, Factors]) -> Tensor:
    return torch.cat([matrix.reshape(-1) for matrix in matrices(update).values()])


# Sums, products, truncations

UPDATES = [make(0), make(10, {**RANKS, "second.q_proj": 4}), make(20, dict.fromkeys(SHAPES, 2))]


@pytest.mark.parametrize(
    "weights", [(1.0, 2.0, -0.5), (0.0, 1.0, 3.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.3, -0.3, 0.0)]
)
def test_combinations_are_exact_sums_of_the_ranks_together(weights: tuple[float, ...]) -> None:
    found = WeightUpdate.combine(list(zip(weights, UPDATES, strict=True)))
    expected = sum((c * vector(update) for c, update in zip(weights, UPDATES, strict=True)), torch.zeros(1))
    torch.testing.assert_close(vector(found), expected, rtol=1e-13, atol=1e-13)
    for name, pair in found.items():
        kept = [u[name].A.shape[0] for n, (c, u) in enumerate(zip(weights, UPDATES, strict=True)) if c or n == 0]
        assert pair.A.shape[0] == pair.B.shape[1] == sum(kept)


def test_products_and_norms_are_those_of_dense_matrices() -> None:
    for x in UPDATES:
        assert x.norm() == pytest.approx(float(vector(x).norm()), rel=1e-12)
        for y in UPDATES:
            assert x.inner(y) == pytest.approx(float(vector(x) @ vector(y)), rel=1e-12)


def test_products_of_single_precision_factors_are_summed_in_double() -> None:
    x, y = (single(update) for update in UPDATES[:2])
    assert x.inner(y) == pytest.approx(float(vector(x) @ vector(y)), rel=1e-13)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_the_norm_of_a_difference_of_near_equals_is_accurate(distance: float) -> None:
    """|x|^2 - 2 <x, y> + |y|^2 would have lost all digits at the last."""
    x = UPDATES[0]
    noise = {name: draw(*pair.B.shape, seed=5) for name, pair in x.items()}
    y = WeightUpdate({name: Factors(B=pair.B + distance * noise[name], A=pair.A) for name, pair in x.items()})
    found = WeightUpdate.combine([(1.0, y), (-1.0, x)]).norm()
    assert found == pytest.approx(float((vector(y) - vector(x)).norm()), rel=1e-7)


@pytest.mark.parametrize(
    "ranks", [{"first.q_proj": 1, "first.v_proj": 2, "second.q_proj": 3}, dict.fromkeys(SHAPES, 2)]
)
def test_truncation_is_the_best_of_its_rank_and_states_its_error(ranks: dict[str, int]) -> None:
    update = WeightUpdate.combine([(1.0, UPDATES[0]), (-0.7, UPDATES[1])])
    found = truncated(update, ranks)
    lost, whole = 0.0, 0.0
    for name, matrix in matrices(update).items():
        U, S, Vh = torch.linalg.svd(matrix)
        k = ranks[name]
        best = U[:, :k] * S[:k] @ Vh[:k]
        pair = found.update[name]
        assert pair.A.shape[0] == pair.B.shape[1] == k
        torch.testing.assert_close(pair.B @ pair.A, best, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(pair.B.T @ pair.B, pair.A @ pair.A.T, rtol=1e-9, atol=1e-10)
        lost, whole = lost + float(S[k:].square().sum()), whole + float(S.square().sum())
    assert found.relative_error == pytest.approx(math.sqrt(lost / whole), rel=1e-9)
    assert found.relative_error == pytest.approx(
        float((vector(found.update) - vector(update)).norm() / vector(update).norm()), rel=1e-9
    )


def test_a_truncation_to_the_own_rank_is_exact() -> None:
    found = truncated(UPDATES[0], RANKS)
    torch.testing.assert_close(vector(found.update), vector(UPDATES[0]), rtol=1e-12, atol=1e-12)
    assert found.relative_error < 1e-12


def test_truncating_nothing_loses_nothing() -> None:
    nothing = WeightUpdate({name: Factors(B=0 * pair.B, A=pair.A) for name, pair in UPDATES[0].items()})
    found = truncated(nothing, dict.fromkeys(SHAPES, 1))
    assert found.relative_error == 0.0
    assert not vector(found.update).any()
    assert nothing.norm() == 0.0


# The plane through three checkpoints


def nothing_like(update: WeightUpdate) -> WeightUpdate:
    return WeightUpdate({name: Factors(B=0 * pair.B[:, :1], A=0 * pair.A[:1]) for name, pair in update.items()})


ORIGINS = {"fresh": nothing_like(UPDATES[1]), "trained": UPDATES[0]}
any_origin = pytest.mark.parametrize("origin", ORIGINS)


def plane_of(origin: str) -> tuple[CheckpointPlane, list[WeightUpdate]]:
    updates = [ORIGINS[origin], UPDATES[1], UPDATES[2]]
    return CheckpointPlane(*updates), updates


def axes_of(plane: CheckpointPlane) -> tuple[Tensor, Tensor, Tensor]:
    """Origin and both axes as dense vectors."""
    start = vector(plane.update(0.0, 0.0))
    return start, vector(plane.update(1.0, 0.0)) - start, vector(plane.update(0.0, 1.0)) - start


@any_origin
def test_corners_are_the_three_checkpoints(origin: str) -> None:
    plane, updates = plane_of(origin)
    for corner, update in zip(plane.corners, updates, strict=True):
        torch.testing.assert_close(vector(plane.update(*corner)), vector(update), rtol=1e-12, atol=1e-12)
    (zero, base, third) = plane.corners
    assert zero == (0.0, 0.0)
    assert base[1] == 0.0
    assert base[0] == pytest.approx(float((vector(updates[1]) - vector(updates[0])).norm()), rel=1e-12)
    assert third[1] > 0


@any_origin
def test_axes_are_orthonormal_over_all_modules_together(origin: str) -> None:
    plane, updates = plane_of(origin)
    start, u, v = axes_of(plane)
    gram = torch.stack([u, v]) @ torch.stack([u, v]).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    to_first = vector(updates[1]) - vector(updates[0])
    torch.testing.assert_close(u, to_first / to_first.norm(), rtol=1e-10, atol=1e-12)
    found = vector(plane.update(-0.4, 2.5))
    torch.testing.assert_close(found, start - 0.4 * u + 2.5 * v, rtol=1e-10, atol=1e-10)


@any_origin
def test_distances_on_the_plane_are_distances_of_the_updates(origin: str) -> None:
    plane, updates = plane_of(origin)
    for i in range(3):
        for j in range(i):
            far = float((vector(updates[i]) - vector(updates[j])).norm())
            assert math.dist(plane.corners[i], plane.corners[j]) == pytest.approx(far, rel=1e-10)


def test_ranks_of_points() -> None:
    """Two ranks together from a fresh adapter (and its one column of zeros), three else."""
    for origin, first in (("fresh", 1), ("trained", 2)):
        plane, _ = plane_of(origin)
        point = plane.update(0.3, 0.8)
        assert point["first.q_proj"].A.shape[0] == first + 2 + 2
        assert point["second.q_proj"].A.shape[0] == 1 + 4 + 2


@any_origin
@pytest.mark.parametrize("seed", [30, 40])
def test_projection_is_dense_least_squares(origin: str, seed: int) -> None:
    plane, _ = plane_of(origin)
    start, u, v = axes_of(plane)
    other = make(seed)
    offset = (vector(other) - start).numpy()
    basis = torch.stack([u, v], dim=1).numpy()
    expected, residual, *_ = np.linalg.lstsq(basis, offset, rcond=None)
    found = plane.project(other)
    assert (found.a, found.b) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.residual == pytest.approx(math.sqrt(residual[0]), rel=1e-9)


@any_origin
def test_a_point_of_the_plane_is_its_own_projection(origin: str) -> None:
    plane, updates = plane_of(origin)
    found = plane.project(plane.update(1.5, -0.7))
    assert (found.a, found.b) == pytest.approx((1.5, -0.7), rel=1e-10)
    size = float(vector(updates[1]).norm())
    assert found.residual < 1e-6 * size
    for corner, update in zip(plane.corners, updates, strict=True):
        image = plane.project(update)
        assert (image.a, image.b) == pytest.approx(corner, abs=1e-9)


def test_the_plane_does_not_depend_on_the_gauge() -> None:
    here, updates = plane_of("trained")
    there = CheckpointPlane(*(WeightUpdate(regauged(update, n)) for n, update in enumerate(updates)))
    torch.testing.assert_close(vector(there.update(0.4, 1.7)), vector(here.update(0.4, 1.7)), rtol=1e-9, atol=1e-9)


def along(x: WeightUpdate, y: WeightUpdate, t: float) -> WeightUpdate:
    return WeightUpdate.combine([(1 - t, x), (t, y)])


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("t", [0.4, 1.0, 2.0, -1.0, 1 + 1e-8])
@any_origin
def test_checkpoints_on_one_line_are_refused(origin: str, t: float, precision: str) -> None:
    x, y = ORIGINS[origin], UPDATES[1]
    three = [x, y, along(x, y, t)]
    with pytest.raises(UserError, match="must not lie on one line"):
        CheckpointPlane(*(single(update) if precision == "single" else update for update in three))


@any_origin
def test_the_first_two_being_one_update_is_refused(origin: str) -> None:
    same = ORIGINS[origin]
    copied = WeightUpdate({name: Factors(B=pair.B.clone(), A=pair.A.clone()) for name, pair in same.items()})
    with pytest.raises(UserError, match="the first two are the same update"):
        CheckpointPlane(same, copied, UPDATES[2])


def test_the_third_being_the_first_is_refused() -> None:
    with pytest.raises(UserError, match="one line"):
        CheckpointPlane(UPDATES[0], UPDATES[1], UPDATES[0])


@pytest.mark.parametrize("case", ["one function in two gauges", "near one another on a line"])
def test_checkpoints_that_differ_by_rounding_are_refused(case: str) -> None:
    x, y = UPDATES[:2]
    if case == "one function in two gauges":
        three = [x, WeightUpdate(regauged(x, 0)), UPDATES[2]]
    else:
        three = [x, WeightUpdate.combine([(1.0, x), (1e-4, y)]), WeightUpdate.combine([(1.0, x), (2e-4, y)])]
    with pytest.raises(UserError, match="must"):
        CheckpointPlane(*map(single, three))
