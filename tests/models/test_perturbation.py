"""Moving a model: merged or beside, one point or several, and back without a trace; what it costs in memory."""

import gc
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import Everything
from tiny_models import load, make_encoded, save, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.spaces import NoisyUpdate, WeightDirection, WeightSpace
from llm_forgetting.models.adapter import perturbation
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.language.batches import EncodedItem, collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score, score_points

pytestmark = pytest.mark.usefixtures("one_thread")

Tensor = torch.Tensor
Point = Mapping[str, Factors]


def updates(model: LanguageModel, seed: int, rank: int = 2, size: float = 0.1) -> dict[str, Factors]:
    """A random point of the given rank."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            B=size * torch.randn(pair.B.shape[0], rank, generator=generator),
            A=torch.randn(rank, pair.A.shape[1], generator=generator),
        )
        for name, pair in model.adapter_factors().items()
    }


def logits(model: LanguageModel, items: Sequence[EncodedItem]) -> Tensor:
    with torch.inference_mode():
        return model.answer_logits(collate(items, model.pad_id)).clone()


@contextmanager
def one_beside(model: LanguageModel) -> Iterator[Callable[[Point], None]]:
    with model.unmerged() as move:
        yield lambda point: move([point])


@pytest.fixture(scope="module")
def models(llama_folder: Path, gpt2_folder: Path) -> dict[str, LanguageModel]:
    return {"llama": load(llama_folder), "gpt2": load(gpt2_folder)}


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, models: dict[str, LanguageModel]) -> LanguageModel:
    """One for all tests: every one of them leaves it as it was."""
    return models[request.param]


WAYS: dict[str, Callable[[LanguageModel], AbstractContextManager[Callable[[Point], None]]]] = {
    "merged": LanguageModel.perturbed,
    "beside": one_beside,
}
both_ways = pytest.mark.parametrize("way", WAYS)


# The same function


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_merged_and_beside_are_one_function(model: LanguageModel, rank: int) -> None:
    items, point = make_encoded(model, 4), updates(model, 1, rank)
    made = {}
    for way, moving in WAYS.items():
        with moving(model) as move:
            move(point)
            made[way] = logits(model, items)
    torch.testing.assert_close(made["merged"], made["beside"], rtol=0, atol=1e-5)
    assert float((made["merged"] - logits(model, items)).abs().max()) > 0.1


@both_ways
def test_the_own_update_is_the_model_itself_and_none_the_backbone(model: LanguageModel, way: str) -> None:
    items = make_encoded(model, 4)
    own, factors = logits(model, items), model.adapter_factors()
    with model.peft_model.disable_adapter():
        bare = logits(model, items)
    with WAYS[way](model) as move:
        move(factors)
        torch.testing.assert_close(logits(model, items), own, rtol=0, atol=1e-5)
        move({name: Factors(B=0 * pair.B, A=pair.A) for name, pair in factors.items()})
        torch.testing.assert_close(logits(model, items), bare, rtol=0, atol=1e-5)


def test_merged_weights_are_w_plus_b_a(model: LanguageModel) -> None:
    layers, point = target_layers(model.peft_model), updates(model, 1, 3)
    expected = {
        name: (weight.T if layer.fan_in_fan_out else weight).double() + point[name].B.double() @ point[name].A.double()
        for name, layer in layers.items()
        for weight in [layer.get_base_layer().weight.detach()]
    }
    for name, layer in layers.items():
        found = perturbation.merged_weight(layer, point[name]).double()
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-6)
    with model.perturbed() as move:
        move(point)
        for name, layer in layers.items():
            weight = layer.get_base_layer().weight.detach()
            found = (weight.T if layer.fan_in_fan_out else weight).double()
            torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-6)


@both_ways
def test_nothing_drifts_over_many_moves(model: LanguageModel, way: str) -> None:
    """Every point is reached from the snapshot: the hundredth visit is the first, bit for bit."""
    items, first = make_encoded(model, 2), updates(model, 0)
    with WAYS[way](model) as move:
        move(first)
        expected = logits(model, items)
        for seed in range(1, 30):
            move(updates(model, seed, size=10.0))
        move(first)
        assert torch.equal(logits(model, items), expected)


# Several points at once


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 4, 2), (3,)])
def test_points_side_by_side_are_points_one_by_one(model: LanguageModel, ranks: tuple[int, ...]) -> None:
    items = make_encoded(model, 7, options=[4, 5, 3])
    points = [updates(model, seed, rank) for seed, rank in enumerate(ranks)]
    with model.unmerged() as move:
        move(points)
        together = score_points(model, items, 3, len(points))
    with model.perturbed() as move_one:
        for found, point in zip(together, points, strict=True):
            move_one(point)
            alone = score(model, items, 3)
            np.testing.assert_allclose(found.letter_logits, alone.letter_logits, atol=1e-5)
            np.testing.assert_allclose(found.rest, alone.rest, atol=1e-5)
            np.testing.assert_array_equal(found.answers, alone.answers)
    spread = np.ptp([found.rest for found in together], axis=0).max()
    assert (spread > 0.1) == (len(points) > 1)


def test_a_later_smaller_set_of_points_replaces_the_earlier(model: LanguageModel) -> None:
    items, points = make_encoded(model, 3), [updates(model, seed, 2 + seed) for seed in range(3)]
    with model.unmerged() as move:
        move(points[::-1])
        move(points[:2])
        together = score_points(model, items, 3, 2)
        for found, point in zip(together, points, strict=False):
            move([point])
            np.testing.assert_allclose(found.rest, score(model, items, 3).rest, atol=1e-5)


# Back without a trace


class Broken(dict[str, Factors]):
    """A point that stops whoever asks for its last module."""

    def __init__(self, point: Point, kind: type[BaseException]) -> None:
        super().__init__(point)
        self.last, self.kind = list(point)[-1], kind

    def __getitem__(self, name: str) -> Factors:
        if name == self.last:
            raise self.kind("in the middle of a move")
        return super().__getitem__(name)


@both_ways
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["after the last move", "between moves", "in the middle of a move"])
def test_every_bit_is_restored(model: LanguageModel, way: str, kind: type[BaseException], where: str) -> None:
    assert model.supports_packing
    before = Everything(model.peft_model)

    def walk() -> None:
        with WAYS[way](model) as move:
            for seed in range(3):
                move(updates(model, seed))
            if where == "between moves":
                raise kind("between moves")
            if where == "in the middle of a move":
                move(Broken(updates(model, 3), kind))
        raise kind("after the last move")

    with pytest.raises(kind, match=where):
        walk()
    before.assert_same(model.peft_model)


def test_ctrl_c_while_weights_are_restored_leaves_none_unrestored(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Everything(model.peft_model)
    copy, calls = torch.Tensor.copy_, []

    def impatient(self: Tensor, other: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) in (2, 4):
            signal.raise_signal(signal.SIGINT)
        return copy(self, other)

    def walk() -> None:
        with model.perturbed() as move:
            move(updates(model, 0))
            monkeypatch.setattr(torch.Tensor, "copy_", impatient)

    with pytest.raises(KeyboardInterrupt):
        walk()
    monkeypatch.undo()
    assert len(calls) > 4
    before.assert_same(model.peft_model)


@both_ways
def test_a_model_in_training_is_left_in_training(llama_folder: Path, way: str) -> None:
    model = load(llama_folder)
    assert model.supports_packing
    model.peft_model.train()
    before = Everything(model.peft_model)
    with WAYS[way](model) as move:
        move(updates(model, 0))
    before.assert_same(model.peft_model)


def test_row_norms_are_those_of_the_update_that_is_asked_for(model: LanguageModel) -> None:
    other = WeightUpdate(updates(model, 1))
    norms = model.weight_row_norms(other)
    for name, layer in target_layers(model.peft_model).items():
        weight = layer.get_base_layer().weight.double()
        weight = weight.T if layer.fan_in_fan_out else weight
        expected = (weight + other[name].B.double() @ other[name].A.double()).norm(dim=1)
        torch.testing.assert_close(norms[name].double(), expected, rtol=1e-6, atol=0)


def test_an_interrupted_draw_of_noise_is_undone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Everything(model.peft_model)
    space = WeightSpace(model.adapter_factors(), model.weight_row_norms())
    (d,) = space.directions(0, 1, space.norm)
    drawn = NoisyUpdate.blocks

    def interrupted(self: NoisyUpdate) -> Iterator[tuple[slice, Tensor]]:
        for entry in drawn(self):
            yield entry
            raise KeyboardInterrupt

    monkeypatch.setattr(NoisyUpdate, "blocks", interrupted)
    with pytest.raises(KeyboardInterrupt), model.perturbed() as move:
        move(space.point([(1.0, d)]))
    before.assert_same(model.peft_model)


@both_ways
def test_a_frozen_adapter_stays_frozen(llama_folder: Path, way: str) -> None:
    model = load(llama_folder)
    model.peft_model.requires_grad_(False)
    with WAYS[way](model) as move:
        move(updates(model, 0))
    assert not any(part.requires_grad for part in model.peft_model.parameters())


def test_beside_never_writes_a_weight(model: LanguageModel) -> None:
    assert model.supports_packing
    weights = dict(model.peft_model.named_parameters())
    versions = {name: weight._version for name, weight in weights.items()}
    with model.unmerged() as move:
        move([updates(model, 0), updates(model, 1)])
        score_points(model, make_encoded(model, 3), 3, 2)
        assert {name: weight._version for name, weight in weights.items()} == versions
    assert {name: weight._version for name, weight in weights.items()} == versions


def test_weight_space_is_the_same_beside_the_weights(model: LanguageModel) -> None:
    before = Everything(model.peft_model)
    items = make_encoded(model, 3)
    space = WeightSpace(model.adapter_factors(), model.weight_row_norms())
    (d,) = space.directions(0, 1, space.norm)
    surfaces = []
    for way in (model.perturbed, one_beside):
        with way(model) if way is one_beside else way() as move:
            for step in (0.3, 0.0):
                move(space.point([(step, d)]))
                surfaces.append(score(model, items, 3).rest)
    np.testing.assert_allclose(surfaces[:2], surfaces[2:], rtol=0, atol=2e-5)
    assert np.abs(surfaces[0] - surfaces[1]).max() > 1e-2
    with model.unmerged() as move_all, pytest.raises(ValueError, match="computed alone, got 2 points"):
        move_all([space.point([(0.5, d)]), updates(model, 0)])
    before.assert_same(model.peft_model)


# Low precision


def test_bfloat16_is_perturbed_beside_untouched_weights(any_folder: Path) -> None:
    model = load(any_folder, dtype="bfloat16")
    assert not model.can_merge
    before = Everything(model.peft_model)
    items, exact = make_encoded(model, 4), load(any_folder)
    point = updates(model, 0)
    with model.perturbed() as move:
        move(point)
        found = score(model, items, 4)
        before.assert_same_tensors(Everything(model.peft_model))
    with exact.perturbed() as move:
        move(point)
        expected = score(exact, items, 4)
    np.testing.assert_allclose(found.letter_logits, expected.letter_logits, atol=0.3)
    np.testing.assert_allclose(found.rest, expected.rest, atol=0.3)
    before.assert_same(model.peft_model)


def test_a_bfloat16_update_is_computed_in_single_precision(llama_folder: Path) -> None:
    """B A far below the rounding of W itself still reaches the output of every layer; natively the sum is rounded."""
    model = load(llama_folder, dtype="bfloat16")
    name, layer = next(iter(target_layers(model.peft_model).items()))
    point = updates(model, 0, size=0.05)
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    update = x[0].float() @ point[name].A.T @ point[name].B.T
    for arithmetic in ("float32", "native"):
        model.arithmetic = arithmetic
        with model.unmerged() as move, torch.inference_mode():
            move([{n: Factors(B=0 * pair.B, A=pair.A) for n, pair in point.items()}])
            bare = layer(x)
            move([point, updates(model, 1)])
            moved = layer(x)[0]
        expected = bare[0] + update.to(bare.dtype)
        torch.testing.assert_close(moved, expected, rtol=0, atol=0 if arithmetic == "native" else 1e-6)
        assert moved.dtype == model.precision


def test_a_tied_head_is_perturbed_beside(tmp_path: Path) -> None:
    """Writing into it would move the embedding too."""
    folder = save(tmp_path, tiny_llama(tie_word_embeddings=True))
    with pytest.warns(UserWarning, match="tie"):
        model = load(folder, target_modules=("lm_head", "q_proj"))
    assert not model.can_merge
    embedding = model.peft_model.get_base_model().model.embed_tokens.weight
    before = embedding.detach().clone()
    items = make_encoded(model, 3)
    own = logits(model, items)
    with model.perturbed() as move:
        move(model.adapter_factors())
        assert torch.equal(embedding, before)
        torch.testing.assert_close(logits(model, items), own, rtol=0, atol=1e-5)


# Memory


class Layer:
    """What a LoRA layer is to `perturbation`."""

    def __init__(self, rows: int, columns: int) -> None:
        self.weight = torch.full((rows, columns), 0.01)
        self.fan_in_fan_out = False

    def get_base_layer(self) -> "Layer":
        return self


def live_bytes() -> int:
    """Bytes of all tensors alive."""
    storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it held at any time, those of a moment included."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, made = tree_leaves((args, kwargs)), func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in given if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in old | self.live.keys():
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata)
        self.most = max(self.most, sum(self.live.values()))
        return made


def test_a_move_needs_a_few_rows_for_a_moment() -> None:
    rows, columns = 8192, 1024
    layers, pair = {"one": Layer(rows, columns)}, Factors(B=torch.ones(rows, 8), A=torch.ones(8, columns))
    noisy = {"one": NoisyUpdate(pair.B, pair.A, torch.ones(rows), "one", WeightDirection(0, (0.5, 0.1)))}
    with Peak() as peak, perturbation.merged(layers) as move:
        snapshot = peak.most
        move({"one": pair})
        move(noisy)
    assert snapshot == 4 * rows * columns
    assert snapshot < peak.most < 1.3 * snapshot


def test_drawing_weight_directions_needs_a_few_rows_where_they_are_not_kept() -> None:
    rows, columns = 8192, 1024
    pair = Factors(B=torch.ones(rows, 1), A=torch.ones(1, columns))
    space = WeightSpace(WeightUpdate({"w": pair}), {"w": torch.ones(rows)})
    with Peak() as peak:
        space.directions(0, 2, 1.0)
    assert 0 < peak.most < 0.4 * 4 * rows * columns


def test_a_scan_costs_one_copy_of_the_weights_it_touches() -> None:
    """Low-rank steps and steps in weight space, 64 MB of weights: the snapshot, and nothing else of that size."""
    rows, columns = 8192, 1024
    layers = {"one": Layer(rows, columns), "two": Layer(rows, columns)}
    touched = 2 * 4 * rows * columns
    generator = torch.Generator().manual_seed(0)
    pair = Factors(B=torch.randn(rows, 8, generator=generator), A=torch.randn(8, columns, generator=generator))
    point = dict.fromkeys(layers, pair)
    norms = {name: layer.weight.norm(dim=1) for name, layer in layers.items()}
    noise = WeightDirection(0, (0.5, 0.1))
    noisy = {name: NoisyUpdate(pair.B, pair.A, norms[name], name, noise) for name in layers}
    before = live_bytes()
    with perturbation.merged(layers) as move:
        move(point)
        move(noisy)
        assert 0.95 * touched < live_bytes() - before < 1.05 * touched
        block = next(iter(noisy["one"].blocks()))[1]
        assert block.numel() * 4 < 0.05 * touched
    assert live_bytes() - before < 0.05 * touched
    assert all(bool((layer.weight == 0.01).all()) for layer in layers.values())
