"""Quantised backbones: scores, points, products and training against plain models whose weights were quantised by hand."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import peft
import pytest
import torch
from small_models import Everything
from tiny_models import fill_adapter, load, make_encoded, plain_losses, save, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment import guards
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise
from llm_forgetting.landscape.spaces import WeightSpace
from llm_forgetting.models.adapter.attach import target_layers
from llm_forgetting.models.adapter.requantised import Kind, requantised
from llm_forgetting.models.adapter.widened import keep_layout, wide_weight
from llm_forgetting.models.hessian.products import Method, products_at
from llm_forgetting.models.language import quantisation
from llm_forgetting.models.language.allocation_count import GRANULE, counting
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.backbones import load_backbone
from llm_forgetting.models.language.batches import collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.quantisation import WeightlessQuantised
from llm_forgetting.models.language.scoring import score, score_points
from llm_forgetting.models.language.weightless import weightless_model

KINDS: tuple[Kind, ...] = ("4bit", "8bit")
ITEMS = [4, 4, 4]
pytestmark = pytest.mark.filterwarnings("ignore:.*non-writable:UserWarning")
Model = dict[str, Any]


def quantised(folder: Path, kind: Kind, **model: Any) -> LanguageModel:
    """Rank 2 and s = 1, so that B A is added to the same products as PEFT adds."""
    config = ModelConfig(name=str(folder), quantization=kind, **model)
    loaded = LanguageModel.load(config, LoraConfig(rank=2, alpha=2.0), seed=0)
    fill_adapter(loaded.peft_model)
    return loaded


def by_hand(weight: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What bitsandbytes' functions make of a weight (d_out, d_in) and back."""
    functional: Any = bitsandbytes.functional
    if kind == "8bit":
        rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return functional.int8_vectorwise_dequant(rows, scales)
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))


def twin_of(model: LanguageModel, folder: Path, kind: Kind) -> LanguageModel:
    """The float32 model that holds the dequantised weights, and the adapter of `model`."""
    twin = load(folder, trained=False, alpha=2.0)
    with torch.no_grad():
        for layer in target_layers(twin.peft_model).values():
            weight, turned = layer.get_base_layer().weight, layer.fan_in_fan_out
            found = by_hand((weight.T if turned else weight).contiguous(), kind)
            weight.copy_(found.T if turned else found)
    twin.set_adapter_state(model.adapter_state())
    return twin


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="module")
def pair(kind: Kind, llama_folder: Path) -> tuple[LanguageModel, LanguageModel]:
    model = quantised(llama_folder, kind)
    return model, twin_of(model, llama_folder, kind)


def letters(model: LanguageModel, point: WeightUpdate, items: Any) -> np.ndarray:
    with model.perturbed() as move:
        move(point)
        return score(model, items, 2).letter_logits


def test_points_are_those_of_the_dequantised_model(pair: tuple[LanguageModel, LanguageModel]) -> None:
    """Alone, side by side and in weight space; nothing is merged, and every bit is as before."""
    model, twin = pair
    items, point = make_encoded(model, 3, ITEMS), twin.adapter_factors()
    assert not model.can_merge
    before = {name: tensor.clone() for name, tensor in model.peft_model.state_dict().items()}
    np.testing.assert_allclose(score(model, items, 2).letter_logits, score(twin, items, 2).letter_logits, atol=1e-5)
    expected = letters(twin, point, items)
    np.testing.assert_allclose(letters(model, point, items), expected, atol=1e-5)
    with model.unmerged() as move:
        move([point, point.moved([(0.5, FactorStep(point))])])
        first, second = score_points(model, items, 3, 2)
    np.testing.assert_allclose(first.letter_logits, expected, atol=1e-5)
    assert np.abs(second.letter_logits - expected).max() > 1e-2
    surfaces = []
    for each in (model, twin):
        space = WeightSpace(point, each.weight_row_norms())
        (d,) = space.directions(0, 1, space.norm)
        surfaces.append(letters(each, space.point([(0.3, d)]), items))
    np.testing.assert_allclose(surfaces[0], surfaces[1], atol=2e-5)
    after = model.peft_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("method", ["tangent", "graph"])
def test_products_are_those_of_the_dequantised_model(pair: tuple[LanguageModel, LanguageModel], method: Method) -> None:
    model, twin = pair
    items = make_encoded(model, 3, ITEMS)
    base = WeightUpdate.canonical(canonicalise(twin.adapter_factors()))
    step = FactorStep({name: Factors(torch.sign(p.B), torch.sign(p.A)) for name, p in base.items()})
    found, images = [], []
    for each, how in ((model, method), (twin, "graph")):
        with products_at(each, items, base, method=how) as products:  # type: ignore[arg-type]
            along = products.along_update(base)
            images.append(products.hessian(step))
            found.append([along.loss, along.slope, along.curvature, products.gradient().norm()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
    difference = FactorStep.combine([(1.0, images[0]), (-1.0, images[1])])
    assert difference.norm() < 1e-4 * images[1].norm()


def test_native_points_are_those_of_plain_peft(kind: Kind, llama_folder: Path) -> None:
    """transformers' own loading, PEFT's own forward: equal to the bit, item by item, with weights as they lie."""
    model = quantised(llama_folder, kind)
    model.arithmetic = "native"
    items = make_encoded(model, 3, ITEMS)
    settings: Model = {"load_in_8bit": True} if kind == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    plain = AutoModelForCausalLM.from_pretrained(
        llama_folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32
    )
    keep_layout(plain)
    plain = peft.get_peft_model(plain, model.peft_model.peft_config["default"]).eval()
    peft.set_peft_model_state_dict(plain, model.adapter_state())
    with torch.inference_mode(), model.perturbed() as move:
        move(model.adapter_factors())
        for item in items:
            found = score(model, [item], 1, packed=False).letter_logits
            batch = collate([item], model.pad_id)
            given = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}
            logits = plain(**given, logits_to_keep=1, use_cache=False).logits[0, -1]
            assert np.array_equal(found[0], logits[list(item.letter_ids)].double().numpy())
    if kind == "8bit":  # of rounded activations, unlike those of the dequantised weights
        model.arithmetic = "float32"
        assert np.abs(letters(model, model.adapter_factors(), [item]) - found).max() > 1e-3


def test_gradients_are_those_of_the_dequantised_model(pair: tuple[LanguageModel, LanguageModel]) -> None:
    """A step of training, and one whose activations are computed again in the backward pass."""
    model, twin = pair
    items = make_encoded(model, 3, ITEMS)
    gradients = []
    for each in (model, twin):
        each.peft_model.zero_grad()
        with each.computing():
            answer_losses(each, items).mean().backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in each.peft_model.parameters() if p.grad is not None]))
    plain_losses(twin, items).mean().backward()  # type: ignore[no-untyped-call]
    again = torch.cat([p.grad.flatten() for p in twin.peft_model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again, 2 * gradients[1], rtol=1e-4, atol=1e-6)


def test_dequantising_changes_no_layer(pair: tuple[LanguageModel, LanguageModel], kind: Kind) -> None:
    """PEFT's function, on a CPU, leaves an 8-bit layer that cannot compute any more."""
    model, twin = pair
    layers, wide = target_layers(model.peft_model), target_layers(twin.peft_model)
    with torch.inference_mode():
        for _ in range(2):
            for name, layer in layers.items():
                base = layer.get_base_layer()
                parameter = base.weight
                torch.testing.assert_close(wide_weight(base), wide[name].get_base_layer().weight, rtol=1e-6, atol=1e-7)
                assert base.weight is parameter
                base(torch.ones(1, base.in_features))


def test_layers_keep_their_layout_on_cpus_with_bfloat16_units(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    backbone, _ = load_backbone(ModelConfig(name=str(llama_folder), quantization="4bit"), lambda line: None)
    flags = [m.support_avx512bf16_for_cpu for m in backbone.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert flags == [False] * 14


def test_conv1d_layers_are_quantised_upright(kind: Kind, gpt2_folder: Path) -> None:
    model = quantised(gpt2_folder, kind)
    twin = twin_of(model, gpt2_folder, kind)
    items = make_encoded(model, 3, ITEMS)
    np.testing.assert_allclose(
        letters(model, model.adapter_factors(), items), letters(twin, twin.adapter_factors(), items), atol=1e-5
    )


def test_what_is_said_of_the_model(pair: tuple[LanguageModel, LanguageModel], kind: Kind) -> None:
    model, twin = pair
    said, plain = model.description(), twin.description()
    assert said["parameters"] == plain["parameters"]
    assert said["quantization"] == {"4bit": "bitsandbytes 4bit nf4", "8bit": "bitsandbytes 8bit (LLM.int8())"}[kind]
    assert said["arithmetic"] == "float32 products with dequantised weights, throughout"
    assert (plain["quantization"], plain["arithmetic"]) == (None, None)
    arithmetic = quantisation.arithmetic_of(said["quantization"], "float32", torch.device("cuda"))
    assert arithmetic.startswith("scores and training by the kernels of bitsandbytes")
    assert ("which quantise activations too" in arithmetic) == (kind == "8bit")
    assert quantisation.arithmetic_of("torchao", "native", torch.device("cpu")) == "the kernels of torchao, throughout"


def test_activations_that_are_rounded_by_the_batch_are_allowed_for(tmp_path: Path) -> None:
    """LLM.int8() computes columns of large activations in float16, for all rows of a batch: its scores depend on the batch."""
    large = tiny_llama()
    with torch.no_grad():
        for name, weight in large.named_parameters():
            if "layernorm" in name:
                weight.mul_(4)
    model = quantised(save(tmp_path, large), "8bit")
    items = make_encoded(model, 6, ITEMS)
    wide = guards.check(model, items)
    model.arithmetic = "native"
    native = guards.check(model, items)
    assert wide.batch_logit_difference < wide.batch_tolerance == 1e-3 < native.batch_logit_difference
    assert native.batch_tolerance == 0.75


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"use_dora": True}, "an adapter that is not plain LoRA needs weights that are not quantised, "),
        (None, "weights that move must not be quantised, those of model.name='.*' are \\(bitsandbytes 4bit nf4\\)"),
        ({"init": "pissa"}, "lora.init=pissa takes a part out of the weights, which must not be quantised, "),
    ],
)
def test_adapters_that_need_the_weights_are_refused(
    lora: dict[str, Any] | None, match: str, llama_folder: Path
) -> None:
    model = ModelConfig(name=str(llama_folder), quantization="4bit")
    with pytest.raises(UserError, match=match) as error:
        LanguageModel.load(model, None if lora is None else LoraConfig(rank=2, **lora), seed=0)
    assert "\n" not in str(error.value)


# Quantisation as a perturbation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounded_checkpoints_are_plain_models_whose_weights_were_rounded_by_hand(
    kind: Kind, dtype: str, any_folder: Path
) -> None:
    """All layers between the embeddings, those without an adapter too; on leaving every bit and every module is back."""
    targets = {"target_modules": ("q_proj", "down_proj") if "llama" in str(any_folder) else ("c_attn",)}
    model, hand = load(any_folder, dtype=dtype, **targets), load(any_folder, **targets)
    model.set_adapter_state(hand.adapter_state())
    with torch.no_grad():
        adapted = {id(layer.get_base_layer()): layer for layer in target_layers(hand.peft_model).values()}
        for name, layer in hand.peft_model.get_base_model().named_modules():
            if not isinstance(layer, torch.nn.Linear | Conv1D) or "lora" in name:
                continue
            weight = layer.weight.to(model.dtype).float()
            turned = isinstance(layer, Conv1D)
            weight = weight.T if turned else weight
            if id(layer) in adapted:
                change = adapted[id(layer)].get_delta_weight("default")
                weight = weight + (change.T if turned else change)
            rounded = weight if name.endswith("lm_head") else by_hand(weight.contiguous(), kind)
            layer.weight.copy_(rounded.T if turned else rounded)
        for name, weight in hand.peft_model.named_parameters():
            if "norm" in name or "ln_" in name or "embed" in name or "wte" in name or "wpe" in name or "bias" in name:
                weight.copy_(weight.to(model.dtype))
    items = make_encoded(model, 3, ITEMS)
    before, plain = Everything(model.peft_model), score(model, items, 2).letter_logits
    with requantised(model, kind):
        found = score(model, items, 2).letter_logits
    with hand.peft_model.disable_adapter():
        expected = score(hand, items, 2).letter_logits
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - plain).max() > 1e-3
    before.assert_same(model.peft_model)
    with pytest.raises(KeyError), requantised(model, kind):
        raise KeyError
    before.assert_same(model.peft_model)


def test_a_model_without_an_adapter_is_rounded_too(kind: Kind, llama_folder: Path) -> None:
    model, hand = (LanguageModel.load(ModelConfig(name=str(llama_folder)), None, seed=0) for _ in range(2))
    with torch.no_grad():
        for name, layer in hand.backbone.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                layer.weight.copy_(by_hand(layer.weight, kind))
    items = make_encoded(model, 3, ITEMS)
    before = Everything(model.backbone)
    with requantised(model, kind):
        found = score(model, items, 2).letter_logits
    np.testing.assert_allclose(found, score(hand, items, 2).letter_logits, atol=2e-5)
    before.assert_same(model.backbone)


# Checkpoints that are quantised themselves


def saved(folder: Path, source: Path, kind: str) -> Path:
    """A checkpoint as transformers writes it, quantised."""
    if kind == "torchao":
        int8 = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
        from transformers import TorchAoConfig

        settings: Any = TorchAoConfig(int8)
    else:
        settings = BitsAndBytesConfig(**{f"load_in_{kind}": True})
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.float32)
    return save(folder, model)


@pytest.mark.parametrize("kind", [*KINDS, "torchao"])
def test_quantised_checkpoints_load_and_are_measured(kind: str, llama_folder: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", llama_folder, kind)
    model = load(folder)
    items = make_encoded(model, 3, ITEMS)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = plain if kind == "torchao" else plain.dequantize()
    twin = load(llama_folder)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            place, _, own = name.rpartition(".")
            module = twin.peft_model.get_base_model().get_submodule(place)
            wide = weight.dequantize() if type(weight).__module__.startswith("torchao") else weight
            getattr(module, "base_layer", module).get_parameter(own).copy_(wide)
    point = twin.adapter_factors()
    model.set_adapter_state(twin.adapter_state())
    assert not model.can_merge
    np.testing.assert_allclose(letters(model, point, items), letters(twin, point, items), atol=2e-5)
    with products_at(model, items, point) as products, products_at(twin, items, point) as expected:
        assert products.along_update(point).curvature == pytest.approx(expected.along_update(point).curvature, rel=1e-4)
    assert str(model.description()["quantization"]).startswith("torchao" if kind == "torchao" else "bitsandbytes")
    with pytest.raises(UserError, match=r"model\.quantization must be null for a checkpoint that is quantised already"):
        load_backbone(ModelConfig(name=str(folder), quantization="4bit"), lambda line: None)


def test_a_missing_package_is_one_line_that_names_the_extra(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(quantisation.importlib.util, "find_spec", lambda name: None)
    wanted: list[tuple[ModelConfig, str]] = [
        (
            ModelConfig(name=str(llama_folder), quantization="4bit"),
            r"model\.quantization=4bit needs .* bitsandbytes, .*\[quantised\]",
        ),
        (ModelConfig(name=str(other)), r"quantised \(torchao\), needs the package torchao, .*\[torchao\]"),
    ]
    for model, match in wanted:
        with pytest.raises(UserError, match=match) as error:
            load_backbone(model, lambda line: None)
        assert "\n" not in str(error.value)


def test_weights_that_stay_as_they_are_are_told(llama_folder: Path) -> None:
    said: list[str] = []
    config = ModelConfig(name=str(llama_folder), quantization="4bit")
    backbone, _ = load_backbone(config, said.append)
    assert said == []
    backbone.model.extra = torch.nn.Linear(64, 64)
    tell: Callable[[str], None] = said.append
    quantisation.note_plain_weights(config, backbone, tell)
    (line,) = said
    assert line.startswith("model.quantization=4bit: 5")


# What a run needs


def test_the_bytes_of_a_quantised_model_are_counted(kind: Kind, llama_folder: Path) -> None:
    """To the granule of 512 bytes of every tensor: weights, scales and the parts that stay as they are."""
    with counting() as count:
        settings, bits = tiny_llama(hidden_size=128, intermediate_size=256).config, int(kind[0])
        hollow = weightless_model(settings, LoraConfig(rank=2), torch.float32, count, probe=False, bits=bits)  # type: ignore[arg-type]
        counted = count.live
    assert isinstance(hollow.peft_model.base_model.model.model.layers[0].mlp.up_proj.base_layer, WeightlessQuantised)
    real = tiny_llama(hidden_size=128, intermediate_size=256)
    save(llama_folder.parent / f"wide-{kind}", real)
    backbone, _ = load_backbone(ModelConfig(name=str(llama_folder.parent / f"wide-{kind}"), quantization=kind), print)  # type: ignore[arg-type]
    held = 0
    for module in backbone.modules():
        for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            scales = getattr(getattr(weight, "quant_state", None), "absmax", getattr(weight, "SCB", None))
            held += sum(-(-t.nbytes // GRANULE) * GRANULE for t in (weight.data, scales) if t is not None)
    adapter = sum(p.nbytes for n, p in hollow.peft_model.named_parameters() if "lora_" in n)
    assert counted == pytest.approx(held + adapter, rel=0.03)
    plain = sum(weight.nbytes for weight in real.parameters())
    assert counted < 0.5 * plain
