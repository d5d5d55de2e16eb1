"""Bytes and operations that are counted without numbers, against sums done by hand and PyTorch's own counter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import load as load_tiny
from tiny_models import make_encoded, tiny_llama
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_forgetting.config.sections import LoraConfig
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.allocation_count import GRANULE, NUMBER, counting
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.models.language.weightless import are_alike, decoder_layers, weightless_model

MIB = 2**20


def on_meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_the_peak_is_what_is_alive_at_once() -> None:
    with counting() as count:
        a = on_meta(256, 1024)  # 1 MiB
        b = a + 1
        assert (count.live, count.peak) == (2 * MIB, 2 * MIB)
        view = b[:128]
        b = (b * 2) * 3  # the old b is alive by its view
        assert (count.live, count.peak) == (3 * MIB, 4 * MIB)
        del view, b
        assert (count.live, count.peak) == (MIB, 4 * MIB)
        count.restart()
        a += 1
        assert count.peak == MIB
        on_meta(1)
        assert count.peak == MIB + GRANULE


def test_what_a_backward_pass_keeps_is_alive_until_it_has_gone_back() -> None:
    with counting() as count:
        w = on_meta(512, 512).requires_grad_()  # 1 MiB
        x = on_meta(512, 512)
        for _ in range(4):
            x = torch.tanh(x @ w)  # keeps x and the result of tanh; the product itself is given back
        assert count.live == 6 * MIB
        x.sum().backward()
        del x
        assert count.live == 2 * MIB  # w and its gradient
        assert count.flops == 2 * 512**3 * (4 + 4 + 3)  # the first x wants no gradient


def test_integers_are_real_and_numbers_are_not() -> None:
    with counting():
        rows = torch.arange(4, device="meta")
        assert rows.tolist() == [0, 1, 2, 3]
        assert torch.ones(2, 2, dtype=torch.bool).to("meta").all().item() is True
        x = on_meta(4, 3)
        assert x[rows > 1].shape == (2, 3)
        x[rows > 1] = 0.0
        x[:, torch.tensor([True, False, True])] = on_meta(4, 2)
        assert float(x.sum()) == pytest.approx(NUMBER)
        assert x.double().cpu().numpy().shape == (4, 3)
        assert F.embedding(rows, x).is_meta


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_as_the_kernel_that_keeps_no_probabilities(masked: bool) -> None:
    b, heads, L, d = 2, 4, 128, 64
    with counting() as count:
        q, k, v = (on_meta(b, heads, L, d).requires_grad_() for _ in range(3))
        inputs = count.live
        mask = torch.ones(b, 1, L, L, dtype=torch.bool) if masked else None
        before = count.live
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        kept = 4 * (b * heads * L * d + b * heads * L + masked * b * L * L)  # result, log-sum-exp, the mask as a bias
        assert count.live - before == kept
        assert count.flops == 4 * b * heads * L * L * d
        out.sum().backward()
        assert count.flops == 14 * b * heads * L * L * d
        del out
        assert count.live == 2 * inputs + (before - inputs)
        with sdpa_kernel(SDPBackend.MATH):
            count.restart()
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert count.peak - count.live > 4 * b * heads * L * L


def test_it_leaves_attention_as_it_was() -> None:
    plain = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), counting():
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is plain


def weightless(count: object, layers: int | None = None) -> LanguageModel:
    return weightless_model(tiny_llama().config, LoraConfig(rank=2, alpha=4.0), torch.float32, count, layers)  # type: ignore[arg-type]


def along(model: LanguageModel, items: list) -> None:  # type: ignore[type-arg]
    factors = model.adapter_factors()
    with products_at(model, items, factors) as products:
        products.along_update(factors)


WORK: dict[str, Callable[[LanguageModel, list], object]] = {  # type: ignore[type-arg]
    "scores": lambda model, items: score(model, items, 8),  # in one pack: a CPU has a way of its own after a prefix
    "padded scores": lambda model, items: score(model, items, 4, packed=False),
    "training": lambda model, items: answer_losses(model, items).mean().backward(),
    "a product": along,
}


@pytest.mark.parametrize("work", WORK)
def test_operations_are_those_of_the_model_with_weights(llama_folder: Path, work: str) -> None:
    """PyTorch's own counter on the real model; there attention takes its plain path, whose products are the same."""
    real = load_tiny(llama_folder)
    items = make_encoded(real, 6)
    along(real, items)  # what is tried out once
    with FlopCounterMode(display=False) as expected, sdpa_kernel(SDPBackend.MATH):
        WORK[work](real, items)
    with counting() as count:
        model = weightless(count)
        assert model.supports_packing
        along(model, items)
        with sdpa_kernel(SDPBackend.MATH):
            count.restart()
            WORK[work](model, items)
        plain = count.flops
        count.restart()
        WORK[work](model, items)
    assert plain == expected.get_total_flops()
    assert count.flops == pytest.approx(plain, rel=0.2)  # the fused kernel computes probabilities again


def test_weights_are_counted_and_layers_can_be_left_out() -> None:
    real = sum(parameter.numel() for parameter in tiny_llama().parameters())
    with counting() as count:
        model = weightless(count)
        adapter = sum(pair.A.numel() + pair.B.numel() for pair in model.adapter_factors().values())
        assert 4 * (real + adapter) <= count.live < 4 * (real + adapter) + GRANULE * 200
        layers = decoder_layers(model.peft_model.get_base_model())
        assert len(layers) == 2 and are_alike(layers)  # noqa: PT018
        one = weightless(count, 1)
        assert len(decoder_layers(one.peft_model.get_base_model())) == 1


def test_layers_that_differ_are_told_apart() -> None:
    alike = nn.ModuleList([nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))])
    assert are_alike(alike)
    assert not are_alike(nn.ModuleList([*alike, nn.Sequential(nn.Linear(2, 4))]))
