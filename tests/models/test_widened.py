"""Float32 arithmetic over narrow weights: the numbers of a float32 model that holds the same weights, and nothing kept."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise
from llm_forgetting.landscape.spaces import WeightSpace
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.widened import NARROW, passing_weight, wide_weight, widened
from llm_forgetting.models.hessian.products import Method, products_at, supports_tangent_pass
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score, score_points
from llm_forgetting.models.language.text_loss import Passage, text_losses
from tests.tiny_models import load, make_encoded

ITEMS = [4, 4, 4]
dtypes = pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])


def twins(folder: Path, dtype: str) -> tuple[LanguageModel, LanguageModel]:
    """A narrow model, and the float32 model whose weights are the same numbers."""
    narrow, wide = load(folder, dtype=dtype), load(folder, dtype="float32")
    with torch.no_grad():
        for name, weight in wide.peft_model.named_parameters():
            if "lora_" not in name:
                weight.copy_(weight.to(narrow.dtype))
    narrow.set_adapter_state(wide.adapter_state())
    return narrow, wide


def letters(model: LanguageModel, point: WeightUpdate, items: Any) -> np.ndarray:
    with model.perturbed() as move:
        move(point)
        return score(model, items, 2).letter_logits


@dtypes
def test_scans_of_a_narrow_model_are_those_of_its_float32_twin(any_folder: Path, dtype: str) -> None:
    narrow, wide = twins(any_folder, dtype)
    items, point = make_encoded(narrow, 3, ITEMS), wide.adapter_factors()
    expected = letters(wide, point, items)
    np.testing.assert_allclose(letters(narrow, point, items), expected, rtol=0, atol=2e-5)
    with narrow.unmerged() as move:
        move([point, point.moved([(0.5, FactorStep(point))])])
        first, second = score_points(narrow, items, 3, 2)
    np.testing.assert_allclose(first.letter_logits, expected, rtol=0, atol=2e-5)
    assert np.abs(second.letter_logits - expected).max() > 1e-2
    narrow.arithmetic = "native"
    rough = np.abs(letters(narrow, point, items) - expected).max()
    assert rough > 2e-4  # which is why native is no default


@dtypes
@pytest.mark.parametrize("method", ["tangent", "graph"])
def test_products_of_a_narrow_model_are_those_of_its_float32_twin(
    llama_folder: Path, dtype: str, method: Method
) -> None:
    narrow, wide = twins(llama_folder, dtype)
    assert supports_tangent_pass(narrow)
    items = make_encoded(narrow, 3, ITEMS)
    base = WeightUpdate.canonical(canonicalise(wide.adapter_factors()))
    step = FactorStep({name: Factors(torch.sign(pair.B), torch.sign(pair.A)) for name, pair in base.items()})
    found: list[list[float]] = []
    images = []
    for model in (narrow, wide):
        with products_at(model, items, base, method=method) as products:
            along = products.along_update(base)
            images.append(products.hessian(step))
            found.append([along.loss, along.slope, along.curvature, products.gradient().norm()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
    difference = FactorStep.combine([(1.0, images[0]), (-1.0, images[1])])
    assert difference.norm() < 1e-4 * images[1].norm()


@dtypes
def test_weight_space_of_a_narrow_model_is_that_of_its_float32_twin(llama_folder: Path, dtype: str) -> None:
    narrow, wide = twins(llama_folder, dtype)
    items, factors = make_encoded(narrow, 3, ITEMS), wide.adapter_factors()
    surfaces = []
    for model in (narrow, wide):
        space = WeightSpace(factors, model.weight_row_norms())
        (d,) = space.directions(0, 1, space.norm)
        surfaces.append([letters(model, space.point([(t, d)]), items) for t in (0.0, 0.3)])
    np.testing.assert_allclose(surfaces[0], surfaces[1], rtol=0, atol=2e-5)
    assert np.abs(surfaces[1][1] - surfaces[1][0]).max() > 1e-2


@pytest.mark.parametrize("ending", [None, ValueError])
def test_the_model_is_as_before(any_folder: Path, ending: type[Exception] | None) -> None:
    model = load(any_folder, dtype="bfloat16")
    model.arithmetic = "native"  # else scores on a CPU are computed in float32 too
    inner = model.peft_model.get_base_model()
    weights = {name: (p.data_ptr(), p.clone()) for name, p in inner.named_parameters()}
    forwards = {name: "forward" in vars(module) for name, module in inner.named_modules()}
    items = make_encoded(model, 2)
    native = score(model, items, 2).letter_logits

    def leave() -> None:
        with widened(inner):
            assert not np.array_equal(score(model, items, 2).letter_logits, native)
            if ending is not None:
                raise ending

    if ending is None:
        leave()
    else:
        with pytest.raises(ending):
            leave()
    assert {name: "forward" in vars(module) for name, module in inner.named_modules()} == forwards
    for name, parameter in inner.named_parameters():
        pointer, copy = weights[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, copy)
    assert np.array_equal(score(model, items, 2).letter_logits, native)


def test_a_float32_model_is_left_alone(any_folder: Path) -> None:
    inner = load(any_folder).peft_model.get_base_model()
    with widened(inner):
        assert not any("forward" in vars(module) for module in inner.modules())


def test_no_wide_weight_is_kept_for_a_backward_pass(llama_folder: Path) -> None:
    """A graph of the backbone holds no float32 matrix of its weights: at 7B they would take 26 GB."""
    model = load(llama_folder, dtype="bfloat16")
    shapes = {tuple(layer.get_base_layer().weight.shape) for layer in target_layers(model.peft_model).values()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    factors = model.lora.live()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), model.unmerged() as move:
        move([factors])
        ids = torch.arange(4, 12)[None]
        model.peft_model(input_ids=ids).logits.float().sum().backward()
    assert kept
    assert not shapes & set(kept)


def mixtral() -> Any:
    return transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip


FAMILIES = {
    "gemma": lambda: transformers.GemmaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16
    ),
    "neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=4),
    "falcon": lambda: transformers.FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4),
    "phi": lambda: transformers.PhiConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    ),
    "mixtral": mixtral,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_in_float32(family: str) -> None:
    """transformers' own modules, unlike each other: every one gives what its float32 twin gives."""
    torch.manual_seed(0)
    narrow = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.bfloat16).eval()
    wide = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32).eval()
    wide.load_state_dict(narrow.state_dict())
    ids = torch.randint(4, 40, (2, 9))
    with torch.no_grad():
        expected = wide(input_ids=ids).logits
        with widened(narrow):
            found = narrow(input_ids=ids).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max().clamp(min=1)))


def test_a_wide_weight_is_the_same_numbers() -> None:
    narrow, wide = torch.nn.Linear(3, 4, dtype=torch.bfloat16), torch.nn.Linear(3, 4)
    assert wide_weight(wide).data_ptr() == wide.weight.data_ptr()
    assert wide_weight(narrow).dtype == torch.float32
    assert torch.equal(wide_weight(narrow), narrow.weight.float())
    assert set(NARROW) == {torch.bfloat16, torch.float16}


@dtypes
def test_scores_on_a_cpu_are_those_of_the_float32_twin_unless_arithmetic_is_native(
    llama_folder: Path, dtype: str
) -> None:
    narrow, wide = twins(llama_folder, dtype)
    items = make_encoded(narrow, 3, ITEMS)
    expected = score(wide, items, 2).letter_logits
    np.testing.assert_allclose(score(narrow, items, 2).letter_logits, expected, rtol=0, atol=2e-5)
    text = [Passage("passage/0", items[0].input_ids)]
    assert text_losses(narrow, text) == pytest.approx(text_losses(wide, text), rel=1e-5)
    narrow.arithmetic = "native"
    assert np.abs(score(narrow, items, 2).letter_logits - expected).max() > 1e-4


def test_widened_weights_of_a_thread_pass_through_one_memory() -> None:
    layers = [torch.nn.Linear(n, 5, dtype=torch.bfloat16).requires_grad_(False) for n in (30, 20)]
    places = []

    def widen() -> None:
        for layer in layers:
            weight = passing_weight(layer)
            assert torch.equal(weight, layer.weight.float())
            places.append(weight.data_ptr())

    with torch.inference_mode():  # what is kept from here must do for a backward pass as well
        widen()
    thread = threading.Thread(target=widen)
    thread.start()
    thread.join()
    assert places[0] == places[1] != places[2] == places[3]
    x = torch.randn(4, 30, requires_grad=True)
    with widened(torch.nn.ModuleList(layers)):
        y, z = layers[0](x), layers[1](torch.ones(1, 20))
        y.sum().backward()
    torch.testing.assert_close(y, torch.nn.functional.linear(x, layers[0].weight.float(), layers[0].bias.float()))
    torch.testing.assert_close(
        z, torch.nn.functional.linear(torch.ones(1, 20), *map(torch.Tensor.float, layers[1].parameters()))
    )
    torch.testing.assert_close(x.grad, layers[0].weight.float().sum(0).expand(4, 30))
