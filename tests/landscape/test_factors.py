"""Steps of the factors and updates of the weights hold the same tensors and are different vectors."""

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch

from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(seed: int) -> dict[str, Factors]:
    return {
        "q": Factors(draw(5, 2, seed=seed), draw(2, 4, seed=seed + 1)),
        "v": Factors(draw(3, 1, seed=seed + 2), draw(1, 6, seed=seed + 3)),
    }


STEPS = [FactorStep(make(seed)) for seed in (0, 10)]
UPDATES = [WeightUpdate(make(seed)) for seed in (0, 10)]


def entries(parts: Mapping[str, Factors]) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for pair in parts.values() for part in (pair.B, pair.A)])


def weights(update: Mapping[str, Factors]) -> torch.Tensor:
    return torch.cat([(pair.B @ pair.A).reshape(-1) for pair in update.values()])


def test_steps_are_vectors_of_all_entries_of_both_factors() -> None:
    x, y = (entries(step.factors) for step in STEPS)
    assert STEPS[0].inner(STEPS[1]) == pytest.approx(float(x @ y), rel=1e-12)
    assert STEPS[0].norm() == pytest.approx(float(x.norm()), rel=1e-12)
    torch.testing.assert_close(
        entries(FactorStep.combine([(2.0, STEPS[0]), (-0.5, STEPS[1])]).factors), 2 * x - 0.5 * y
    )


def test_an_update_is_moved_by_steps_of_its_factors() -> None:
    moved = UPDATES[0].moved([(0.5, STEPS[1]), (0.0, STEPS[0])])
    torch.testing.assert_close(entries(moved), entries(UPDATES[0]) + 0.5 * entries(STEPS[1].factors))
    assert UPDATES[0].moved([(0.0, STEPS[1])]) is UPDATES[0]


def test_zero_is_of_rank_one() -> None:
    zero = WeightUpdate.zero(UPDATES[0])
    assert not weights(zero).any()
    assert [pair.A.shape for pair in zero.values()] == [(1, 4), (1, 6)]
    assert UPDATES[0].inner(zero) == 0


SWAPS: list[Callable[[], object]] = [
    lambda: STEPS[0].inner(UPDATES[0]),  # type: ignore[arg-type]
    lambda: UPDATES[0].inner(STEPS[0]),  # type: ignore[arg-type]
    lambda: UPDATES[0].inner(make(0)),  # type: ignore[arg-type]
    lambda: FactorStep.combine([(1.0, STEPS[0]), (1.0, UPDATES[0])]),  # type: ignore[list-item]
    lambda: WeightUpdate.combine([(1.0, UPDATES[0]), (1.0, STEPS[0])]),  # type: ignore[list-item]
    lambda: UPDATES[0].moved([(1.0, UPDATES[1])]),  # type: ignore[list-item]
    lambda: CheckpointPlane(UPDATES[0], UPDATES[1], STEPS[0]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("swap", SWAPS)
def test_one_geometry_does_not_take_the_vectors_of_the_other(swap: Callable[[], object]) -> None:
    """Every `type: ignore` above is one that mypy, strict, asks for."""
    with pytest.raises(TypeError, match="is needed, was"):
        swap()


def test_neither_can_be_written_to_and_both_can_be_copied() -> None:
    with pytest.raises(TypeError):
        UPDATES[0]["q"] = UPDATES[1]["q"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        STEPS[0].factors = {}  # type: ignore[misc]
    for copied in (copy.deepcopy(UPDATES[0]), pickle.loads(pickle.dumps(UPDATES[0]))):
        assert torch.equal(entries(copied), entries(UPDATES[0]))
