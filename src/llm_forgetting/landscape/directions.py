"""Random directions of adapter space, drawn in the ambient space so that they mean the same in every gauge and checkpoint.

For a module with delta W = U S V^T and Gaussian G1, G2 of the shape of delta W,

    dB = G1 V sqrt(S) / sqrt(d_out)        dA = sqrt(S) U^T G2 / sqrt(d_in)

so that dB A = G1 (dW^T dW)^1/2 / sqrt(d_out) and B dA = (dW dW^T)^1/2 G2 / sqrt(d_in) are functions of delta W alone.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import FactorStep
from llm_forgetting.landscape.gauge import CanonicalAdapter, Factors, ModuleSvd
from llm_forgetting.seeding import derive_seed

# Gaussians are drawn this many rows at a time and thrown away: LLaMA-2 7B's would take 26 GB per direction.
ROWS_PER_CHUNK = 256


def gaussian_chunks(seed: int, rows: int, columns: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """A (rows, columns) standard normal float32 matrix, in row chunks, from one CPU stream (the same on every device)."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rows, ROWS_PER_CHUNK):
        size = min(ROWS_PER_CHUNK, rows - start)
        yield slice(start, start + size), torch.randn(size, columns, generator=generator)


def _module_direction(module: ModuleSvd, name: str, seed: int, index: int) -> Factors:
    """The direction of one module before rescaling; streams are named (seed, `direction`, index, module, B or A)."""
    rows, columns = module.U.shape[0], module.V.shape[0]
    U, V, root = module.U.float().cpu(), module.V.float().cpu(), module.S.float().cpu().sqrt()
    dB = torch.empty(rows, len(root))
    for block, gaussian in gaussian_chunks(derive_seed(seed, "direction", index, name, "B"), rows, columns):
        dB[block] = gaussian @ V
    dA = torch.zeros(len(root), columns)
    for block, gaussian in gaussian_chunks(derive_seed(seed, "direction", index, name, "A"), rows, columns):
        dA += U[block].T @ gaussian
    return Factors(B=(dB * root / rows**0.5).to(module.U), A=(root[:, None] * dA / columns**0.5).to(module.U))


def random_direction(adapter: CanonicalAdapter, seed: int, index: int) -> FactorStep:
    """Direction number `index` of stream `seed` at this adapter, before orthogonalisation and rescaling.

    The Gaussians depend on (seed, index, module name) alone, so the same index is the same ambient direction at every
    checkpoint. They are the cost: two matrices of the size of all adapted weights.

    Returns:
        dB (d_out, r) and dA (r, d_in) of every module.
    """
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        modules = pool.map(
            lambda entry: (entry[0], _module_direction(entry[1], entry[0], seed, index)), adapter.items()
        )
        return FactorStep(dict(modules))


def orthogonal_directions(adapter: CanonicalAdapter, seed: int, count: int, length: float) -> list[FactorStep]:
    """`count` random directions, mutually orthogonal in the Frobenius inner product, each rescaled to norm `length`."""
    if not any(module.S.any() for module in adapter.values()):
        raise UserError(
            "the adapter must have been trained: its delta W = 0, so its own reachable set is flat and has no directions"
        )
    return orthogonalised((random_direction(adapter, seed, index) for index in range(count)), length)


def orthogonalised(drawn: Iterable[FactorStep], length: float) -> list[FactorStep]:
    """Gram-Schmidt, each projection divided by the squared norm; rescaled last and globally."""
    directions: list[FactorStep] = []
    for new in drawn:
        direction = new
        for earlier in 2 * directions:  # twice: one pass in float32 leaves nearly parallel directions askew
            direction = FactorStep.combine(
                [(1.0, direction), (-direction.inner(earlier) / earlier.inner(earlier), earlier)]
            )
        directions.append(direction)
    return [FactorStep.combine([(length / direction.norm(), direction)]) for direction in directions]
