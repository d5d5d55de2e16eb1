"""Updates delta W = B A cut to lower ranks, and kept in files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise, numbers


@dataclass(frozen=True)
class Truncated:
    """The best update of a lower rank (Eckart & Young 1936), and |difference|_F / |delta W|_F over all modules."""

    update: WeightUpdate
    relative_error: float


def truncated(update: WeightUpdate, ranks: Mapping[str, int]) -> Truncated:
    """`update` cut to `ranks[module]` singular values per module, as balanced factors."""
    kept, lost, whole = {}, [], []
    for name, module in canonicalise(update).items():
        rank, root = ranks[name], module.S.sqrt()
        kept[name] = Factors(B=module.U[:, :rank] * root[:rank], A=root[:rank, None] * module.V[:, :rank].T)
        squares = module.S.double().square()
        lost.append(squares[rank:].sum())
        whole.append(squares.sum())
    all_of_it = sum(numbers(whole))
    return Truncated(WeightUpdate(kept), math.sqrt(sum(numbers(lost)) / all_of_it) if all_of_it else 0.0)


def write_update(path: Path, update: WeightUpdate) -> None:
    """One safetensors file with MODULE.B and MODULE.A of every module."""
    tensors = {
        f"{name}.{part}": t.contiguous().cpu() for name, pair in update.items() for part, t in vars(pair).items()
    }
    save_file(tensors, path)


def read_update(path: Path) -> WeightUpdate:
    """What `write_update` wrote, on the CPU."""
    tensors = load_file(path)
    names = [key.removesuffix(".B") for key in tensors if key.endswith(".B")]
    return WeightUpdate({name: Factors(B=tensors[f"{name}.B"], A=tensors[f"{name}.A"]) for name in names})
