"""Steps of an adapter as flat vectors, and random ones of the merged weights."""

from collections.abc import Mapping

import torch

from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.seeding import derive_seed


class Coordinates:
    """The order in which the factors of all modules stand in one vector: module by module, B before A."""

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        self._shapes = {name: (pair.B.shape, pair.A.shape) for name, pair in factors.items()}
        self.blocks: dict[str, list[slice]] = {}
        end = 0
        for name, shapes in self._shapes.items():
            start, end = end, end + sum(shape.numel() for shape in shapes)
            self.blocks[name] = [slice(start, end)]
        self.dimension = end

    def vector(self, step: FactorStep) -> torch.Tensor:
        """The step as a vector (dimension,)."""
        return torch.cat([part.reshape(-1) for name in self._shapes for part in (step[name].B, step[name].A)])

    def step(self, vector: torch.Tensor) -> FactorStep:
        """The factors that `vector` holds; views of it."""
        factors: dict[str, Factors] = {}
        for name, (of_B, of_A) in self._shapes.items():
            block = vector[self.blocks[name][0]]
            factors[name] = Factors(block[: of_B.numel()].view(of_B), block[of_B.numel() :].view(of_A))
        return FactorStep(factors)


def moved(factors: WeightUpdate, step: FactorStep) -> WeightUpdate:
    """Both factors of every module, moved by a step."""
    return WeightUpdate({name: Factors(pair.B + step[name].B, pair.A + step[name].A) for name, pair in factors.items()})


def random_update(like: Mapping[str, Factors], seed: int, number: int, rank: int) -> WeightUpdate:
    """A direction V of the merged weights with E vec(V) vec(V)^T = 1, as factors of low rank: independent signs / sqrt(rank).

    <V, H V> is then an unbiased estimate of tr H that stores nothing of the size of the weights; the lower the rank, the larger
    its variance.
    """
    update = {}
    for name, pair in like.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "weight probe", number, name))

        def signs(rows: int, columns: int, generator: torch.Generator = generator) -> torch.Tensor:
            return 2.0 * torch.randint(2, (rows, columns), generator=generator) - 1.0

        B, A = signs(pair.B.shape[0], rank), signs(rank, pair.A.shape[1])
        update[name] = Factors((B / rank**0.5).to(pair.B), A.to(pair.A))
    return WeightUpdate(update)
