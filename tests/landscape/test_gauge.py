"""The gauge freedom of LoRA, and coordinates and directions in which it is gone, against dense float64 matrices."""

import doctest
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import load, make_encoded, tiny_llama

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis import landscape as landscape_analysis
from llm_forgetting.experiment.analysis.landscape import analyse_landscape
from llm_forgetting.files import to_plain
from llm_forgetting.landscape import directions as directions_module
from llm_forgetting.landscape import gauge
from llm_forgetting.landscape.directions import orthogonal_directions, random_direction
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import (
    CanonicalAdapter,
    Factors,
    ModuleSvd,
    adapter_norm,
    canonicalise,
    regauged,
    update_norm,
)
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import derive_seed

pytestmark = pytest.mark.usefixtures("one_thread")

Tensor = torch.Tensor
SHAPES = {"first.q_proj": (7, 5), "first.v_proj": (4, 9), "second.q_proj": (7, 5)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_factors(rank: int = 2, seed: int = 0, shapes: dict[str, tuple[int, int]] | None = None) -> dict[str, Factors]:
    sizes = (shapes or SHAPES).items()
    return {
        name: Factors(B=draw(rows, rank, seed=seed + 2 * n), A=draw(rank, columns, seed=seed + 2 * n + 1))
        for n, (name, (rows, columns)) in enumerate(sizes)
    }


def from_singular_values(values: list[float], rows: int = 8, columns: int = 6, seed: int = 3) -> dict[str, Factors]:
    """One module with the given singular values, not written canonically."""
    rank = len(values)
    U = torch.linalg.qr(draw(rows, rank, seed=seed))[0]
    V = torch.linalg.qr(draw(columns, rank, seed=seed + 1))[0]
    return {"w": Factors(B=U * torch.tensor(values, dtype=torch.float64), A=V.T.clone())}


def matrix(pair: Factors) -> Tensor:
    return pair.B.double() @ pair.A.double()


def root_of(gram: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def gaussian(seed: int, index: int, name: str, factor: str, shape: tuple[int, int]) -> Tensor:
    """The documented stream, drawn as documented: 256 rows at a time, float32, on the CPU."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(derive_seed(seed, "direction", index, name, factor))
    blocks = [torch.randn(min(256, rows - start), columns, generator=generator) for start in range(0, rows, 256)]
    return torch.cat(blocks).double()


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_the_examples_of_the_documentation_are_true() -> None:
    results = doctest.testmod(gauge)
    assert results.attempted >= 5
    assert not results.failed


def test_canonical_factors_are_the_same_matrix_and_balanced() -> None:
    factors = some_factors(rank=3)
    for name, module in canonicalise(factors).items():
        B, A = module.factors.B, module.factors.A
        assert_close(B @ A, matrix(factors[name]), 1e-13)
        for gram in (B.T @ B, A @ A.T):
            torch.testing.assert_close(gram, torch.diag(module.S), rtol=1e-12, atol=1e-12)
        expected = torch.linalg.svdvals(matrix(factors[name]))[:3]
        torch.testing.assert_close(module.S, expected, rtol=1e-12, atol=1e-12)
        assert (module.S.diff() <= 0).all()


def test_canonical_form_keeps_precision_and_rank_of_the_factors() -> None:
    factors = {name: Factors(pair.B.float(), pair.A.float()) for name, pair in some_factors().items()}
    for name, module in canonicalise(factors).items():
        assert module.factors.B.dtype == module.factors.A.dtype == torch.float32
        assert module.factors.B.shape == factors[name].B.shape
        assert module.factors.A.shape == factors[name].A.shape
        assert_close(matrix(module.factors), matrix(factors[name]), 1e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 4)])
def test_rank_above_the_size_of_the_module(shape: tuple[int, int]) -> None:
    """lora.rank may exceed d_out or d_in (grouped keys are narrow): the adapter keeps its shape, surplus places are 0."""
    factors = some_factors(rank=6, shapes={"narrow": shape})
    adapter = canonicalise(factors)
    module = adapter["narrow"]
    assert module.factors.B.shape == (shape[0], 6)
    assert module.factors.A.shape == (6, shape[1])
    assert_close(matrix(module.factors), matrix(factors["narrow"]), 1e-12)
    (direction,) = orthogonal_directions(adapter, 0, 1, 1.0)
    assert WeightUpdate.canonical(adapter).moved([(0.3, direction)])["narrow"].B.shape == (shape[0], 6)
    assert direction.norm() == pytest.approx(1.0, rel=1e-6)


def test_regauged_is_the_same_function_written_otherwise() -> None:
    factors = some_factors(rank=4)
    other = regauged(factors, seed=1)
    for name, pair in factors.items():
        assert_close(matrix(other[name]), matrix(pair), 1e-12)
        M = other[name].A @ torch.linalg.pinv(pair.A)
        singular = torch.linalg.svdvals(M)
        assert singular.max() / singular.min() <= math.exp(4) * (1 + 1e-9)
        # neither a rotation nor a rescaling
        assert singular.max() / singular.min() > 1.5
        assert float((M - M.diag().diag()).abs().max()) > 0.1
    again, differently = regauged(factors, seed=1), regauged(factors, seed=2)
    assert all(torch.equal(again[name].A, other[name].A) for name in factors)
    assert not any(torch.equal(differently[name].A, other[name].A) for name in factors)
    assert len({tuple(regauged(factors, 1)[name].A.flatten().tolist()) for name in factors}) == len(factors)


@pytest.mark.parametrize("rows", [7, 256, 300, 520])
@pytest.mark.parametrize("rank", [1, 3])
def test_directions_equal_their_ambient_closed_forms(rows: int, rank: int) -> None:
    columns, name, seed, index = 11, "layers.3.mlp.up_proj", 5, 2
    factors = some_factors(rank, shapes={name: (rows, columns)})
    dW = matrix(factors[name])
    adapter = canonicalise(factors)
    direction = random_direction(adapter, seed, index)[name]
    dB, dA = direction.B.double(), direction.A.double()
    base = adapter[name].factors
    G1 = gaussian(seed, index, name, "B", (rows, columns))
    G2 = gaussian(seed, index, name, "A", (rows, columns))
    assert_close(dB @ base.A, G1 @ root_of(dW.T @ dW) / math.sqrt(rows), 1e-5)
    assert_close(base.B @ dA, root_of(dW @ dW.T) @ G2 / math.sqrt(columns), 1e-5)
    assert_close(dB @ dA, G1 @ dW.T @ G2 / math.sqrt(rows * columns), 1e-5)


def test_every_direction_module_and_factor_has_a_stream_of_its_own() -> None:
    """Modules of one shape and one matrix: only the names differ."""
    pair = some_factors()["first.q_proj"]
    adapter = canonicalise({"one": pair, "two": pair})
    drawn = [random_direction(adapter, seed, index) for seed in (0, 1) for index in (0, 1)]
    parts = {tuple(d[name].B.flatten().tolist()) for d in drawn for name in ("one", "two")}
    assert len(parts) == 8
    again = random_direction(adapter, 0, 0)
    assert torch.equal(again["two"].A, drawn[0]["two"].A)


def test_directions_have_the_size_of_the_update() -> None:
    """E |dB|^2 = E |dA|^2 = |P|^2 / 2 per module: entries of G V are standard normal, divided by d_out."""
    adapter = canonicalise(some_factors(rank=4, shapes={"w": (200, 300)}))
    direction = random_direction(adapter, 0, 0)["w"]
    half = adapter_norm(adapter) ** 2 / 2
    assert float(direction.B.square().sum()) == pytest.approx(half, rel=0.2)
    assert float(direction.A.square().sum()) == pytest.approx(half, rel=0.2)


SPECTRA = {
    "distinct": [5.0, 3.0, 1.0, 0.2],
    "equal": [2.0, 2.0, 2.0, 2.0],
    "nearly equal": [2.0, 2.0 - 1e-7, 1.0, 1.0 - 1e-9],
    "rank-deficient": [3.0, 1.0, 0.0, 0.0],
    "equal and rank-deficient": [1.0, 1.0, 0.0, 0.0],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_points_of_the_plane_do_not_depend_on_the_gauge(spectrum: str) -> None:
    factors = from_singular_values(SPECTRA[spectrum])

    def plane(written: dict[str, Factors]) -> list[Tensor]:
        adapter = canonicalise(written)
        d, e = orthogonal_directions(adapter, 11, 2, adapter_norm(adapter))
        return [
            matrix(WeightUpdate.canonical(adapter).moved([(a, d), (b, e)])["w"])
            for a, b in ((0, 0), (1, 0), (0, -1), (0.7, 0.4))
        ]

    here = plane(factors)
    gauges = [regauged(factors, seed) for seed in range(3)]
    gauges.append({"w": Factors(B=10 * factors["w"].B, A=factors["w"].A / 10)})
    gauges.append({"w": Factors(B=-factors["w"].B, A=-factors["w"].A)})
    for written in gauges:
        for found, expected in zip(plane(written), here, strict=True):
            assert_close(found, expected, 1e-5)


def test_per_component_gaussians_would_not_survive_equal_singular_values() -> None:
    """Why the Gaussians are ambient: drawn in canonical coordinates they mean another thing in every gauge."""
    factors = from_singular_values(SPECTRA["equal"])
    noise = draw(8, 4, seed=9)

    def drawn_in_canonical_coordinates(written: dict[str, Factors]) -> Tensor:
        base = canonicalise(written)["w"].factors
        return noise @ base.A

    here, there = (drawn_in_canonical_coordinates(written) for written in (factors, regauged(factors, 0)))
    assert float((here - there).norm() / here.norm()) > 0.1


def test_one_index_is_one_ambient_direction_at_two_checkpoints() -> None:
    """G1 and G2, solved for from the directions at two full-rank checkpoints, are the same matrices."""
    shapes = {"w": (5, 5)}
    recovered = []
    for seed in (0, 40):
        adapter = canonicalise(some_factors(rank=5, seed=seed, shapes=shapes))
        base, d = adapter["w"].factors, random_direction(adapter, 3, 1)["w"]
        dW = base.B @ base.A
        G1 = d.B.double() @ base.A @ torch.linalg.inv(root_of(dW.T @ dW)) * math.sqrt(5)
        G2 = torch.linalg.inv(root_of(dW @ dW.T)) @ base.B @ d.A.double() * math.sqrt(5)
        recovered.append((G1, G2))
    (G1, G2), (H1, H2) = recovered
    assert_close(G1, H1, 1e-4)
    assert_close(G2, H2, 1e-4)
    assert_close(G1, gaussian(3, 1, "w", "B", (5, 5)), 1e-4)
    assert_close(G2, gaussian(3, 1, "w", "A", (5, 5)), 1e-4)


def cosines(directions: list[FactorStep]) -> list[float]:
    return [abs(d.inner(e)) / (d.norm() * e.norm()) for n, d in enumerate(directions) for e in directions[:n]]


def test_directions_are_orthogonal_and_of_the_length_asked_for() -> None:
    adapter = canonicalise({n: Factors(p.B.float(), p.A.float()) for n, p in some_factors().items()})
    directions = orthogonal_directions(adapter, 0, 6, 2.5)
    assert max(cosines(directions)) < 1e-6
    assert [d.norm() for d in directions] == pytest.approx([2.5] * 6, rel=1e-6)
    first = random_direction(adapter, 0, 0)
    assert first.inner(directions[0]) == pytest.approx(first.norm() * 2.5, rel=1e-6)


def test_the_later_direction_keeps_what_is_not_along_the_earlier_ones() -> None:
    adapter = canonicalise(some_factors())
    d, e = orthogonal_directions(adapter, 0, 2, 1.0)
    drawn = random_direction(adapter, 0, 1)
    rest = FactorStep.combine([(1.0, drawn), (-drawn.inner(d), d)])
    assert rest.inner(e) == pytest.approx(rest.norm(), rel=1e-6)


def test_nearly_parallel_directions_come_out_orthogonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single projection in float32 would leave a cosine of about 1e-3 here."""
    adapter = canonicalise({n: Factors(p.B.float(), p.A.float()) for n, p in some_factors().items()})

    def nearly_parallel(adapter: object, seed: int, index: int) -> FactorStep:
        first = random_direction(canonical, seed, 0)
        return (
            first
            if index == 0
            else FactorStep.combine([(1.0, first), (1e-4, random_direction(canonical, seed, index))])
        )

    canonical = adapter
    monkeypatch.setattr(directions_module, "random_direction", nearly_parallel)
    directions = orthogonal_directions(adapter, 0, 3, 1.0)
    assert max(cosines(directions)) < 1e-6
    assert [d.norm() for d in directions] == pytest.approx([1.0] * 3, rel=1e-6)


def test_a_fresh_adapter_has_no_directions() -> None:
    """B = 0: every direction of the adapter's own reachable set vanishes, so there is no plane to scale."""
    fresh = {"w": Factors(B=torch.zeros(4, 2), A=torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))}
    adapter = canonicalise(fresh)
    assert adapter_norm(adapter) == 0
    with pytest.raises(UserError, match="delta W = 0"):
        orthogonal_directions(adapter, 0, 2, 1.0)


def test_norms_in_closed_form() -> None:
    factors = some_factors(rank=3)
    adapter = canonicalise(factors)
    values = torch.cat([torch.linalg.svdvals(matrix(pair)) for pair in factors.values()])
    assert adapter_norm(adapter) == pytest.approx(math.sqrt(2 * float(values.sum())), rel=1e-12)
    both = sum(float(m.factors.B.square().sum() + m.factors.A.square().sum()) for m in adapter.values())
    assert adapter_norm(adapter) == pytest.approx(math.sqrt(both), rel=1e-12)
    frobenius = sum(float(matrix(pair).square().sum()) for pair in factors.values())
    assert update_norm(adapter) == pytest.approx(math.sqrt(frobenius), rel=1e-12)
    assert adapter_norm(canonicalise(regauged(factors, 4))) == pytest.approx(adapter_norm(adapter), rel=1e-12)


def test_point_is_the_product_of_the_moved_factors() -> None:
    adapter = canonicalise(some_factors())
    d, e = orthogonal_directions(adapter, 0, 2, 1.0)
    moved = WeightUpdate.canonical(adapter).moved([(0.3, d), (-0.8, e)])
    for name, module in adapter.items():
        base = module.factors
        torch.testing.assert_close(moved[name].B, base.B + 0.3 * d[name].B - 0.8 * e[name].B, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(moved[name].A, base.A + 0.3 * d[name].A - 0.8 * e[name].A, rtol=1e-6, atol=1e-7)


# LoRA regression y = (W0 + B A) x with 18 adapter parameters, trained to its minimum.
D_OUT, D_IN, RANK, SAMPLES = 4, 5, 2, 64


def regression() -> tuple[Callable[[Tensor, Tensor], float], Tensor, Tensor]:
    """The loss of (B, A), and the trained B and A."""
    W0, X, T = draw(D_OUT, D_IN, seed=20), draw(D_IN, SAMPLES, seed=21), draw(D_OUT, D_IN, seed=22)
    Y = T @ X + 0.3 * draw(D_OUT, SAMPLES, seed=23)

    def mean_square(B: Tensor, A: Tensor) -> Tensor:
        return ((W0 + B @ A) @ X - Y).square().sum() / (2 * SAMPLES)

    B, A = draw(D_OUT, RANK, seed=24).mul_(0.5), draw(RANK, D_IN, seed=25).mul_(0.5)
    for _ in range(4000):
        residual = ((W0 + B @ A) @ X - Y) @ X.T / SAMPLES
        B, A = B - 0.05 * residual @ A.T, A - 0.05 * B.T @ residual
    return lambda b, a: float(mean_square(b, a)), B, A


def gauges(B: Tensor, A: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """One function, written four times."""
    stretch = torch.tensor([1.0, 20.0], dtype=torch.float64)
    M = draw(RANK, RANK, seed=26)
    return {
        "trained": (B, A),
        "x10": (10 * B, A / 10),
        "diag(1, 20)": (B / stretch, stretch[:, None] * A),
        "GL(2)": (B @ torch.linalg.inv(M), M @ A),
    }


def test_mean_rise_is_one_number_in_adapter_space_and_four_in_raw_coordinates() -> None:
    loss, B, A = regression()
    base = loss(B, A)
    raw, gauge_free = {}, {}
    for name, (b, a) in gauges(B, A).items():
        assert loss(b, a) == pytest.approx(base, rel=1e-10)
        rises = [
            loss(b + s * 0.25 * draw(*b.shape, seed=100 + n), a + s * 0.25 * draw(*a.shape, seed=200 + n)) - base
            for n in range(40)
            for s in (1, -1)
        ]
        raw[name] = sum(rises) / len(rises)
        adapter = canonicalise({"w": Factors(B=b, A=a)})
        moved = [
            WeightUpdate.canonical(adapter).moved([(s * 0.25, direction)])["w"]
            for direction in orthogonal_directions(adapter, 0, 8, adapter_norm(adapter))
            for s in (1, -1)
        ]
        gauge_free[name] = sum(loss(pair.B, pair.A) - base for pair in moved) / len(moved)
    assert gauge_free["trained"] > 0.05
    for name in ("x10", "diag(1, 20)", "GL(2)"):
        assert gauge_free[name] == pytest.approx(gauge_free["trained"], rel=1e-4)
    assert raw["x10"] > 10 * raw["trained"]
    assert raw["diag(1, 20)"] > 10 * raw["trained"]
    assert abs(raw["GL(2)"] / raw["trained"] - 1) > 0.1


def tiny_landscape(model: LanguageModel, **changes: Any) -> dict[str, Any]:
    items = make_encoded(model, 6)
    settings = {
        "method": "grid",
        "resolution": 3,
        "directions": 3,
        "num_items": 3,
        "self_test_items": 3,
        "distance": 0.7,
    }
    tasks = [("first", items[:3]), ("second", items[3:])]
    return to_plain(
        analyse_landscape(
            model, tasks, LandscapeConfig(**settings | changes), reference_norm=None, advance=lambda steps, text: None
        )
    )


def equalise(model: LanguageModel) -> None:
    """Rewrite every B A so that its singular values are one and the same, with orthogonal factors in a random gauge."""
    for name, layer in target_layers(model.peft_model).items():
        rows, columns = layer.out_features, layer.in_features
        M = draw(2, 2, seed=len(name))
        layer.lora_B["default"].weight.data.copy_(torch.linalg.qr(draw(rows, 2, seed=1))[0] @ torch.linalg.inv(M))
        layer.lora_A["default"].weight.data.copy_(M @ torch.linalg.qr(draw(columns, 2, seed=2))[0].T)


@pytest.mark.parametrize("equal", [False, True])
def test_gauge_self_test_of_a_model_passes(equal: bool, any_folder: Path) -> None:
    model = load(any_folder)
    if equal:
        equalise(model)
        for module in canonicalise(model.adapter_factors()).values():
            torch.testing.assert_close(module.S, torch.full_like(module.S, 2.0), rtol=1e-4, atol=0)
    before = model.adapter_sha256()
    result = tiny_landscape(model)["gauge_self_test"]
    assert result["passed"]
    assert result["items"] == 3
    assert result["value_relative_difference"] < 1e-4
    assert result["value"][0] != result["value"][1]  # two gauges were computed, not one twice
    assert abs(result["second_difference"][0]) > 0.01
    assert model.adapter_sha256() == before


def test_a_direction_of_a_checkpoint_is_drawn_once(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its first once more in the other gauge: the self-test takes what the plane was drawn along."""
    drawn: list[int] = []

    def counted(adapter: CanonicalAdapter, seed: int, index: int) -> FactorStep:
        drawn.append(index)
        return random_direction(adapter, seed, index)

    monkeypatch.setattr(directions_module, "random_direction", counted)
    found = tiny_landscape(load(llama_folder))
    directions = len(next(iter(found["surfaces"].values()))["lines"]["losses"])
    assert drawn == [*range(directions), 0]


def test_gauge_self_test_fails_where_directions_are_raw(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the canonical form (columns of B and rows of A as they happen to be) the self-test must say so."""

    def as_written(factors: dict[str, Factors]) -> CanonicalAdapter:
        return {
            name: ModuleSvd(U=pair.B, S=torch.ones(pair.A.shape[0]), V=pair.A.T.contiguous())
            for name, pair in factors.items()
        }

    model = load(llama_folder)
    monkeypatch.setattr(landscape_analysis, "canonicalise", as_written)
    assert not tiny_landscape(model)["gauge_self_test"]["passed"]


class Recomputed:
    """Losses of plain `tiny_llama` at points of the plane of `tiny_landscape`, B A put into its weights; no PEFT, no batch."""

    def __init__(self, model: LanguageModel) -> None:
        items = make_encoded(model, 6)
        self.groups = {"first": items[:3], "second": items[3:]}
        self.adapter = canonicalise(model.adapter_factors())
        self.directions = orthogonal_directions(self.adapter, 0, 3, adapter_norm(self.adapter))
        self.backbone = tiny_llama()
        self.modules = dict(self.backbone.named_modules())
        self.frozen = {name: self.modules[name].weight.detach().clone() for name in self.adapter}

    def losses(self, steps: list[float]) -> dict[str, float]:
        for name, pair in (
            WeightUpdate.canonical(self.adapter).moved(list(zip(steps, self.directions, strict=False))).items()
        ):
            self.modules[name].weight.data = self.frozen[name] + pair.B @ pair.A
        with torch.no_grad():
            return {task: sum(map(self._loss, group)) / len(group) for task, group in self.groups.items()}

    def _loss(self, item: EncodedItem) -> float:
        logits = self.backbone(input_ids=torch.tensor([item.input_ids])).logits[0, -1]
        return float(F.cross_entropy(logits, torch.tensor(item.letter_ids[item.item.answer])))


def test_landscape_of_a_model_is_the_loss_at_the_points_it_names(llama_folder: Path) -> None:
    """Both tasks, one corner and the centre, recomputed by putting B A into the frozen weights."""
    model = load(llama_folder)
    result, again = tiny_landscape(model), Recomputed(model)
    assert result["method"] == "grid"
    assert result["alphas"] == result["betas"] == [-0.7, 0.0, 0.7]
    for i, j in ((0, 2), (1, 1)):
        for task, expected in again.losses([result["alphas"][i], result["betas"][j]]).items():
            surface = result["surfaces"][task]
            assert surface["loss"][i][j] == pytest.approx(expected, rel=1e-4)
            assert list(surface["items"]) == [item.item.id for item in again.groups[task]]
    surface = result["surfaces"]["first"]
    assert surface["error"] is result["fit"] is result["note"] is None
    assert result["points"] == [[a, b] for a in result["alphas"] for b in result["betas"]]
    assert surface["measured_loss"] == [loss for row in surface["loss"] for loss in row]
    assert surface["metrics"]["centre"] == surface["loss"][1][1]
    ends = [(surface["loss"][0][1], surface["loss"][2][1]), (surface["loss"][1][0], surface["loss"][1][2])]
    in_plane = [sum(pair) / 2 - surface["loss"][1][1] for pair in ends]
    third = sum(again.losses([0, 0, step])["first"] for step in (-0.7, 0.7)) / 2 - surface["loss"][1][1]
    rises = torch.tensor([*in_plane, third])
    assert surface["mean_rise"]["directions"] == 3
    assert surface["mean_rise"]["value"] == pytest.approx(float(rises.mean()), rel=1e-4)
    assert surface["mean_rise"]["stderr"] == pytest.approx(float(rises.std()) / math.sqrt(3), rel=1e-4)
    assert abs(result["direction_cosine"]) < 1e-6
    assert result["relative_scale"] == 1.0
    # Nine cells; the third direction at four steps, its centre being the plane's.
    assert result["evaluations"] == 9 + 4


@pytest.mark.slow
def test_a_fitted_landscape_is_the_loss_at_every_point_up_to_the_error_it_states(llama_folder: Path) -> None:
    """Evaluated points exactly; cells of the plane and steps of the lines that were not evaluated within the stated error."""
    model = load(llama_folder)
    result = tiny_landscape(model, method="spectral", resolution=9, distance=0.25, max_evaluations=90)
    again = Recomputed(model)
    fit = result["fit"]
    assert result["method"] == "spectral"
    assert fit["converged"]
    assert fit["evaluations"] == len(result["points"]) <= 90
    assert result["evaluations"] == fit["evaluations"] + 4
    assert [0.0, 0.0] in result["points"]
    for n in (0, 7, len(result["points"]) - 1):
        for task, expected in again.losses(result["points"][n]).items():
            assert result["surfaces"][task]["measured_loss"][n] == pytest.approx(expected, rel=1e-4)
    for i, j in ((0, 8), (4, 4), (1, 6), (7, 3)):
        for task, expected in again.losses([result["alphas"][i], result["betas"][j]]).items():
            surface = result["surfaces"][task]
            assert abs(surface["loss"][i][j] - expected) < 3 * surface["error"]["largest"] + 1e-4
    for task, surface in result["surfaces"].items():
        scale = min(surface["metrics"]["range"], 2.0)
        assert 0 < surface["error"]["relative"] <= fit["tolerance"] == 0.01
        assert surface["error"]["largest"] == pytest.approx(surface["error"]["relative"] * scale, rel=0.05)
        assert surface["metrics"]["centre"] == surface["loss"][4][4]
        lines = surface["lines"]
        for direction, step, allowed in (
            (0, 10, 3 * surface["error"]["largest"]),
            (1, 70, 3 * surface["error"]["largest"]),
            (2, 0, 1e-4),  # at a node
            (2, 20, 1e-4),
            (2, 33, 0.05 * scale),  # between nodes
        ):
            expected = again.losses([*[0.0] * direction, lines["steps"][step]])[task]
            assert lines["losses"][direction][step] == pytest.approx(expected, abs=allowed)


def test_distance_is_counted_in_the_reference_norm(llama_folder: Path) -> None:
    model = load(llama_folder)
    items = make_encoded(model, 3)
    config = LandscapeConfig(method="grid", resolution=3, directions=2, num_items=3, self_test_items=1, distance=0.4)
    own = adapter_norm(canonicalise(model.adapter_factors()))

    def loss(distance: float, reference: float | None) -> Any:
        settings = replace(config, distance=distance)
        return to_plain(
            analyse_landscape(
                model, [("t", items)], settings, reference_norm=reference, advance=lambda steps, text: None
            )
        )

    half = loss(0.4, own / 2)
    assert half["relative_scale"] == pytest.approx(2)
    expected = loss(0.2, None)["surfaces"]["t"]["loss"]
    assert torch.tensor(half["surfaces"]["t"]["loss"]).flatten().tolist() == pytest.approx(
        torch.tensor(expected).flatten().tolist(), rel=1e-5
    )


def test_landscape_of_a_fresh_adapter_is_refused(llama_folder: Path) -> None:
    with pytest.raises(UserError, match="must have been trained"):
        tiny_landscape(load(llama_folder, trained=False))
