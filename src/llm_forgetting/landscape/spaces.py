"""Direction spaces: what a random direction is, how long a checkpoint is in it, and what lies at a step along directions."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llm_forgetting.landscape.dense import Dense
from llm_forgetting.landscape.directions import gaussian_chunks, orthogonal_directions, orthogonalised
from llm_forgetting.landscape.factors import WEIGHT, FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import CanonicalAdapter, Factors, adapter_norm
from llm_forgetting.seeding import derive_seed


class Space(Protocol):
    """Coordinates around one checkpoint. A scan passes directions on; only the space reads them."""

    @property
    def norm(self) -> float:
        """|P|: the Frobenius norm of the checkpoint over all modules, in this space's coordinates."""
        ...

    def directions(self, seed: int, count: int, length: float) -> list[Any]:
        """`count` random directions, mutually orthogonal, each of norm `length`."""
        ...

    def point(self, steps: Sequence[tuple[float, Any]]) -> WeightUpdate:
        """The checkpoint moved by sum a_i d_i."""
        ...

    def cosine(self, d: Any, e: Any) -> float:
        """Cosine of two directions."""
        ...


@dataclass(frozen=True)
class AdapterSpace:
    """The adapter's own reachable set, in canonical factors: independent of the gauge (see `directions`)."""

    adapter: CanonicalAdapter
    _known: dict[tuple[int, float], list[FactorStep]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def norm(self) -> float:
        """sqrt(2 sum of singular values)."""
        return adapter_norm(self.adapter)

    def directions(self, seed: int, count: int, length: float) -> list[FactorStep]:
        """Directions drawn from ambient Gaussians, once; UserError where delta W = 0."""
        known = self._known.get((seed, length), [])
        if len(known) < count:
            known = self._known[seed, length] = orthogonal_directions(self.adapter, seed, count, length)
        return known[:count]

    def point(self, steps: Sequence[tuple[float, FactorStep]]) -> WeightUpdate:
        """(B + sum a dB)(A + sum a dA): of the same rank."""
        return WeightUpdate.canonical(self.adapter).moved(steps)

    def cosine(self, d: FactorStep, e: FactorStep) -> float:
        """In the Frobenius product over both factors."""
        return _cosine(d, e)


@dataclass(frozen=True)
class RawSpace:
    """A and B as they were written down, with Gaussian directions: not comparable between gauges, for old papers only."""

    factors: WeightUpdate

    @property
    def norm(self) -> float:
        """Frobenius norm over both factors."""
        return FactorStep(self.factors).norm()

    def directions(self, seed: int, count: int, length: float) -> list[FactorStep]:
        """Independent standard normal entries of A and B, made orthogonal, then rescaled."""

        def draw(index: int) -> FactorStep:
            return FactorStep(
                {
                    name: Factors(
                        *(
                            _normal(part, derive_seed(seed, "raw", index, name, n))
                            for n, part in zip("BA", vars(f).values(), strict=True)
                        )
                    )
                    for name, f in self.factors.items()
                }
            )

        return orthogonalised(map(draw, range(count)), length)

    def point(self, steps: Sequence[tuple[float, FactorStep]]) -> WeightUpdate:
        """A and B moved by sum a (dA, dB)."""
        return self.factors.moved(steps)

    def cosine(self, d: FactorStep, e: FactorStep) -> float:
        """In the Frobenius product over both factors."""
        return _cosine(d, e)


def _normal(like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _cosine(d: FactorStep, e: FactorStep) -> float:
    return d.inner(e) / (d.norm() * e.norm())


@dataclass(frozen=True)
class WeightDirection:
    """A combination of the Gaussians of stream `seed`: only its coefficients, the first of Gaussian number 0."""

    seed: int
    coefficients: tuple[float, ...]


class Gaussians:
    """The `scaled_gaussians` of one checkpoint, drawn once as far as `room` bytes go, and the others at every use."""

    def __init__(self, room: int = 0) -> None:
        self._room = room
        self._kept: dict[tuple[int, str, int], list[tuple[slice, list[torch.Tensor]]]] = {}

    def __reduce__(self) -> tuple[type["Gaussians"], tuple[()]]:
        """A copy elsewhere draws its own."""
        return Gaussians, ()

    def blocks(
        self, seed: int, module: str, indices: Sequence[int], row_norms: torch.Tensor, columns: int
    ) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """What `scaled_gaussians` yields, not to be written into."""
        streams = [self._stream(seed, module, index, row_norms, columns) for index in indices]
        for parts in zip(*streams, strict=True):
            yield parts[0][0], [block for _, (block,) in parts]

    def _stream(
        self, seed: int, module: str, index: int, row_norms: torch.Tensor, columns: int
    ) -> Iterable[tuple[slice, list[torch.Tensor]]]:
        key, size = (seed, module, index), 4 * len(row_norms) * columns
        if key in self._kept:
            return self._kept[key]
        drawn = scaled_gaussians(seed, module, [index], row_norms, columns)
        if size > self._room:
            return drawn
        self._room -= size
        self._kept[key] = list(drawn)
        return self._kept[key]


@dataclass(frozen=True)
class NoisyUpdate(Factors):
    """delta W = B A + noise of one module, which is made anew, some rows at a time, from `gaussians`."""

    row_norms: torch.Tensor
    module: str
    noise: WeightDirection
    gaussians: Gaussians = field(default_factory=Gaussians, repr=False, compare=False)
    columns: int | None = None

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, their noise (rows, d_in)), on the CPU in float32."""
        used = [index for index, weight in enumerate(self.noise.coefficients) if weight]
        columns = self.A.shape[1] if self.columns is None else self.columns
        drawn = self.gaussians.blocks(self.noise.seed, self.module, used, self.row_norms, columns)
        for rows, blocks in drawn:
            total = torch.zeros_like(blocks[0])
            for index, block in zip(used, blocks, strict=True):
                total.add_(block, alpha=self.noise.coefficients[index])
            yield rows, total


@dataclass(frozen=True, eq=False)
class NoisyDense:
    """`change` + noise of one parameter of two or more dimensions, which counts as a matrix of its first times all others."""

    change: Dense
    row_norms: torch.Tensor
    module: str
    noise: WeightDirection
    gaussians: Gaussians

    @property
    def shape(self) -> torch.Size:
        """Of the change."""
        return self.change.shape

    def read(self) -> torch.Tensor:
        """The change with its noise."""
        total = self.change.read().clone()
        rows = total.view(len(total), -1)
        empty = total.new_zeros(0)
        noisy = NoisyUpdate(empty, empty, self.row_norms, self.module, self.noise, self.gaussians, rows.shape[1])
        for block, noise in noisy.blocks():
            rows[block] += noise.to(rows)
        return total


def scaled_gaussians(
    seed: int, module: str, indices: Sequence[int], row_norms: torch.Tensor, columns: int
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Block by block the Gaussians number `indices` of one module, every row scaled to the norm of the weight's row.

    Streams are named (seed, `weight`, index, module); blocks are of 256 rows.

    Yields:
        Rows of the block, and those rows of every Gaussian (rows, columns), float32 on the CPU.
    """
    streams = [gaussian_chunks(derive_seed(seed, "weight", n, module), len(row_norms), columns) for n in indices]
    for blocks in zip(*streams, strict=True):
        rows = blocks[0][0]
        yield rows, [block.mul_((row_norms[rows] / block.norm(dim=1))[:, None]) for _, block in blocks]


class WeightSpace:
    """The merged weights W' = W + delta W: Gaussian directions with the row norms of W' (filter normalisation, Li et al. 2018).

    `row_norms` (d_out,) per module are those of W', also where a module's weight is changed densely; what is not named there
    (biases, norms) moves with the checkpoint and along no direction. Gaussians are kept as far as `room` bytes go, and drawn
    from their seed whenever they are needed beyond that.
    """

    def __init__(self, factors: WeightUpdate, row_norms: Mapping[str, torch.Tensor], room: int = 0) -> None:
        self._factors = factors
        self._row_norms = {name: norms.float().cpu() for name, norms in row_norms.items()}
        self._gaussians = Gaussians(room)
        self._columns = {name: pair.A.shape[1] for name, pair in factors.items()}
        for parameter, change in factors.dense.items():
            if (name := parameter.removesuffix(WEIGHT)) in self._row_norms and name not in self._columns:
                self._columns[name] = change.shape[1:].numel()

    @property
    def norm(self) -> float:
        """|W'| over all adapted modules."""
        return math.sqrt(sum(float(norms.double().square().sum()) for norms in self._row_norms.values()))

    def _products(self, seed: int, indices: Sequence[int]) -> NDArray[np.float64]:
        gram = np.zeros((len(indices), len(indices)))
        for name, columns in self._columns.items():
            for _, blocks in self._gaussians.blocks(seed, name, indices, self._row_norms[name], columns):
                flat = torch.stack([block.reshape(-1) for block in blocks])
                gram += (flat @ flat.T).double().numpy()
        return gram

    def directions(self, seed: int, count: int, length: float) -> list[WeightDirection]:
        """The first two orthogonal, the others independent draws (which are orthogonal to about 1e-4 anyway)."""
        gram = self._products(seed, range(min(count, 2)))
        # Rows of the inverse Cholesky factor are orthonormal combinations, the k-th of the first k Gaussians.
        plane = np.linalg.inv(np.linalg.cholesky(gram)) * length
        own = self.norm  # of every Gaussian: its rows have the norms of W'
        others = [(*[0.0] * index, length / own) for index in range(2, count)]
        return [WeightDirection(seed, tuple(map(float, row))) for row in [*plane, *others]]

    def point(self, steps: Sequence[tuple[float, WeightDirection]]) -> WeightUpdate:
        """W' moved by sum a_i d_i."""
        moved = [(a, d) for a, d in steps if a != 0]
        if not moved:
            return self._factors
        total = np.zeros(max(len(d.coefficients) for _, d in moved))
        for a, d in moved:
            total[: len(d.coefficients)] += a * np.array(d.coefficients)
        noise = WeightDirection(moved[0][1].seed, tuple(map(float, total)))
        return WeightUpdate(
            {
                name: NoisyUpdate(pair.B, pair.A, self._row_norms[name], name, noise, self._gaussians)
                for name, pair in self._factors.items()
            },
            {parameter: self._noisy(parameter, change, noise) for parameter, change in self._factors.dense.items()},
        )

    def _noisy(self, parameter: str, change: Dense, noise: WeightDirection) -> Dense:
        name = parameter.removesuffix(WEIGHT)
        if name not in self._columns or name in self._factors:  # a factor's noise is already there
            return change
        return NoisyDense(change, self._row_norms[name], name, noise, self._gaussians)

    def cosine(self, d: WeightDirection, e: WeightDirection) -> float:
        """In the Frobenius product over all modules."""
        used = range(max(len(d.coefficients), len(e.coefficients)))
        gram = self._products(d.seed, used)
        x, y = (np.array([*v.coefficients, *[0.0] * (len(used) - len(v.coefficients))]) for v in (d, e))
        return float(x @ gram @ y / math.sqrt((x @ gram @ x) * (y @ gram @ y)))
