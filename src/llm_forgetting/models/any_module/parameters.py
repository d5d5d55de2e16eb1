"""The parameters of any torch module: which of them a scan moves, moving them, and putting them back bit for bit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import psutil
import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.spaces import NoisyUpdate, WeightSpace

Tensors = Mapping[str, torch.Tensor]


def movable(module: torch.nn.Module, patterns: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """The parameters that random directions move, by name.

    Without `patterns` those of at least two dimensions that require a gradient: biases and the scales of normalisations have no
    rows whose norm a direction could share (Li et al. 2018 leave them alone too). With `patterns` (shell-style, such as
    `layers.*.weight`) all that match one of them. UserError where a pattern matches nothing, or nothing can be moved.

    Returns:
        Parameters without their graph, by name.

    Raises:
        UserError: A pattern matches nothing, or nothing can be moved.
    """
    named = {name: p for name, p in module.named_parameters() if p.is_floating_point() and p.numel()}
    if patterns is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad and p.ndim >= 2}
        if not chosen:
            raise UserError(
                "the model must have a parameter of at least two dimensions that requires a gradient, it has none; name what "
                "is to be moved by parameters=['pattern', ...]"
            )
    else:
        unmatched = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in named)]
        if unmatched or not patterns:
            raise UserError(
                f"every pattern of parameters= must match a floating-point parameter, {unmatched or 'none'} did not; "
                f"the first ones are {', '.join(list(named)[:8])}"
            )
        chosen = {name: p for name, p in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    refuse_unmovable(chosen)
    return {name: p.detach() for name, p in chosen.items()}


def refuse_unmovable(tensors: Tensors) -> None:
    """UserError where a step would be rounded away, where nothing can be moved, or not everything at once."""
    devices = sorted({str(tensor.device) for tensor in tensors.values() if not tensor.is_meta})
    if len(devices) > 1:
        raise UserError(
            f"parameters must be on one device to be moved together, they are on {', '.join(devices)}; name those of one by "
            "parameters=['pattern', ...]"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UserError(f"parameters must be in memory to be moved, {name} is not (device_map or offloading)")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"parameters must be float32 or float64 to be moved, {name} is {str(tensor.dtype).removeprefix('torch.')}, in "
                f"which a small step is rounded away; use model.float(), or a LoRA adapter"
            )


def room_for_directions() -> int:
    """A quarter of the host's free memory, for directions of the size of the weights.

    Returns:
        Bytes.
    """
    return int(psutil.virtual_memory().available) // 4


def weight_space(tensors: Tensors) -> WeightSpace:
    """Filter-normalised directions of `tensors`, each seen as a matrix (first dimension, all others); one of a single
    dimension as a column, every entry of which moves by its own size.

    Returns:
        The space around the tensors as they are.
    """
    flat = {name: matrix_of(tensor) for name, tensor in tensors.items()}
    unmoved = {n: Factors(B=m.new_zeros(len(m), 0), A=m.new_zeros(0, m.shape[1])) for n, m in flat.items()}
    row_norms = {name: matrix.norm(dim=1) for name, matrix in flat.items()}
    return WeightSpace(WeightUpdate(unmoved), row_norms, room_for_directions())


def matrix_of(tensor: torch.Tensor) -> torch.Tensor:
    """(first dimension, all others)."""
    return tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)


@contextmanager
def moved(tensors: Tensors, origin: Tensors | None = None) -> Iterator[Callable[[WeightUpdate], None]]:
    """A setter that writes origin + update into every tensor; on leaving, every bit is as before.

    The origin is where the tensors are now, unless given. An update is the noise of weight space, or B A with a single column
    A (k, 1): a combination of k vectors of as many entries as the tensor (see `DirectionBasis`). Always from the origin,
    never from where the last point was: nothing drifts. Costs a copy of the tensors.

    Yields:
        The setter.
    """
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    start = before if origin is None else origin

    @torch.no_grad()
    def move(point: WeightUpdate) -> None:
        for name, tensor in tensors.items():
            update = point[name]
            tensor.copy_(start[name])
            if isinstance(update, NoisyUpdate):
                rows_of = tensor if tensor.ndim else tensor.view(1)
                for rows, block in update.blocks():
                    rows_of[rows] += block.to(tensor).reshape(rows_of[rows].shape)
            for column, weight in zip(update.B.unbind(1), update.A, strict=True):
                tensor.add_(column.reshape(tensor.shape), alpha=float(weight))

    try:
        yield move
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])


class DirectionBasis:
    """Linear combinations of a few vectors, each a tensor per parameter."""

    def __init__(self, vectors: Sequence[Tensors]) -> None:
        self._columns = {
            name: torch.stack([vector[name].reshape(-1) for vector in vectors], dim=1) for name in vectors[0]
        }

    def point(self, weights: Sequence[float]) -> WeightUpdate:
        """sum w_k v_k as the factors that `moved` takes: B (entries, k) holds the vectors, A (k, 1) the weights."""
        return WeightUpdate(
            {name: Factors(B, B.new_tensor(weights).reshape(-1, 1)) for name, B in self._columns.items()}
        )


def named_parameters(
    module: torch.nn.Module, given: Sequence[Tensors], what: str
) -> tuple[dict[str, torch.Tensor], list[Tensors]]:
    """The parameters that `given` tensors belong to, and those tensors in their place and precision; left out means 0.

    A parameter that a model uses under several names (tied weights) may be given under any or all of them. UserError for a
    name that is no parameter, a shape that does not fit, or two names of one parameter that disagree.

    Returns:
        The parameters by their first names, and the given tensors for each.

    Raises:
        UserError: A name, a shape or a tied parameter does not fit.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    first_name = {id(p): name for name, p in reversed(known.items())}
    placed: list[dict[str, torch.Tensor]] = []
    for tensors in given:
        own_tensors: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name not in known:
                raise UserError(f"{what} must name parameters of the model, {name!r} is none (buffers do not count)")
            parameter = known[name]
            if tensor.shape != parameter.shape:
                raise UserError(
                    f"{what} must have the parameters' shapes, {name} is {tuple(tensor.shape)}, must be "
                    f"{tuple(parameter.shape)}"
                )
            own, value = first_name[id(parameter)], tensor.detach().to(parameter)
            if own in own_tensors and not torch.equal(own_tensors[own], value):
                raise UserError(f"{what} must move a tied parameter once, {name} and {own} disagree")
            own_tensors[own] = value
        placed.append(own_tensors)
    used = {name: known[name].detach() for name in known if any(name in tensors for tensors in placed)}
    if not used:
        raise UserError(f"{what} must move at least one parameter")
    refuse_unmovable(used)
    return used, [{name: tensors.get(name, torch.zeros_like(p)) for name, p in used.items()} for tensors in placed]
