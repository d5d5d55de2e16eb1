"""Updates delta W = B A of all modules as vectors: exact sums by concatenation, Frobenius products without forming a matrix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llm_forgetting.landscape.gauge import Factors, canonicalise

Update = dict[str, Factors]


def combination(terms: Sequence[tuple[float, Mapping[str, Factors]]]) -> Update:
    """sum c_i delta W_i, exactly: the factors side by side, so ranks add up. Terms with c = 0 are left out (not the first)."""
    kept = [(c, update) for index, (c, update) in enumerate(terms) if c != 0 or index == 0]
    return {
        name: Factors(
            B=torch.cat([c * update[name].B for c, update in kept], dim=1),
            A=torch.cat([update[name].A for _, update in kept], dim=0),
        )
        for name in terms[0][1]
    }


def inner(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> float:
    """Frobenius product <delta W_1, delta W_2> over all modules, in float64: tr(A_1^T B_1^T B_2 A_2)."""
    total = 0.0
    for name, one in first.items():
        other = second[name]
        total += float(((one.B.double().T @ other.B.double()) * (one.A.double() @ other.A.double().T)).sum())
    return total


def norm(update: Mapping[str, Factors]) -> float:
    """Frobenius norm over all modules; by singular values, so that it is accurate for differences of near equals too."""
    return math.sqrt(sum(float(module.S.double().square().sum()) for module in canonicalise(dict(update)).values()))


@dataclass(frozen=True)
class Truncated:
    """The best update of a lower rank (Eckart & Young 1936), and |difference|_F / |delta W|_F over all modules."""

    update: Update
    relative_error: float


def truncated(update: Mapping[str, Factors], ranks: Mapping[str, int]) -> Truncated:
    """`update` cut to `ranks[module]` singular values per module, as balanced factors."""
    kept, lost, whole = {}, 0.0, 0.0
    for name, module in canonicalise(dict(update)).items():
        rank, root = ranks[name], module.S.sqrt()
        kept[name] = Factors(B=module.U[:, :rank] * root[:rank], A=root[:rank, None] * module.V[:, :rank].T)
        squares = module.S.double().square()
        lost, whole = lost + float(squares[rank:].sum()), whole + float(squares.sum())
    return Truncated(kept, math.sqrt(lost / whole) if whole else 0.0)


def write_update(path: Path, update: Mapping[str, Factors]) -> None:
    """One safetensors file with MODULE.B and MODULE.A of every module."""
    tensors = {
        f"{name}.{part}": t.contiguous().cpu() for name, pair in update.items() for part, t in vars(pair).items()
    }
    save_file(tensors, path)


def read_update(path: Path) -> Update:
    """What `write_update` wrote, on the CPU."""
    tensors = load_file(path)
    names = [key.removesuffix(".B") for key in tensors if key.endswith(".B")]
    return {name: Factors(B=tensors[f"{name}.B"], A=tensors[f"{name}.A"]) for name in names}
