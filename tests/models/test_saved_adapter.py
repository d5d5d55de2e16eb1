"""Anyone's saved adapter: read, opened on its backbone, written, against what PEFT itself makes of the same folders."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bad_inputs import ADAPTERS
from safetensors.torch import load_file, save_file
from tiny_models import fill_adapter, make_encoded, tiny_gpt2, tiny_llama
from transformers import AutoModelForCausalLM

from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, target_layers
from llm_forgetting.models.adapter.adapter_settings import settings_problems
from llm_forgetting.models.adapter.saved_adapter import read_update
from llm_forgetting.models.language import backbones
from llm_forgetting.models.language.batches import collate
from llm_forgetting.models.language.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "r": 3},
    "patterns": {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9, "v_proj": 32}},
    "by regular expression": {"target_modules": r".*\.1\..*q_proj"},
    "Conv1D": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
}


def made(kind: str = "plain", backbone: Any = None, seed: int = 0, **changes: Any) -> Any:
    """An adapter by PEFT, its B filled."""
    settings = {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **SETTINGS[kind],
    }
    net = backbone or (tiny_gpt2() if kind == "Conv1D" else tiny_llama())
    model = peft.get_peft_model(net, peft.LoraConfig(**{**settings, **changes}))
    fill_adapter(model, seed)
    return model.eval()


def deltas(model: Any) -> dict[str, torch.Tensor]:
    """PEFT's own delta W, upright."""
    return {
        name: (delta.T if layer.fan_in_fan_out else delta)
        for name, layer in target_layers(model).items()
        for delta in [layer.get_delta_weight("default").detach()]
    }


def assert_same(found: dict[str, Factors], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, pair in found.items():
        torch.testing.assert_close(pair.B @ pair.A, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_saved_adapter_is_read_with_its_own_scale(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    model.save_pretrained(tmp_path)
    assert_same(read_update(tmp_path), deltas(model))


@pytest.mark.parametrize("kind", SETTINGS)
def test_any_update_is_saved_as_an_adapter_that_peft_loads(kind: str, tmp_path: Path) -> None:
    """Ranks that differ from module to module, and from the adapter's own."""
    model = made(kind)
    factors = AdaptedModel(model).adapter_factors()
    update = WeightUpdate.combine([(0.5, factors), (2.0, factors)])
    first = next(iter(update))
    cut = Factors(B=update[first].B[:, :1].contiguous(), A=update[first].A[:1].contiguous())
    update = WeightUpdate({**update, first: cut})
    AdaptedModel(model).save_update(tmp_path, update)
    again = peft.PeftModel.from_pretrained(tiny_gpt2() if kind == "Conv1D" else tiny_llama(), str(tmp_path))
    expected = {name: pair.B @ pair.A for name, pair in update.items()}
    for name, delta in deltas(again).items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-6)
    assert_same(read_update(tmp_path), expected)


def folder_of(tmp_path: Path, llama_folder: Path, **changes: Any) -> Path:
    """An adapter on the tiny Llama of `llama_folder`, saved by PEFT."""
    backbone = AutoModelForCausalLM.from_pretrained(llama_folder)
    made(backbone=backbone, **changes).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, **entries: Any) -> Path:
    """Entries of the saved settings, changed."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


@pytest.mark.parametrize("kind", ["plain", "rsLoRA", "patterns", "by regular expression"])
def test_an_adapter_is_opened_on_the_backbone_it_names(kind: str, llama_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, llama_folder, kind=kind)
    state = torch.get_rng_state()
    model = LanguageModel.open_adapter(folder, ModelConfig())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.source == str(llama_folder)
    assert not model.peft_model.training
    assert model.description()["adapter_parameters"] == sum(
        p.numel() for p in model.peft_model.parameters() if p.requires_grad
    )
    reference = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), str(folder))
    assert_same(model.adapter_factors(), deltas(reference))
    with torch.no_grad():
        items = collate(make_encoded(model, 4), model.pad_id)
        expected = LanguageModel(reference.eval(), model.tokenizer, "again").answer_logits(items)
        assert torch.equal(model.answer_logits(items), expected)


def test_the_users_backbone_counts_more_than_the_adapters(llama_folder: Path, tmp_path: Path) -> None:
    folder = change(folder_of(tmp_path, llama_folder), base_model_name_or_path="/nowhere/at/all")
    assert LanguageModel.open_adapter(folder, ModelConfig(name=str(llama_folder))).source == str(llama_folder)


@pytest.mark.parametrize("where", ["/home/somebody/.cache/llm-forgetting/", ""])
def test_a_built_in_backbone_is_found_on_another_machine(
    where: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = change(folder_of(tmp_path, llama_folder), base_model_name_or_path=f"{where}SmolLM2-135M-Instruct")
    monkeypatch.setattr(backbones, "embedded_backbone", lambda notify: llama_folder)
    assert LanguageModel.open_adapter(folder, ModelConfig()).source == "embedded"


def dora(folder: Path) -> None:
    change(folder, use_dora=True)


def pissa(folder: Path) -> None:
    change(folder, init_lora_weights="pissa")


def other_kind(folder: Path) -> None:
    change(folder, peft_type="PROMPT_TUNING", num_virtual_tokens=2)


def nameless(folder: Path) -> None:
    change(folder, base_model_name_or_path=None)


def lost_backbone(folder: Path) -> None:
    change(folder, base_model_name_or_path="/nowhere/at/all")


def wrong_backbone(folder: Path) -> None:
    change(folder, target_modules=["c_attn"])


def no_settings(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{half")


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def half_a_file(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"half")


def other_shapes(folder: Path) -> None:
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


BROKEN: dict[Callable[[Path], None], str] = {
    dora: "must fit this model .*lora_magnitude_vector is None",
    pissa: "init_lora_weights='pissa' is not covered",
    other_kind: "must have settings that this PEFT knows",
    nameless: "does not name its backbone; give it as model.name",
    lost_backbone: "the backbone of the adapter in .* cannot be loaded: model.name='/nowhere/at/all' looks like a folder",
    wrong_backbone: r"must fit the backbone, none of its target_modules \(c_attn\) is there; its linear modules are .*q_proj",
    no_settings: "a folder with a saved PEFT adapter is needed .* has no adapter_config.json",
    no_json: "adapter_config.json must be a JSON file",
    no_weights: "has no adapter_model.safetensors",
    pickled: "adapter_model.bin is a pickle, which runs code when it is read",
    half_a_file: "must be a whole adapter_model.safetensors",
    other_shapes: "must fit this model",
    no_folder: "a folder with a saved PEFT adapter is needed",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_what_cannot_be_opened_is_refused_in_one_line(
    breaking: Callable[[Path], None], llama_folder: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, llama_folder)
    breaking(folder)
    with pytest.raises(UserError, match=BROKEN[breaking]) as error:
        LanguageModel.open_adapter(folder, ModelConfig())
    assert "\n" not in str(error.value)


# Damaged settings and weights


@pytest.mark.parametrize("case", ADAPTERS)
def test_damaged_settings_are_refused_in_one_line(case: str, llama_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, llama_folder)
    damage, match = ADAPTERS[case]
    if isinstance(damage, dict):
        change(folder, **damage)
    else:
        (folder / "adapter_config.json").write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    start = time.perf_counter()
    with pytest.raises(UserError, match=match) as error:
        LanguageModel.open_adapter(folder, ModelConfig())
    assert time.perf_counter() - start < 5
    said = str(error.value)
    assert "\n" not in said
    assert said.isprintable()
    assert len(said.replace(str(tmp_path), "").replace(str(llama_folder), "")) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_line(value: float, llama_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, llama_folder)
    weights = load_file(folder / "adapter_model.safetensors")
    name = min(weights)
    weights[name][0, 0] = value
    save_file(weights, folder / "adapter_model.safetensors")
    for opened in (lambda: LanguageModel.open_adapter(folder, ModelConfig()), lambda: read_update(folder)):
        with pytest.raises(UserError, match=f"must hold finite numbers, {name} has NaN or inf"):
            opened()


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(3), torch.ones(2, 2, 2), torch.ones(2, 16, dtype=torch.int64), torch.ones(0, 16), torch.ones(3, 16)],
    ids=["vector", "cube", "whole numbers", "no rank", "other rank"],
)
def test_weights_that_are_no_factors_are_refused_in_one_line(
    tensor: torch.Tensor, llama_folder: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, llama_folder)
    weights = load_file(folder / "adapter_model.safetensors")
    weights[min(weights)] = tensor
    save_file(weights, folder / "adapter_model.safetensors")
    for opened in (lambda: LanguageModel.open_adapter(folder, ModelConfig()), lambda: read_update(folder)):
        with pytest.raises(UserError) as error:
            opened()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.1\..*q_proj",
        r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r"^(?!.*vision).*(?:q_proj|v_proj)$",
        r".*\.(layers|blocks)\.[0-9]+\.(self_attn|mlp)\.[a-z_]+_proj",
    ],
)
def test_patterns_as_people_write_them_pass(pattern: str) -> None:
    assert not list(settings_problems({"r": 1, "lora_alpha": 1, "target_modules": pattern}, 8))


@pytest.mark.process
def test_the_saved_settings_are_the_same_under_every_hash_seed(llama_folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tiny_models import load; from llm_forgetting.landscape.factors import *\n"
        "names = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj', 'gate_proj')\n"
        "model = load(Path(sys.argv[1]), target_modules=names); out = Path(sys.argv[2])\n"
        "for name in ('saved', 'update'): (out / name).mkdir(parents=True)\n"
        "model.save(out / 'saved'); model.save_update(out / 'update', model.adapter_factors())\n"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, str(llama_folder), str(tmp_path / seed)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("saved", "update"):
        one, other = ((tmp_path / seed / name / "adapter_config.json").read_bytes() for seed in ("1", "2"))
        assert one == other
        names = json.loads(one)["target_modules"]
        assert names == sorted(names)
