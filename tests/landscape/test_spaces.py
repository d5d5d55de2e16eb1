"""Weight space and raw coordinates against dense matrices drawn from the documented streams; one function in four gauges."""

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import load

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis import landscape as landscape_analysis
from llm_forgetting.landscape import spaces as spaces_module
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise, regauged
from llm_forgetting.landscape.spaces import (
    AdapterSpace,
    NoisyUpdate,
    RawSpace,
    Space,
    WeightDirection,
    WeightSpace,
    scaled_gaussians,
)
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import derive_seed

pytestmark = pytest.mark.usefixtures("one_thread")

Tensor = torch.Tensor
Weights = dict[str, Tensor]
SHAPES = {"first.q_proj": (7, 5), "second.up_proj": (300, 4), "second.down_proj": (4, 9)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(shapes: Mapping[str, tuple[int, int]] = SHAPES, rank: int = 2) -> tuple[Weights, WeightUpdate]:
    """Frozen weights W and the factors of an update."""
    W = {name: draw(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    factors = {
        name: Factors(B=draw(rows, rank, seed=50 + n), A=draw(rank, columns, seed=70 + n))
        for n, (name, (rows, columns)) in enumerate(shapes.items())
    }
    return W, WeightUpdate(factors)


def merged_norms(W: Weights, factors: Mapping[str, Factors]) -> Weights:
    return {name: (W[name] + pair.B @ pair.A).norm(dim=1) for name, pair in factors.items()}


def weight_space(shapes: Mapping[str, tuple[int, int]] = SHAPES) -> tuple[WeightSpace, Weights, dict[str, Factors]]:
    W, factors = make(shapes)
    return WeightSpace(factors, merged_norms(W, factors)), W, factors


def gaussian(seed: int, index: int, name: str, norms: Tensor, columns: int) -> Tensor:
    """Documented stream (seed, `weight`, index, module), 256 rows at a time, every row scaled to the weight's."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "weight", index, name))
    rows = len(norms)
    blocks = [torch.randn(min(256, rows - at), columns, generator=generator) for at in range(0, rows, 256)]
    G = torch.cat(blocks).double()
    return G * (norms / G.norm(dim=1))[:, None]


def dense(point: Mapping[str, Factors]) -> Weights:
    """delta W of a point, its noise included."""
    found = {}
    for name, pair in point.items():
        update = pair.B.double() @ pair.A.double()
        if isinstance(pair, NoisyUpdate):
            for rows, block in pair.blocks():
                update[rows] += block
        found[name] = update
    return found


def flat(weights: Weights) -> Tensor:
    return torch.cat([weight.reshape(-1) for weight in weights.values()])


def step(space: WeightSpace, direction: WeightDirection, base: Weights, size: float = 1.0) -> Weights:
    return {name: part - base[name] for name, part in dense(space.point([(size, direction)])).items()}


def base_of(factors: Mapping[str, Factors]) -> Weights:
    return {name: pair.B @ pair.A for name, pair in factors.items()}


# Weight space


@pytest.mark.parametrize("length", [1.0, 37.5])
def test_weight_directions_are_the_documented_gaussians_made_orthogonal(length: float) -> None:
    space, W, factors = weight_space()
    norms = merged_norms(W, factors)
    drawn = [flat({n: gaussian(3, k, n, norms[n], p.A.shape[1]) for n, p in factors.items()}) for k in range(4)]
    second = drawn[1] - (drawn[1] @ drawn[0]) / (drawn[0] @ drawn[0]) * drawn[0]
    expected = [drawn[0], second, drawn[2], drawn[3]]
    for direction, d in zip(space.directions(3, 4, length), expected, strict=True):
        found = flat(step(space, direction, base_of(factors)))
        torch.testing.assert_close(found, d / d.norm() * length, rtol=1e-4, atol=1e-5 * length)


def test_first_weight_direction_has_the_row_norms_of_the_merged_weight() -> None:
    space, W, factors = weight_space()
    (d,) = space.directions(0, 1, space.norm)
    for name, part in step(space, d, base_of(factors)).items():
        torch.testing.assert_close(part.norm(dim=1), merged_norms(W, factors)[name], rtol=1e-5, atol=1e-7)


def test_weight_directions_are_orthogonal_and_of_the_length_asked_for() -> None:
    space, _, factors = weight_space()
    directions = space.directions(1, 5, 2.5)
    steps = [flat(step(space, d, base_of(factors))) for d in directions]
    assert [float(s.norm()) for s in steps] == pytest.approx([2.5] * 5, rel=1e-6)
    assert abs(float(steps[0] @ steps[1])) < 1e-5
    assert space.cosine(*directions[:2]) == pytest.approx(0, abs=1e-6)
    for i, j in ((0, 2), (1, 3), (2, 4), (3, 3)):
        assert space.cosine(directions[i], directions[j]) == pytest.approx(float(steps[i] @ steps[j]) / 6.25, abs=1e-5)


def test_weight_norm_is_that_of_the_merged_weights() -> None:
    space, W, factors = weight_space()
    total = sum(float((W[name] + update).square().sum()) for name, update in base_of(factors).items())
    assert space.norm == pytest.approx(math.sqrt(total), rel=1e-6)


@pytest.mark.parametrize("steps", [(0.3, -0.8), (-1.0, 0.0), (0.0, 0.25)])
def test_points_of_weight_space_are_dense_combinations(steps: tuple[float, float]) -> None:
    space, _, factors = weight_space()
    d, e = space.directions(0, 2, 4.0)
    base = base_of(factors)
    u, v = (step(space, direction, base) for direction in (d, e))
    found = dense(space.point([(steps[0], d), (steps[1], e)]))
    for name, update in base.items():
        expected = update + steps[0] * u[name] + steps[1] * v[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_the_centre_of_weight_space_is_the_adapter_itself() -> None:
    space, _, factors = weight_space()
    d, e = space.directions(0, 2, 4.0)
    centre = space.point([(0.0, d), (-0.0, e)])
    assert not any(isinstance(pair, NoisyUpdate) for pair in centre.values())
    assert all(centre[name] is pair for name, pair in factors.items())
    there_and_back = dense(space.point([(1.0, d), (-1.0, d)]))
    for name, update in base_of(factors).items():
        torch.testing.assert_close(there_and_back[name], update, rtol=0, atol=0)


def test_weight_points_are_the_same_in_every_gauge() -> None:
    W, factors = make()
    spaces = [
        WeightSpace(WeightUpdate(f), merged_norms(W, f))
        for f in (factors, *(regauged(factors, seed) for seed in range(3)))
    ]
    here, *others = (
        dense(space.point([(0.7, d), (-0.4, e)])) for space in spaces for d, e in [space.directions(5, 2, 3.0)]
    )
    for there in others:
        for name in here:
            torch.testing.assert_close(there[name], here[name], rtol=1e-6, atol=1e-6)


def test_streams_differ_between_seeds_indices_and_modules() -> None:
    norms = torch.ones(5)
    drawn = [
        blocks[0]
        for seed in (0, 1)
        for name in ("one", "two")
        for _, blocks in scaled_gaussians(seed, name, [0], norms, 6)
    ]
    drawn += [block for _, blocks in scaled_gaussians(0, "one", [1, 2], norms, 6) for block in blocks]
    assert len({tuple(block.flatten().tolist()) for block in drawn}) == len(drawn) == 6


def test_nothing_of_the_size_of_the_weights_is_kept() -> None:
    W, factors = make({"wide": (400, 3000)})
    space = WeightSpace(factors, merged_norms(W, factors))
    directions = space.directions(0, 3, 1.0)
    kept = len(pickle.dumps((space, directions, space.point([(0.5, directions[0]), (0.1, directions[2])]))))
    assert kept < 0.1 * W["wide"].numel() * 4


def test_a_row_of_zeros_is_not_moved() -> None:
    _, factors = make()
    norms = {name: torch.ones(len(pair.B)) for name, pair in factors.items()}
    norms["first.q_proj"][3] = 0
    space = WeightSpace(factors, norms)
    (d,) = space.directions(0, 1, 1.0)
    moved = step(space, d, base_of(factors))["first.q_proj"]
    assert moved[3].abs().max() < 1e-12
    assert moved.isfinite().all()


SMALL = {"p": (4, 5), "q": (3, 6)}


def test_second_difference_of_a_line_is_the_dense_quadratic_form() -> None:
    """f(W) = g.w + w'Hw / 2 over all weights, H dense, symmetric and indefinite: d'Hd and [d e]'H[d e]."""
    space, W, factors = weight_space(SMALL)
    size = sum(weight.numel() for weight in W.values())
    root = draw(size, size, seed=9)
    H, g = (root + root.T) / 2, draw(size, seed=10)

    def f(*steps: tuple[float, WeightDirection]) -> float:
        w = flat({name: W[name] + update for name, update in dense(space.point(steps)).items()})
        return float(g @ w + w @ H @ w / 2)

    d, e = space.directions(0, 2, space.norm)
    u, v = (flat(step(space, direction, base_of(factors))) for direction in (d, e))
    h = 0.5
    for direction, x in ((d, u), (e, v)):
        second = (f((h, direction)) - 2 * f() + f((-h, direction))) / h**2
        assert second == pytest.approx(float(x @ H @ x), rel=1e-4)
    mixed = (f((h, d), (h, e)) - f((h, d), (-h, e)) - f((-h, d), (h, e)) + f((-h, d), (-h, e))) / (4 * h**2)
    assert mixed == pytest.approx(float(u @ H @ v), rel=1e-4)


def upright(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight.detach()
    return (weight.T if layer.fan_in_fan_out else weight).double().clone()


def space_of(model: LanguageModel) -> WeightSpace:
    return WeightSpace(model.adapter_factors(), model.weight_row_norms())


def test_weights_of_a_moved_model_are_the_dense_ones(any_folder: Path) -> None:
    model = load(any_folder)
    layers, factors = target_layers(model.peft_model), model.adapter_factors()
    frozen = {name: upright(layer) for name, layer in layers.items()}
    centre = {name: frozen[name] + pair.B.double() @ pair.A.double() for name, pair in factors.items()}
    space = space_of(model)
    for name, norms in model.weight_row_norms().items():
        torch.testing.assert_close(norms.double(), centre[name].norm(dim=1), rtol=1e-6, atol=1e-7)
    d, e = space.directions(0, 2, 0.5 * space.norm)
    G = [{n: gaussian(0, k, n, W.norm(dim=1), W.shape[1]) for n, W in centre.items()} for k in (0, 1)]
    g, h = flat(G[0]), flat(G[1])
    slope = float(g @ h / (g @ g))
    lengths = [0.5 * space.norm / float(x.norm()) for x in (g, h - slope * g)]
    with model.perturbed() as move:
        for a, b in ((0.0, 0.0), (0.8, 0.0), (-0.3, 1.1)):
            move(space.point([(a, d), (b, e)]))
            for name, layer in layers.items():
                first, second = G[0][name], G[1][name] - slope * G[0][name]
                expected = centre[name] + a * lengths[0] * first + b * lengths[1] * second
                torch.testing.assert_close(upright(layer), expected, rtol=1e-4, atol=2e-6)
    for name, layer in layers.items():
        assert torch.equal(upright(layer), frozen[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weight_space_is_refused_where_steps_would_be_rounded_away(dtype: str, llama_folder: Path) -> None:
    config, model = LandscapeConfig(space="weight"), load(llama_folder, dtype=dtype)
    assert isinstance(landscape_analysis.space_of(model, config), WeightSpace)
    model.arithmetic = "native"
    with pytest.raises(UserError, match=rf"needs float32 arithmetic \(in {dtype} .* set it to float32, or use"):
        landscape_analysis.space_of(model, config)


# Raw coordinates


def test_raw_directions_are_gaussian_orthogonal_and_of_the_length_asked_for() -> None:
    _, factors = make()
    space = RawSpace(factors)
    directions = space.directions(0, 3, 2.0)

    def vector(d: FactorStep) -> Tensor:
        return torch.cat([part.double().reshape(-1) for pair in d.factors.values() for part in (pair.B, pair.A)])

    vectors = torch.stack([vector(d) for d in directions])
    torch.testing.assert_close(vectors @ vectors.T, 4 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert abs(float(vectors[0].mean())) < 4 * float(vectors[0].std()) / math.sqrt(vectors.shape[1])
    excess = float((vectors[0] / vectors[0].std()).pow(4).mean()) - 3
    assert abs(excess) < 5 * math.sqrt(24 / vectors.shape[1])
    assert space.norm == pytest.approx(float(vector(FactorStep(factors)).norm()), rel=1e-9)
    assert space.cosine(directions[0], directions[1]) == pytest.approx(0, abs=1e-9)
    d, e = directions[:2]
    moved = space.point([(0.5, d), (-2.0, e), (0.0, directions[2])])
    expected = vector(FactorStep(factors)) + 0.5 * vectors[0] - 2 * vectors[1]
    torch.testing.assert_close(vector(FactorStep(moved)), expected, rtol=0, atol=1e-9)
    again = RawSpace(factors).directions(0, 3, 2.0)
    assert torch.equal(vector(again[2]), vectors[2])
    assert not torch.equal(vector(RawSpace(factors).directions(1, 1, 2.0)[0]), vectors[0])


@pytest.mark.parametrize("space", [AdapterSpace, RawSpace])
def test_cosines_are_those_of_both_factors(space: Callable[[Any], Space]) -> None:
    _, factors = make()
    around = space(canonicalise(factors) if space is AdapterSpace else factors)
    d, e = around.directions(0, 2, 3.0)
    leaning = FactorStep({n: Factors(B=d[n].B + 2 * e[n].B, A=d[n].A + 2 * e[n].A) for n in d.factors})
    assert around.cosine(d, d) == pytest.approx(1)
    assert around.cosine(d, e) == pytest.approx(0, abs=1e-6)
    assert around.cosine(d, leaning) == pytest.approx(1 / math.sqrt(5), rel=1e-6)


# One function in four gauges (the table of method.md, section 3, on a smaller problem)

ROWS, COLUMNS, RANK = 12, 10, 4
SPECTRA = {"distinct": [2.0, 1.5, 1.0, 0.5], "equal": [1.4, 1.4, 1.4, 1.4]}


def gauges(pair: Factors) -> dict[str, Factors]:
    stretch = torch.logspace(0, math.log10(20), RANK, dtype=torch.float64)
    M = draw(RANK, RANK, seed=31)
    return {
        "trained": pair,
        "x10": Factors(B=10 * pair.B, A=pair.A / 10),
        "diag(1..20)": Factors(B=pair.B / stretch, A=stretch[:, None] * pair.A),
        "GL(r)": Factors(B=pair.B @ torch.linalg.inv(M), A=M @ pair.A),
    }


def mean_rises(spectrum: str, make_space: Callable[[Factors, Tensor], Space]) -> dict[str, float]:
    """Mean rise of |(W + B A - target) X|^2 over 16 directions of length 1 and both signs, in every gauge."""
    U, V = (torch.linalg.qr(draw(n, RANK, seed=s))[0] for n, s in ((ROWS, 1), (COLUMNS, 2)))
    roots = torch.tensor(SPECTRA[spectrum], dtype=torch.float64).sqrt()
    pair = Factors(B=U * roots, A=roots[:, None] * V.T)
    W, X = draw(ROWS, COLUMNS, seed=3), draw(COLUMNS, 40, seed=4)
    target = W + pair.B @ pair.A + 0.1 * draw(ROWS, COLUMNS, seed=5)

    def loss(update: Tensor) -> float:
        return float(((W + update - target) @ X).square().mean())

    base, rises = loss(pair.B @ pair.A), {}
    for name, written in gauges(pair).items():
        space = make_space(written, W)
        moved = [dense(space.point([(sign, d)]))["w"] for d in space.directions(0, 16, 1.0) for sign in (1, -1)]
        rises[name] = float(np.mean([loss(update) - base for update in moved]))
    return rises


def adapter_space(pair: Factors, W: Tensor) -> Space:
    return AdapterSpace(canonicalise({"w": pair}))


def merged_space(pair: Factors, W: Tensor) -> Space:
    return WeightSpace(WeightUpdate({"w": pair}), {"w": (W + pair.B @ pair.A).norm(dim=1)})


def raw_space(pair: Factors, W: Tensor) -> Space:
    return RawSpace(WeightUpdate({"w": pair}))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("space", [adapter_space, merged_space])
def test_mean_rise_is_one_number_in_every_gauge(space: Callable[[Factors, Tensor], Space], spectrum: str) -> None:
    rises = mean_rises(spectrum, space)
    assert rises["trained"] > 0.01
    assert list(rises.values()) == pytest.approx([rises["trained"]] * 4, rel=1e-4)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_mean_rise_in_raw_coordinates_is_another_number_in_every_gauge(spectrum: str) -> None:
    rises = mean_rises(spectrum, raw_space)
    assert rises["x10"] > 20 * rises["trained"]
    assert rises["diag(1..20)"] > 5 * rises["trained"]
    assert abs(rises["GL(r)"] / rises["trained"] - 1) > 0.1


@pytest.mark.parametrize("fits", [True, False])
def test_directions_are_drawn_once_where_they_fit(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point of a plane has the same numbers as when it is drawn anew."""
    draws: list[tuple[str, int]] = []
    drawn = spaces_module.scaled_gaussians

    def counted(seed: int, module: str, indices: Any, *rest: Any) -> Any:
        draws.extend((module, index) for index in indices)
        return drawn(seed, module, indices, *rest)

    monkeypatch.setattr(spaces_module, "scaled_gaussians", counted)
    W, factors = make()
    space = WeightSpace(factors, merged_norms(W, factors), room=100_000 if fits else 0)
    d, e = space.directions(3, 2, 1.0)
    for a, b in ((0.5, 0.0), (0.1, -0.2), (0.0, 1.0)):
        found = dense(space.point([(a, d), (b, e)]))
        draws_before = len(draws)
        for name, pair in space.point([(a, d), (b, e)]).items():
            again = NoisyUpdate(pair.B, pair.A, pair.row_norms, name, pair.noise)
            assert torch.equal(found[name], dense({name: again})[name])
        del draws[draws_before:]
    assert (len(draws) == 2 * len(factors)) is fits
