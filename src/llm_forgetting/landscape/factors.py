"""The two vector spaces on factors (B, A) of all adapted modules: steps of the factors themselves, and updates delta W = B A.

Both hold the same tensors and have different inner products, so they are two types: neither takes the other's place.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from llm_forgetting.landscape.dense import Combined, Dense
from llm_forgetting.landscape.gauge import CanonicalAdapter, Factors, canonicalise, numbers, update_norm

WEIGHT = ".weight"


@dataclass(frozen=True, eq=False)
class FactorStep:
    """Step (dB, dA) in factor space: a vector whose coordinates are the entries of both factors of every module.

    Not a mapping, so that no function of an update takes it; `factors` are its parts by module. Whatever is not a step raises
    TypeError.
    """

    factors: Mapping[str, Factors]

    def __getitem__(self, module: str) -> Factors:
        """(dB, dA) of one module."""
        return self.factors[module]

    def inner(self, other: "FactorStep") -> float:
        """Frobenius inner product over both factors of all modules, summed in float64; independent of the gauge."""
        _require(FactorStep, other)
        return sum(
            numbers(_dot(pair.B, other[name].B) + _dot(pair.A, other[name].A) for name, pair in self.factors.items())
        )

    def norm(self) -> float:
        """Frobenius norm over both factors of all modules."""
        return math.sqrt(self.inner(self))

    @staticmethod
    def combine(terms: Sequence[tuple[float, "FactorStep"]]) -> "FactorStep":
        """The linear combination sum c_i d_i, factor by factor."""
        _require(FactorStep, *(step for _, step in terms))
        return FactorStep(
            {
                name: Factors(B=_sum([c * d[name].B for c, d in terms]), A=_sum([c * d[name].A for c, d in terms]))
                for name in terms[0][1].factors
            }
        )


class WeightUpdate(Mapping[str, Factors]):
    """Update of a model: delta W = B A of every module, by module name, and `dense` changes of single parameters, by name.

    It is a vector whose coordinates are the entries of all changes. Sums are exact: factors stand side by side, dense changes
    are added when they are read. Where there are only factors, Frobenius products form no matrix of the size of the weights.
    The change of `MODULE.weight` is B A of the module and the dense one together. Whatever is not an update raises TypeError.
    """

    def __init__(self, factors: Mapping[str, Factors], dense: Mapping[str, Dense] | None = None) -> None:
        self._factors = dict(factors)
        self.dense = dict(dense or {})

    def __getitem__(self, module: str) -> Factors:
        """B and A of one module."""
        return self._factors[module]

    def __iter__(self) -> Iterator[str]:
        """Names of the modules that have factors."""
        return iter(self._factors)

    def __len__(self) -> int:
        """Number of modules that have factors."""
        return len(self._factors)

    def __bool__(self) -> bool:
        """Whether anything is named."""
        return bool(self._factors or self.dense)

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters that are changed."""
        return list(dict.fromkeys([*(f"{module}{WEIGHT}" for module in self._factors), *self.dense]))

    def change(self, parameter: str) -> torch.Tensor | None:
        """The whole change of one parameter, of its shape; None where there is none."""
        module = self._factors.get(parameter.removesuffix(WEIGHT)) if parameter.endswith(WEIGHT) else None
        product = None if module is None else module.B @ module.A
        if parameter not in self.dense:
            return product
        change = self.dense[parameter].read()
        return change if product is None else product.to(change) + change

    @staticmethod
    def zero(like: Mapping[str, Factors]) -> "WeightUpdate":
        """delta W = 0 of the shapes of `like`, of rank 1: a fresh adapter, the bare backbone."""
        return WeightUpdate(
            {n: Factors(B=torch.zeros_like(pair.B[:, :1]), A=torch.zeros_like(pair.A[:1])) for n, pair in like.items()}
        )

    @staticmethod
    def canonical(adapter: CanonicalAdapter) -> "WeightUpdate":
        """delta W with its canonical factors B = U sqrt(S), A = sqrt(S) V^T."""
        return WeightUpdate({name: module.factors for name, module in adapter.items()})

    def inner(self, other: "WeightUpdate") -> float:
        """Frobenius product <delta W_1, delta W_2> over all parameters, in float64: tr(A_1^T B_1^T B_2 A_2) of factors."""
        _require(WeightUpdate, other)
        dense = self.dense.keys() | other.dense.keys()
        pairs = [(x, other[name]) for name, x in self.items() if name in other and f"{name}{WEIGHT}" not in dense]
        low_rank = (((x.B.double().T @ y.B.double()) * (x.A.double() @ y.A.double().T)).sum() for x, y in pairs)
        return sum(numbers(low_rank), sum(_dense_inner(self, other, name) for name in sorted(dense)))

    def norm(self) -> float:
        """Frobenius norm over all parameters; of factors by singular values, so accurate for differences of near equals too."""
        low_rank = {name: pair for name, pair in self.items() if f"{name}{WEIGHT}" not in self.dense}
        squares = sum(_dense_inner(self, self, name) for name in sorted(self.dense))
        own = update_norm(canonicalise(low_rank))
        return math.hypot(own, math.sqrt(squares)) if self.dense else own

    @staticmethod
    def combine(terms: Sequence[tuple[float, "WeightUpdate"]]) -> "WeightUpdate":
        """sum c_i delta W_i, exactly: factors side by side, ranks add up. Terms with c = 0 are left out (not the first)."""
        _require(WeightUpdate, *(update for _, update in terms))
        kept = [(c, update) for index, (c, update) in enumerate(terms) if c != 0 or index == 0]
        parts = {name: [(c, u[name]) for c, u in kept if name in u] for _, update in kept for name in update}
        dense = {name: [(c, u.dense[name]) for c, u in kept if name in u.dense] for _, u in kept for name in u.dense}
        return WeightUpdate(
            {
                name: Factors(B=torch.cat([c * pair.B for c, pair in used], dim=1), A=torch.cat([p.A for _, p in used]))
                for name, used in parts.items()
            },
            {name: Combined(used) for name, used in dense.items()},
        )

    def moved(self, steps: Sequence[tuple[float, FactorStep]]) -> "WeightUpdate":
        """(B + sum c_i dB_i)(A + sum c_i dA_i), of the same rank; steps with c = 0 are left out."""
        taken = [(c, step) for c, step in steps if c != 0]
        return WeightUpdate(FactorStep.combine([(1.0, FactorStep(self)), *taken]).factors) if taken else self


def _dense_inner(one: WeightUpdate, other: WeightUpdate, parameter: str) -> float:
    """Product of two changes of one parameter, which are read for it."""
    x = one.change(parameter)
    y = x if other is one else other.change(parameter)
    return 0.0 if x is None or y is None else float((x.double() * y.to(x.device).double()).sum())


def _require(kind: type, *values: object) -> None:
    """TypeError unless every value is of `kind`: the other geometry would give a number too, a wrong one."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"a {kind.__name__} is needed, was {type(value).__name__}")


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.double() * y).sum()


def _sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(tensors).sum(dim=0)
