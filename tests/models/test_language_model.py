"""The one file that knows PEFT, against PEFT itself: what an adapter is, moving it, saving it, and what is refused."""

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import VOCABULARY, fill_adapter, llama2_tokenizer, load, make_encoded, tiny_gpt2, tiny_llama
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.gauge import Factors, canonicalise, regauged
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, attach_lora, target_layers
from llm_forgetting.models.language.backbones import choose_device, choose_dtype
from llm_forgetting.models.language.batches import collate
from llm_forgetting.models.language.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(error.value)
    assert str(error.value).strip()


def plain_lora(**changes: Any) -> peft.LoraConfig:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**settings, **changes})


def wrapped(config: Any, backbone: Any = None) -> Any:
    """A PEFT model as PEFT makes it, every B filled."""
    model = peft.get_peft_model(backbone if backbone is not None else tiny_llama(), config)
    fill_adapter(model)
    return model.eval()


def logits_of(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.answer_logits(collate(make_encoded(model, 6), model.pad_id))


VARIANTS: dict[str, Callable[[], Any]] = {
    "plain": lambda: wrapped(plain_lora()),
    "alpha": lambda: wrapped(plain_lora(lora_alpha=7)),
    "rsLoRA": lambda: wrapped(plain_lora(use_rslora=True, r=3)),
    "rank_pattern": lambda: wrapped(plain_lora(rank_pattern={"v_proj": 5, "layers.1.self_attn.q_proj": 1})),
    "alpha_pattern": lambda: wrapped(plain_lora(alpha_pattern={"v_proj": 32})),
    "both patterns, rsLoRA": lambda: wrapped(
        plain_lora(rank_pattern={"v_proj": 4}, alpha_pattern={"q_proj": 9}, use_rslora=True)
    ),
    "Conv1D": lambda: wrapped(
        plain_lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), tiny_gpt2()
    ),
    "layers_to_transform": lambda: wrapped(plain_lora(layers_to_transform=[1])),
    "dropout": lambda: wrapped(plain_lora(lora_dropout=0.5)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_are_pefts_own_update(variant: str) -> None:
    model = LanguageModel(VARIANTS[variant](), llama2_tokenizer(), "tiny")
    factors, layers = model.adapter_factors(), target_layers(model.peft_model)
    assert list(factors) == list(layers)
    assert len(factors) >= 2
    for name, layer in layers.items():
        delta = layer.get_delta_weight("default").detach()
        weight = layer.get_base_layer().weight
        assert delta.shape == weight.shape
        if variant == "Conv1D":  # stored (d_in, d_out): y = x W
            delta = delta.T
        found = factors[name].B @ factors[name].A
        assert float(delta.norm()) > 0.01
        torch.testing.assert_close(found, delta, rtol=1e-5, atol=1e-7)
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            change = layer(x) - layer.get_base_layer()(x)
        torch.testing.assert_close(change, x @ factors[name].A.T @ factors[name].B.T, rtol=1e-4, atol=1e-5)


def test_factors_are_copies(llama_folder: Path) -> None:
    model = load(llama_folder, alpha=2.0)  # s = 1: even then nothing is shared
    before = model.adapter_sha256()
    for pair in model.adapter_factors().values():
        pair.A.fill_(9.0)
        pair.B.fill_(9.0)
    assert model.adapter_sha256() == before


def test_module_names_are_those_of_the_backbone(any_folder: Path) -> None:
    model = load(any_folder)
    backbone = dict(AutoModelForCausalLM.from_pretrained(any_folder).named_modules())
    layers = target_layers(model.peft_model)
    assert set(layers) <= set(backbone)
    assert len(layers) == model.description()["adapted_modules"] == {"l": 14, "g": 8}[any_folder.name[0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_moving_to_the_canonical_factors_keeps_the_function(variant: str) -> None:
    model = LanguageModel(VARIANTS[variant](), llama2_tokenizer(), "tiny")
    expected = logits_of(model)
    factors = model.adapter_factors()
    with model.perturbed() as move:
        for same in (canonicalise(factors), canonicalise(regauged(factors, 3))):
            move({name: module.factors for name, module in same.items()})
            torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-4)
        move({name: Factors(B=0 * pair.B, A=pair.A) for name, pair in factors.items()})
        assert float((logits_of(model) - expected).abs().max()) > 0.05
    assert torch.equal(logits_of(model), expected)


def test_a_rank_above_the_width_of_a_module_can_be_moved(llama_folder: Path) -> None:
    """Keys and values of the tiny Llama are 8 wide."""
    model = load(llama_folder, rank=12)
    expected = logits_of(model)
    with model.perturbed() as move:
        move({name: module.factors for name, module in canonicalise(model.adapter_factors()).items()})
        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt, GeneratorExit])
def test_every_bit_is_restored(ending: type[BaseException] | None, any_folder: Path) -> None:
    model = load(any_folder, alpha=3.0)
    adapter = model.adapter_sha256()
    weights = {name: tensor.clone() for name, tensor in model.peft_model.state_dict().items()}

    def perturb() -> None:
        with model.perturbed() as move:
            for scale in (0.1, -3.0, torch.nan):
                move({n: Factors(B=p.B * scale, A=p.A + 1) for n, p in model.adapter_factors().items()})
                assert not all(torch.equal(t, weights[n]) for n, t in model.peft_model.state_dict().items())
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            perturb()
    else:
        perturb()
    assert model.adapter_sha256() == adapter
    assert_bit_equal(model, weights)


def test_an_interrupt_in_the_middle_of_a_move_is_undone_too(llama_folder: Path) -> None:
    model = load(llama_folder)
    expected = logits_of(model)
    partial = dict(list(model.adapter_factors().items())[:3])
    with pytest.raises(KeyError), model.perturbed() as move:
        move({name: Factors(B=pair.B + 1, A=pair.A) for name, pair in partial.items()})
    assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
def test_a_model_of_low_precision_is_moved_without_being_written(
    ending: type[BaseException] | None, llama_folder: Path
) -> None:
    """In bfloat16 W + B A would round most of B A away: it is applied beside the model, of which not one bit changes."""
    model = load(llama_folder, dtype="bfloat16")
    before = logits_of(model)
    weights = {name: tensor.clone() for name, tensor in model.peft_model.state_dict().items()}

    def perturb() -> None:
        with model.perturbed() as move:
            move(model.adapter_factors())
            assert float((logits_of(model) - before).abs().max()) < 0.3
            for shift in (0.5, torch.nan):
                move({n: Factors(B=p.B + shift, A=p.A) for n, p in model.adapter_factors().items()})
                assert not float((logits_of(model) - before).abs().max()) < 0.5
                assert_bit_equal(model, weights)
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            perturb()
    else:
        perturb()
    assert_bit_equal(model, weights)
    assert torch.equal(logits_of(model), before)


def assert_bit_equal(model: LanguageModel, weights: dict[str, torch.Tensor]) -> None:
    found = model.peft_model.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, weights[name]), name


def test_gradients_and_training_go_on_after_a_perturbation(llama_folder: Path) -> None:
    model = load(llama_folder)
    with model.perturbed() as move:
        move(model.adapter_factors())
    parameters = [p for p in model.peft_model.parameters() if p.requires_grad]
    assert len(parameters) == 28
    model.answer_logits(collate(make_encoded(model, 2), model.pad_id)).sum().backward()
    assert all(p.grad is not None for p in parameters)


def merged() -> Any:
    model = wrapped(plain_lora())
    model.merge_adapter()
    return model


def disabled() -> Any:
    model = wrapped(plain_lora())
    model.base_model.disable_adapter_layers()
    return model


def otherwise_named() -> Any:
    model = wrapped(plain_lora())
    model.add_adapter("second", plain_lora())
    model.set_adapter("second")
    return model


def tiny_mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def prompt() -> Any:
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_llama(), config)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "trainable tokens": (
        lambda: wrapped(plain_lora(trainable_token_indices=[3, 4])),
        "trainable_token_indices=.* is not covered",
    ),
    "target_parameters": (
        lambda: peft.get_peft_model(tiny_llama(), plain_lora(target_parameters=["mlp.gate_proj.weight"])),
        r"target_parameters \(mlp.gate_proj.weight\) is not covered",
    ),
    "replicated layers": (
        lambda: wrapped(plain_lora(layer_replication=[[0, 2], [1, 2]])),
        "layer_replication=.* is not covered",
    ),
    "PiSSA": (lambda: wrapped(plain_lora(init_lora_weights="pissa")), "init_lora_weights='pissa' is not covered"),
    "PiSSA by iterations": (
        lambda: wrapped(plain_lora(init_lora_weights="pissa_niter_2")),
        "init_lora_weights='pissa_niter_2' is not covered",
    ),
    "OLoRA": (lambda: wrapped(plain_lora(init_lora_weights="olora")), "init_lora_weights='olora' is not covered"),
    "another name": (otherwise_named, "must be called 'default', was 'second'"),
    "merged": (merged, r"must not be merged .* call unmerge_adapter\(\)"),
    "disabled": (disabled, r"must not be disabled .* call enable_adapter_layers\(\)"),
    "prompt": (prompt, "must be an update delta W of weights that PEFT can merge, PROMPT_TUNING is none"),
    "no PEFT": (tiny_llama, "a PEFT model with a LoRA adapter is needed, was LlamaForCausalLM"),
}


def test_the_advice_for_experts_can_be_followed() -> None:
    settings = LoraConfig(rank=2, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    model = LanguageModel(attach_lora(tiny_mixtral(), settings, 0).eval(), llama2_tokenizer(), "tiny")
    assert len(model.adapter_factors()) == 4


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("variant", REFUSED)
def test_adapters_that_are_no_update_of_the_weights_are_refused_by_name(variant: str) -> None:
    make, reason = REFUSED[variant]
    with pytest.raises(UserError, match=reason) as error:
        LanguageModel(make(), llama2_tokenizer(), "tiny")
    assert_one_line(error)


def test_every_option_of_this_peft_is_either_covered_or_refused() -> None:
    """A boolean option that a later PEFT brings is refused until somebody has looked at it."""
    model = wrapped(plain_lora())
    config = model.peft_config["default"]
    covered = {"inference_mode", "use_rslora", "fan_in_fan_out", "ephemeral_gpu_offload"}
    covered |= {"use_dora", "lora_bias", "ensure_weight_tying"}  # held against PEFT in test_dense_updates.py
    switches = [name for name, value in vars(peft.LoraConfig()).items() if value is False and name not in covered]
    assert switches
    for name in switches:
        setattr(config, name, True)
        with pytest.raises(UserError, match=f"{name}=True is not covered"):
            LanguageModel(model, llama2_tokenizer(), "tiny")
        setattr(config, name, False)
    LanguageModel(model, llama2_tokenizer(), "tiny")


@pytest.mark.parametrize("target", ["nothing", ("nothing", "nowhere"), "mlp"])
def test_targets_that_match_nothing_are_refused_with_what_there_is(target: Any, llama_folder: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules=.* must match linear modules") as error:
        load(llama_folder, target_modules=target)
    assert_one_line(error)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert name in str(error.value)


def test_one_misspelt_target_among_others_is_refused(llama_folder: Path) -> None:
    """PEFT adapts the rest in silence."""
    with pytest.raises(UserError, match=r"v_prj did not; its linear modules are .*v_proj") as error:
        load(llama_folder, target_modules=("q_proj", "v_prj"))
    assert_one_line(error)


@pytest.mark.parametrize(
    ("target", "modules"),
    [("all-linear", 14), ("q_proj", 2), (("q_proj", "v_proj"), 4), (("layers.1.self_attn.q_proj", "up_proj"), 3)],
)
def test_target_modules(target: Any, modules: int, llama_folder: Path) -> None:
    assert len(target_layers(load(llama_folder, target_modules=target).peft_model)) == modules


def test_description_counts_what_there_is(llama_folder: Path) -> None:
    model = load(llama_folder, target_modules=("q_proj", "v_proj"))
    description = model.description()
    assert description["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    # rank 2: q is 16 x 16, v is 8 x 16, in two layers
    assert description["adapter_parameters"] == 2 * 2 * (16 + 16 + 8 + 16)
    assert description["adapted_weights"] == 2 * (16 * 16 + 8 * 16)
    assert (description["dtype"], description["device"]) == ("float32", "cpu")


def test_packed_weights_count_as_the_numbers_they_stand_for(llama_folder: Path) -> None:
    """A bitsandbytes parameter of 4 bits: bytes of two numbers each, and the shape in `quant_state`."""
    model = load(llama_folder)
    layer = next(iter(target_layers(model.peft_model).values())).get_base_layer()
    packed: Any = torch.nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=layer.weight.shape)
    layer.weight = packed
    assert model.description()["parameters"] == sum(p.numel() for p in tiny_llama().parameters())


class QuantLinear(torch.nn.Module):
    """What GPTQ, AWQ and AQLM put in the place of a linear layer: packed buffers, no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 16, dtype=torch.int32))


@pytest.mark.parametrize("kind", ["of its own kind", "offloaded"])
def test_weights_that_are_not_there_are_refused_in_one_line(kind: str, llama_folder: Path) -> None:
    model = load(llama_folder).peft_model
    layer = next(iter(target_layers(model).values()))
    if kind == "offloaded":
        layer.get_base_layer().weight = torch.nn.Parameter(layer.get_base_layer().weight.to("meta"))
    else:
        layer.base_layer = QuantLinear()
    reason = {"offloaded": "on one device, they are on cpu, meta", "of its own kind": "QuantLinear"}[kind]
    with pytest.raises(UserError, match=reason) as error:
        AdaptedModel(model)
    assert "\n" not in str(error.value)


def test_the_seed_decides_the_adapter(llama_folder: Path) -> None:
    hashes = [load(llama_folder, seed=seed, trained=False).adapter_sha256() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    fresh = load(llama_folder, trained=False)
    assert all(not pair.B.any() and pair.A.any() for pair in fresh.adapter_factors().values())


def test_loading_leaves_the_global_generators_alone(any_folder: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    load(any_folder, trained=False)
    found = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(found[0], expected[0])
    assert found[1].tolist() == expected[1].tolist()
    assert found[2] == expected[2]


def test_the_global_generator_does_not_decide_the_adapter(llama_folder: Path) -> None:
    torch.manual_seed(1)
    one = load(llama_folder, trained=False).adapter_sha256()
    torch.manual_seed(2)
    assert load(llama_folder, trained=False).adapter_sha256() == one


def test_hash_sees_every_adapter_weight_and_nothing_else(llama_folder: Path) -> None:
    model = load(llama_folder, target_modules=("q_proj",))
    before = model.adapter_sha256()
    layers = list(target_layers(model.peft_model).values())
    for layer, part in itertools.product(layers, ("lora_A", "lora_B")):
        weight = getattr(layer, part)["default"].weight.data
        kept = weight[-1, -1].clone()
        weight[-1, -1] = torch.nextafter(kept, torch.tensor(9.0))
        assert model.adapter_sha256() != before
        weight[-1, -1] = kept
        assert model.adapter_sha256() == before
    layers[0].get_base_layer().weight.data[0, 0] += 1
    assert model.adapter_sha256() == before


def test_saved_adapter_comes_back_bit_for_bit(any_folder: Path, tmp_path: Path) -> None:
    model = load(any_folder, seed=3)
    model.save(tmp_path)
    other = load(any_folder, seed=4)
    assert other.adapter_sha256() != model.adapter_sha256()
    other.load_adapter_weights(tmp_path)
    assert other.adapter_sha256() == model.adapter_sha256()
    assert torch.equal(logits_of(other), logits_of(model))
    assert all(p.requires_grad == ("lora_" in name) for name, p in other.peft_model.named_parameters())


def test_peft_alone_loads_what_was_saved(any_folder: Path, tmp_path: Path) -> None:
    model = load(any_folder)
    model.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    backbone = AutoModelForCausalLM.from_pretrained(any_folder)
    again = peft.PeftModel.from_pretrained(backbone, str(tmp_path))
    assert torch.equal(logits_of(LanguageModel(again.eval(), llama2_tokenizer(), "again")), logits_of(model))


@pytest.mark.parametrize(
    "other", [{"rank": 3}, {"target_modules": ("q_proj",)}, {"target_modules": ("q_proj", "v_proj", "up_proj")}]
)
def test_an_adapter_that_does_not_fit_is_refused_whole(
    other: dict[str, Any], llama_folder: Path, tmp_path: Path
) -> None:
    """PEFT raises pages of text for a wrong shape, after copying what fits, and says nothing about missing weights."""
    model = load(llama_folder, target_modules=("q_proj", "v_proj"))
    before = model.adapter_sha256()
    load(llama_folder, seed=1, **{"target_modules": ("q_proj", "v_proj"), **other}).save(tmp_path)
    with pytest.raises(UserError, match=r"must fit this model \(same lora\.rank and lora\.target_modules\)") as error:
        model.load_adapter_weights(tmp_path)
    assert_one_line(error)
    assert model.adapter_sha256() == before


@pytest.mark.parametrize("content", [None, b"", b"half a file" * 10])
def test_an_adapter_file_that_is_missing_or_broken(content: bytes | None, llama_folder: Path, tmp_path: Path) -> None:
    load(llama_folder).save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    said = (
        r"must be a whole adapter_model\.safetensors" if content is not None else r"has no adapter_model\.safetensors"
    )
    with pytest.raises(UserError, match=said) as error:
        load(llama_folder).load_adapter_weights(tmp_path)
    assert_one_line(error)


def test_saved_weights_are_the_live_ones(llama_folder: Path, tmp_path: Path) -> None:
    model = load(llama_folder)
    model.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    live = get_peft_model_state_dict(model.peft_model)
    assert saved.keys() == live.keys()
    assert all(torch.equal(saved[name], live[name]) for name in saved)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such-author/no-such-model", "hub cannot be reached .* connect, or give a local folder"),
        ("no/such/folder/at/all", "looks like a folder"),
    ],
)
def test_a_model_that_does_not_exist(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=reason) as error:
        LanguageModel.load(ModelConfig(name=name), LoraConfig(), seed=0)
    assert f"model.name={name!r}" in str(error.value)
    assert_one_line(error)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_with_a_broken_file(file: str, llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(llama_folder, folder)
    (folder / file).write_bytes(b"{ half" * 20)
    with pytest.raises(UserError, match=r"model\.name=.* could not be loaded") as error:
        load(folder)
    assert_one_line(error)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "meta"])
def test_an_unknown_device_is_refused(device: str, llama_folder: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.device='{device}' must be a device of this machine") as error:
        LanguageModel.load(ModelConfig(name=str(llama_folder), device=device), LoraConfig(), seed=0)
    assert_one_line(error)


def test_precision(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):  # a T4 or V100 only emulates it
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert choose_dtype("auto", torch.device("cuda")) == expected
    monkeypatch.undo()
    model = load(llama_folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert all(pair.A.dtype == pair.B.dtype == torch.float32 for pair in model.adapter_factors().values())
    assert logits_of(model).dtype == torch.float32


def test_a_model_is_in_eval_mode_and_pads_on_the_left(llama_folder: Path) -> None:
    model = load(llama_folder, dropout=0.5)
    assert not model.peft_model.training
    assert model.tokenizer.padding_side == "left"
    assert torch.equal(logits_of(model), logits_of(model))


@pytest.mark.parametrize(("pad", "expected"), [(None, 0), ("</s>", 2)])
def test_a_tokenizer_without_pad_token_gets_one(pad: str | None, expected: int) -> None:
    model = LanguageModel(wrapped(plain_lora()), llama2_tokenizer(pad_token=pad), "tiny")
    assert model.pad_id == model.tokenizer.pad_token_id == expected


def test_a_folder_that_is_not_there_is_called_one() -> None:
    with pytest.raises(UserError, match=r"model.name='./nowhere' looks like a folder"):
        LanguageModel.load(ModelConfig(name="./nowhere"), LoraConfig(), seed=0)


def test_a_second_gpu_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(1))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1"):
        choose_device("cuda:1")


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(size))
    with pytest.raises(UserError, match=r"model.device=mps cannot be used: .* use cpu"):
        choose_device("mps")
