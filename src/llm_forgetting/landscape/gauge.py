"""LoRA's gauge freedom, and the coordinates in which it is gone.

delta W = B A is unchanged under (A, B) -> (M A, B M^-1) for every invertible M. The canonical factors are

    delta W = U S V^T (thin SVD),   B = U sqrt(S),   A = sqrt(S) V^T

which leaves signs and rotations among equal singular values; directions are drawn so that those cancel too.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32, or as it is where that is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def numbers(scalars: Iterable[torch.Tensor]) -> list[float]:
    """Tensors without dimensions, of one dtype and device, as numbers: a GPU is waited for once, not once for each."""
    kept = list(scalars)
    return torch.stack(kept).tolist() if kept else []


@dataclass(frozen=True)
class Factors:
    """delta W = B A of one module: B (d_out, r), A (r, d_in), any scale absorbed."""

    B: torch.Tensor
    A: torch.Tensor


@dataclass(frozen=True)
class ModuleSvd:
    """Thin SVD delta W = U diag(S) V^T of one module: U (d_out, r), S (r,) descending, V (d_in, r)."""

    U: torch.Tensor
    S: torch.Tensor
    V: torch.Tensor

    @property
    def factors(self) -> Factors:
        """B = U sqrt(S), A = sqrt(S) V^T."""
        root = self.S.sqrt()
        return Factors(B=self.U * root, A=root[:, None] * self.V.T)


CanonicalAdapter = dict[str, ModuleSvd]


def canonicalise(factors: Mapping[str, Factors]) -> CanonicalAdapter:
    """Thin SVD of every module: two thin QRs and one r x r SVD, in float64, returned in the factors' own dtype.

    It depends on delta W alone, not on how that is written:

    >>> B, A = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
    >>> M = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> one = canonicalise({"q_proj": Factors(B, A)})["q_proj"]
    >>> other = canonicalise({"q_proj": Factors(B @ M.inverse(), M @ A)})["q_proj"]
    >>> torch.allclose(one.S, other.S), torch.allclose(one.factors.B @ one.factors.A, B @ A, atol=1e-6)
    (True, True)

    Args:
        factors: B (d_out, r) and A (r, d_in) of every module, by name.

    Returns:
        U (d_out, r), S (r,) and V (d_in, r) of every module; signs, and rotations among equal singular values, are arbitrary.

    Raises:
        TypeError: The update has dense changes too, which would be lost.
    """
    if getattr(factors, "dense", None):
        raise TypeError("only low-rank updates have canonical factors, this one has dense changes too")
    return {name: _canonical(pair) for name, pair in factors.items()}


def _canonical(pair: Factors) -> ModuleSvd:
    Q_out, R_out = torch.linalg.qr(pair.B.double())
    Q_in, R_in = torch.linalg.qr(pair.A.double().T)
    U, S, Vh = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    dtype = pair.B.dtype
    # A rank above d_out or d_in leaves places over; they are zero, and so are the directions in them.
    surplus = (0, pair.A.shape[0] - len(S))
    return ModuleSvd(*(F.pad(part, surplus).to(dtype) for part in (Q_out @ U, S, Q_in @ Vh.T)))


def adapter_norm(adapter: CanonicalAdapter) -> float:
    """|P|_F over all canonical factors of all modules: sqrt(2 sum of singular values)."""
    return math.sqrt(sum(numbers(2 * module.S.double().sum() for module in adapter.values())))


def update_norm(adapter: CanonicalAdapter) -> float:
    """|delta W|_F over all modules."""
    return math.sqrt(sum(numbers(module.S.double().square().sum() for module in adapter.values())))


def regauged(factors: Mapping[str, Factors], seed: int) -> dict[str, Factors]:
    """The same function written in another gauge: (M A, B M^-1) with a random invertible M per module.

    M = Q1 diag(exp u) Q2 with random orthogonal Q1, Q2 and u uniform on [-2, 2]: neither a rotation nor a rescaling,
    with a condition number of at most e^4 = 55, so that float32 can still write the result down.

    Returns:
        (B M^-1, M A) of every module, in the factors' own dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, pair in factors.items():
        rank = pair.A.shape[0]
        Q1, Q2 = (
            torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0] for _ in range(2)
        )
        stretch = torch.exp(4 * torch.rand(rank, generator=generator, dtype=torch.float64) - 2)
        M, M_inverse = (Q1 * stretch) @ Q2, (Q2.T / stretch) @ Q1.T
        device, dtype = pair.B.device, pair.B.dtype
        result[name] = Factors(
            B=(pair.B.double() @ M_inverse.to(device)).to(dtype), A=(M.to(device) @ pair.A.double()).to(dtype)
        )
    return result
