"""Every family of decoders, from transformers' own configurations: what it can be computed by, and that the numbers are right.

Each row of the table in docs/what_can_be_measured.md is held against plain recomputations: transformers' forward with padding
and without, PEFT's own adapter, and double backward on a plain graph.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from runs import ROOT
from tiny_models import VOCABULARY, fill_adapter, make_encoded, plain_losses, save
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_forgetting.config.measurements import CurvatureConfig
from llm_forgetting.config.sections import ExperimentConfig, LoraConfig, ModelConfig
from llm_forgetting.experiment import phases_setup
from llm_forgetting.landscape.factors import FactorStep
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.attach import target_layers
from llm_forgetting.models.hessian.products import products_at, supports_tangent_pass
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem, collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import CannotPackError, common_prefix, pack_of
from llm_forgetting.models.language.scoring import score

HIDDEN = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**HIDDEN, "intermediate_size": 256}
GROUPED = {**WIDE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 32}
GPT = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4}
# Shorter than the items, which have some 140 tokens.
WINDOW = {"sliding_window": 24}
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "Llama": lambda: transformers.LlamaConfig(**GROUPED),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED),
    "Mistral, items longer than its window": lambda: transformers.MistralConfig(**GROUPED, **WINDOW),
    "Qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "Qwen3": lambda: transformers.Qwen3Config(**HEADS),
    "Gemma": lambda: transformers.GemmaConfig(**HEADS),
    "Gemma 2": lambda: transformers.Gemma2Config(**HEADS, **WINDOW),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(**HEADS),
    "Gemma 3, items longer than its window": lambda: transformers.Gemma3TextConfig(**HEADS, **WINDOW),
    "Phi": lambda: transformers.PhiConfig(**WIDE),
    "Phi-3": lambda: transformers.Phi3Config(**GROUPED, pad_token_id=0),
    "GPT-2": lambda: transformers.GPT2Config(**GPT),
    "GPT-NeoX": lambda: transformers.GPTNeoXConfig(**WIDE),
    "GPT-J": lambda: transformers.GPTJConfig(**GPT, rotary_dim=16),
    "OPT": lambda: transformers.OPTConfig(**HIDDEN, ffn_dim=256, word_embed_proj_dim=128),
    "Falcon": lambda: transformers.FalconConfig(**HIDDEN),
    "Falcon with ALiBi": lambda: transformers.FalconConfig(**HIDDEN, alibi=True),
    "BLOOM": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=2, n_head=4),
    "OLMo 2": lambda: transformers.Olmo2Config(**GROUPED),
    "Granite": lambda: transformers.GraniteConfig(**GROUPED),
    "Cohere": lambda: transformers.CohereConfig(**GROUPED),
    "StableLM": lambda: transformers.StableLmConfig(**GROUPED),
    "StarCoder2": lambda: transformers.Starcoder2Config(**GROUPED),
    "SmolLM3": lambda: transformers.SmolLM3Config(**GROUPED, pad_token_id=0),
    "Mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=3, num_experts_per_tok=2),
}
CONFIGS = [ExperimentConfig(curvature=CurvatureConfig(forecast=forecast)) for forecast in (False, True)]
PAGE = (ROOT / "docs" / "what_can_be_measured.md").read_text(encoding="utf-8")


def opened(family: str, folder: Path) -> tuple[LanguageModel, list[str]]:
    """A model of random weights, by way of its files, with a trained adapter of s = 1; and what was said."""
    settings = FAMILIES[family]()
    settings.bos_token_id, settings.eos_token_id, settings.initializer_range = 1, 2, 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(folder, transformers.AutoModelForCausalLM.from_config(settings))
    said: list[str] = []
    config = ModelConfig(name=str(folder))
    model = LanguageModel.load(config, LoraConfig(rank=2, alpha=2.0), seed=0, notify=said.append)
    fill_adapter(model.peft_model)
    return model, said


def flops(compute: Callable[[], object]) -> float:
    counter: Any = FlopCounterMode(display=False)
    with counter:
        compute()
    return float(counter.get_total_flops())


def plain_product(model: LanguageModel, items: list[EncodedItem], step: FactorStep) -> torch.Tensor:
    """H v in the adapter's own weights, which are its factors where s = 1: double backward on transformers' own graph."""
    layers = target_layers(model.peft_model)
    weights = [part["default"].weight for layer in layers.values() for part in (layer.lora_B, layer.lora_A)]
    direction = [part for name in layers for part in (step[name].B, step[name].A)]
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(plain_losses(model, items).mean(), weights, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(slopes, direction, strict=True)]).sum()
        products = torch.autograd.grad(along, weights, materialize_grads=True)
    return torch.cat([part.flatten() for part in products])


@dataclass(frozen=True)
class Row:
    """What the table says of a family; operations in units of a forward pass over the items one by one."""

    family: str
    attention: str
    packed: bool
    tangent: bool
    scores: float
    product: float

    def __str__(self) -> str:
        ways = ("packed" if self.packed else "padded", "tangent pass" if self.tangent else "graph")
        return f"| {self.family} | {self.attention} | {ways[0]} | {self.scores:.2f} | {ways[1]} | {self.product:.1f} |"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_computed_as_transformers_and_peft_do(family: str, tmp_path: Path) -> None:
    model, said = opened(family, tmp_path)
    backbone = model.backbone
    attention = backbone.config._attn_implementation
    assert [line for line in said if "eager" in line] == [
        f"{tmp_path} has no sdpa attention; model.attention: eager is used"
    ] * (attention == "eager")
    items = make_encoded(model, 3)
    with torch.no_grad():
        alone = plain_losses(model, items)
        batch = collate(items, model.pad_id)
        places = {"position_ids": batch.position_ids} if "position_ids" in model._accepted else {}
        padded = model.peft_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **places).logits
    answers = torch.tensor([item.letter_ids[item.item.answer] for item in items])
    expected = torch.nn.functional.cross_entropy(padded[:, -1].float(), answers, reduction="none")
    torch.testing.assert_close(expected, alone, rtol=0, atol=1e-4)
    found = score(model, items, 4)
    np.testing.assert_allclose(found.losses, alone.numpy(), atol=1e-4)
    packed = model.supports_packing
    if packed:  # a prefix that is computed once
        shared = items[0].input_ids[: common_prefix([item.input_ids for item in items])]
        with torch.inference_mode():
            prefix = model.prefix_cache(shared)
            (logits,) = model.packed_logits([pack_of(items, (0, 1, 2), prefix)], 1, prefix)[0]
        after = torch.nn.functional.cross_entropy(logits, answers, reduction="none")
        torch.testing.assert_close(after, alone, rtol=0, atol=1e-4)

    point = model.adapter_factors()
    with model.perturbed() as move:  # half of B: the same adapter with other weights
        move(type(point)({name: Factors(pair.B / 2, pair.A) for name, pair in point.items()}))
        moved = score(model, items, 4).losses
    kept = model.adapter_state()
    model.set_adapter_state({n: weight / 2 if "lora_B" in n else weight for n, weight in kept.items()})
    with torch.no_grad():
        np.testing.assert_allclose(moved, plain_losses(model, items).numpy(), atol=1e-4)
    model.set_adapter_state(kept)
    assert np.abs(moved - found.losses).max() > 1e-3

    step = FactorStep({name: Factors(torch.sign(pair.B), torch.sign(pair.A)) for name, pair in point.items()})
    tangent = supports_tangent_pass(model)
    with products_at(model, items, point) as products:
        image = products.hessian(step)
        one = flops(lambda: products.hessian(step))
    made = torch.cat([part.flatten() for name in point for part in (image[name].B, image[name].A)])
    wanted = plain_product(model, items, step)
    assert (made - wanted).norm() < 1e-3 * wanted.norm()
    told = " ".join(model.fallbacks)
    assert ("padded, not packed" in told) == (not packed)
    assert ("second derivatives are taken of the graph" in told) == (not tangent)

    with torch.no_grad():
        forward = flops(lambda: plain_losses(model, items))
    row = Row(family, attention, packed, tangent, flops(lambda: score(model, items, 4)) / forward, one / forward)
    sys.stdout.write(f"{row}\n")
    assert str(row) in PAGE


def test_the_table_has_no_other_rows() -> None:
    rows = re.findall(r"^\| (\S.*?) \| (?:sdpa|eager) \|", PAGE, flags=re.MULTILINE)
    assert rows == list(FAMILIES)


def test_what_a_model_cannot_be_computed_by_is_a_warning_of_the_run(gpt2_folder: Path, llama_folder: Path) -> None:
    """Only where the run would take it."""
    models = [
        LanguageModel.load(ModelConfig(name=str(f)), LoraConfig(rank=2), seed=0) for f in (gpt2_folder, llama_folder)
    ]
    gpt2, llama = ([SimpleNamespace(config=config, model=model) for config in CONFIGS] for model in models)
    assert phases_setup._fallbacks(gpt2[0]) == []  # type: ignore[arg-type]
    assert phases_setup._fallbacks(llama[1]) == []  # type: ignore[arg-type]
    (line,) = phases_setup._fallbacks(gpt2[1])  # type: ignore[arg-type]
    assert line.startswith(
        "second derivatives are taken of the graph, which takes more memory: the derivative of LayerNorm"
    )
    with pytest.raises(CannotPackError) as caught:
        raise CannotPackError("attention with a sliding window")
    models[1].disable_packing(caught.value)
    assert phases_setup._fallbacks(llama[1]) == [  # type: ignore[arg-type]
        "items are padded, not packed, which takes longer: attention with a sliding window"
    ]


def test_mixtral_is_adapted_in_its_attention(tmp_path: Path) -> None:
    model, said = opened("Mixtral", tmp_path)
    assert {name.rsplit(".", 1)[-1] for name in model.adapter_factors()} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    (line,) = said
    assert line.startswith("lora.target_modules=all-linear: the experts of MixtralForCausalLM are no linear modules")


def test_tests_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", PAGE))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.usefixtures("one_thread")
def test_dropout_of_a_backbone_acts_in_training_packed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In attention, embeddings and residuals: means and spreads over masks agree, and eval mode has none."""
    dropping = transformers.GPT2Config(**GPT, attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.2)
    monkeypatch.setitem(FAMILIES, "GPT-2", lambda: dropping)  # type: ignore[arg-type]
    model, _ = opened("GPT-2", tmp_path)
    assert model.supports_packing
    items, attend = make_encoded(model, 2), torch.nn.functional.scaled_dot_product_attention
    rates: list[float] = []

    def told(*args: Any, **kwargs: Any) -> torch.Tensor:
        rates.append(kwargs.get("dropout_p", 0.0))
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", told)
    model.peft_model.train()
    drawn = {}
    for packed in (True, False):
        torch.manual_seed(0)
        with torch.no_grad():
            drawn[packed] = torch.stack([answer_losses(model, items, packed=packed) for _ in range(60)])
        assert set(rates) == {0.2}
        rates.clear()
    spread = drawn[False].std(0)
    assert (spread > 0.02).all()
    assert ((drawn[True].mean(0) - drawn[False].mean(0)).abs() < 4 * spread * (2 / 60) ** 0.5).all()
    ratio = drawn[True].std(0) / spread
    assert ((ratio > 0.6) & (ratio < 1.6)).all()
    model.peft_model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            answer_losses(model, items), answer_losses(model, items, packed=False), atol=1e-4, rtol=0
        )
    assert set(rates) == {0.0}
