"""What a scan moves and along what: random, gradient or given directions of a module's weights or of a LoRA adapter."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.directions import orthogonalised, random_direction
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import CanonicalAdapter, Factors, canonicalise, numbers
from llm_forgetting.landscape.results import ScanAxes
from llm_forgetting.landscape.spaces import AdapterSpace, Space, WeightSpace, scaled_gaussians
from llm_forgetting.models.any_module.losses import MeanLosses
from llm_forgetting.models.any_module.parameters import (
    DirectionBasis,
    matrix_of,
    movable,
    moved,
    named_parameters,
    room_for_directions,
    weight_space,
)

if TYPE_CHECKING:
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel

# One direction: a tensor per parameter (of any module), or delta W = B A per adapted module (of a PEFT model).
GivenDirection = Mapping[str, torch.Tensor] | Mapping[str, Factors]
Directions = Literal["random", "gradient"] | GivenDirection | Sequence[GivenDirection]
SpaceName = Literal["adapter", "weight"]
Mover = Callable[[], AbstractContextManager[Callable[[WeightUpdate], None]]]


@dataclass(frozen=True)
class DirectionOptions:
    """How directions are chosen; see `scan_plane`."""

    directions: Directions = "random"
    seed: int = 0
    space: SpaceName | None = None
    parameters: Sequence[str] | None = None
    normalise: Literal["filter"] | None = None
    unit: float | None = None


@dataclass(frozen=True)
class ScanDirections:
    """`point` maps coordinates (one per direction) to what `perturbed` can move the model to.

    `norm` is that of what is moved, `units` are the directions' own norms, which is what one unit of distance is; `cosine` that
    of the first two. All are Frobenius norms, in the coordinates that `description` names.
    """

    perturbed: Mover
    point: Callable[[Sequence[float]], WeightUpdate]
    description: str
    norm: float
    units: tuple[float, ...]
    cosine: float | None

    def along(self, seed: int) -> ScanAxes:
        """What the axes are, for the results."""
        return ScanAxes(self.description, self.norm, self.units, self.cosine, seed)


def scan_directions(
    model: torch.nn.Module, losses: MeanLosses, count: int, options: DirectionOptions
) -> ScanDirections:
    """The surroundings of `model` as it stands, along `count` directions."""
    if isinstance(options.directions, str):
        if options.directions not in ("random", "gradient"):
            raise UserError(f"directions must be 'random', 'gradient' or given as dicts, were {options.directions!r}")
        if options.normalise is not None:
            raise UserError("normalise= is for given directions; random ones are normalised already")
        adapted = as_adapted(model)
        return (
            _around_module(model, losses, count, options)
            if adapted is None
            else _around_adapter(adapted, losses, count, options)
        )
    if options.space is not None or options.parameters is not None or options.unit is not None:
        raise UserError(
            "space=, parameters= and reference_norm= are for random and gradient directions, not for given ones"
        )
    given = [options.directions] if isinstance(options.directions, Mapping) else list(options.directions)
    if len(given) != count:
        raise UserError(f"{count} directions are needed, {len(given)} were given")
    if any(isinstance(part, Factors) for direction in given for part in direction.values()):
        if options.normalise is not None:
            raise UserError("normalise= is for directions of parameters, not for those of delta W")
        return _along_updates(model, given)
    return _along_tensors(model, given, options.normalise)


def as_adapted(model: torch.nn.Module) -> "AdaptedModel | None":
    """`model` as one with a LoRA adapter, None where it is a plain module (PEFT is not imported to find that out)."""
    if "peft" not in sys.modules:
        return None
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel, is_adapted

    return AdaptedModel(model) if is_adapted(model) else None


def _around_adapter(model: "AdaptedModel", losses: MeanLosses, count: int, options: DirectionOptions) -> ScanDirections:
    if options.parameters is not None:
        raise UserError(
            "parameters= is for plain modules, an adapter moves as a whole; give directions over named parameters"
        )
    factors = model.adapter_factors()
    if options.space == "adapter":
        model.require_low_rank("space='adapter'")
    if options.space == "weight" or not model.low_rank:
        if options.directions == "gradient":
            model.require_low_rank("directions='gradient'")
            raise UserError("directions='gradient' of an adapter needs space='adapter', was 'weight'")
        name = "the merged weights, row norms of W + delta W"
        weights = WeightSpace(factors, model.weight_row_norms(), room_for_directions())
        return _random(weights, model.perturbed, count, options, name)
    adapter = canonicalise(factors)
    space = AdapterSpace(adapter)
    name = "the adapter's own reachable set, in canonical factors"
    if options.directions == "random":
        return _random(space, model.perturbed, count, options, name)
    if not space.norm:
        raise UserError("the adapter must have been trained: its delta W = 0, so its own reachable set is flat")
    downhill = _adapter_gradient(model, adapter, losses)
    drawn = [downhill, *(random_direction(adapter, options.seed, index) for index in range(1, count))]
    directions = orthogonalised(drawn, options.unit or space.norm)
    description = f"downhill along the gradient{_then(count)} in {name}"
    return _scan_directions(space, directions, model.perturbed, description, options.unit)


def _around_module(model: torch.nn.Module, losses: MeanLosses, count: int, options: DirectionOptions) -> ScanDirections:
    if options.space == "adapter":
        raise UserError(f"space='adapter' needs a PEFT model with a LoRA adapter, was {type(model).__name__}")
    tensors = movable(model, options.parameters)
    space = weight_space(tensors)
    if options.directions == "random":
        return _random(
            space, partial(moved, tensors), count, options, "the weights, row norms of W (filter normalisation)"
        )
    length = options.unit or space.norm
    known = dict(model.named_parameters())
    leaves = [known[name].requires_grad_() for name in tensors]
    gradient = _not_zero(losses.gradient(leaves))
    drawn = [FactorStep({name: _dense(-part) for name, part in zip(tensors, gradient, strict=True)})]
    drawn += [_dense_random(tensors, options.seed, index) for index in range(1, count)]
    vectors = [{name: part.B for name, part in d.factors.items()} for d in orthogonalised(drawn, length)]
    return ScanDirections(
        perturbed=partial(moved, tensors),
        point=DirectionBasis(vectors).point,
        description=f"downhill along the gradient{_then(count)} in the weights",
        norm=space.norm,
        units=(length,) * count,
        cosine=0.0 if count > 1 else None,
    )


def _not_zero(gradient: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    if not any(part.any() for part in gradient):
        raise UserError("directions='gradient' needs a gradient, it is 0 here; take random directions")
    return gradient


def _then(count: int) -> str:
    return ", then random, orthogonal to it," if count > 1 else ""


def _dense(tensor: torch.Tensor) -> Factors:
    """A tensor in the place of a factor, so that directions of tensors are orthogonalised as those of factors are."""
    return Factors(B=tensor, A=tensor.new_zeros(0))


def _dense_random(tensors: Mapping[str, torch.Tensor], seed: int, index: int) -> FactorStep:
    """Filter-normalised Gaussian number `index`, the same as weight space's."""
    drawn = {}
    for name, tensor in tensors.items():
        matrix = matrix_of(tensor)
        blocks = scaled_gaussians(seed, name, [index], matrix.norm(dim=1).float().cpu(), matrix.shape[1])
        drawn[name] = _dense(torch.cat([block for _, (block,) in blocks]).to(tensor).reshape(tensor.shape))
    return FactorStep(drawn)


def _random(space: Space, perturbed: Mover, count: int, options: DirectionOptions, name: str) -> ScanDirections:
    directions = space.directions(options.seed, count, options.unit or space.norm)
    return _scan_directions(space, directions, perturbed, f"random directions of {name}", options.unit)


def _scan_directions(
    space: Space, directions: Sequence[Any], perturbed: Mover, description: str, unit: float | None
) -> ScanDirections:
    return ScanDirections(
        perturbed=perturbed,
        point=lambda row: space.point(list(zip(row, directions, strict=True))),
        description=description,
        norm=space.norm,
        units=(unit or space.norm,) * len(directions),
        cosine=space.cosine(*directions[:2]) if len(directions) > 1 else None,
    )


def _adapter_gradient(model: "AdaptedModel", adapter: CanonicalAdapter, losses: MeanLosses) -> FactorStep:
    """Minus the gradient with respect to the canonical factors: dB = -G A^T, dA = -B^T G with G = d loss / d delta W.

    Canonical factors are the same for every way of writing the adapter, so the direction is too.

    Returns:
        The step downhill.
    """
    point = WeightUpdate.canonical(adapter)
    leaves = [part.requires_grad_() for pair in point.values() for part in (pair.B, pair.A)]
    with model.unmerged() as move:
        gradient = iter(_not_zero(losses.gradient(leaves, lambda: move([point]))))
    return FactorStep({name: Factors(B=-next(gradient), A=-next(gradient)) for name in point})


def _along_updates(model: torch.nn.Module, given: Sequence[Mapping[str, Any]]) -> ScanDirections:
    """delta W + a D + b E, exactly, by concatenation."""
    adapted = as_adapted(model)
    if adapted is None:
        raise UserError(f"directions of delta W need a PEFT model with a LoRA adapter, was {type(model).__name__}")
    base, updates = adapted.adapter_factors(), [adapted.update_of(direction) for direction in given]
    units, cosine = _lengths([[d.inner(e) for e in updates] for d in updates])
    return ScanDirections(
        perturbed=adapted.perturbed,
        point=lambda row: WeightUpdate.combine([(1.0, base), *zip(row, updates, strict=True)]),
        description="given directions of delta W",
        norm=base.norm(),
        units=units,
        cosine=cosine,
    )


def _along_tensors(
    model: torch.nn.Module, given: Sequence[Mapping[str, Any]], normalise: Literal["filter"] | None
) -> ScanDirections:
    """W + a d + b e, exactly."""
    tensors, vectors = named_parameters(model, given, "directions")
    if normalise == "filter":
        vectors = [{name: _filtered(vector[name], tensors[name]) for name in tensors} for vector in vectors]
    dense = [FactorStep({name: _dense(part) for name, part in vector.items()}) for vector in vectors]
    units, cosine = _lengths([[d.inner(e) for e in dense] for d in dense])
    return ScanDirections(
        perturbed=partial(moved, tensors),
        point=DirectionBasis(vectors).point,
        description="given directions" + (", filter-normalised" if normalise else ""),
        norm=math.sqrt(sum(numbers(tensor.double().square().sum() for tensor in tensors.values()))),
        units=units,
        cosine=cosine,
    )


def _filtered(direction: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Every row (of the first dimension) with the norm of the weight's row; 0 for biases and the like (Li et al. 2018)."""
    if weight.ndim < 2:
        return torch.zeros_like(direction)
    rows, own = matrix_of(direction), matrix_of(weight).norm(dim=1)
    norms = rows.norm(dim=1)
    return (rows * torch.where(norms > 0, own / norms, 0.0)[:, None]).reshape(weight.shape)


def _lengths(gram: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], float | None]:
    """Norms of vectors and the cosine of the first two, from their inner products."""
    norms = tuple(math.sqrt(max(gram[k][k], 0.0)) for k in range(len(gram)))
    if not all(norms):
        raise UserError("directions must not be 0 everywhere")
    return norms, gram[0][1] / (norms[0] * norms[1]) if len(norms) > 1 else None
