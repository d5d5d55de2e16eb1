"""Penalties of methods against closed forms: EWC on delta W in two gauges, KL to the model before, orthogonal adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from tiny_models import fill_adapter, load, make_encoded, plain_losses

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, regauged
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.fisher import Diagonal, Kronecker
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask, collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.text_loss import Passage, passage_item
from llm_forgetting.training.method import Start
from llm_forgetting.training.methods.ewc import Anchored, Ewc, EwcOptions
from llm_forgetting.training.methods.kl import Kl, KlOptions, divergence
from llm_forgetting.training.methods.o_lora import OLora, OLoraOptions

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS = 5


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    """With an adapter that is not 0; tests leave it as it was."""
    return load(llama_folder)


@pytest.fixture(scope="module")
def items(model: LanguageModel) -> list[EncodedItem]:
    return make_encoded(model, ITEMS)


def started(model: LanguageModel, items: list[EncodedItem], **fields: Any) -> Start:
    task = EncodedTask("old", tuple(items), ())
    return Start(model, EncodedTask("new", (), ()), number=2, previous=task, **fields)


def set_factors(model: LanguageModel, update: Any) -> None:
    with torch.no_grad():
        for name, layer in target_layers(model.peft_model).items():
            layer.lora_A["default"].weight.copy_(update[name].A)
            layer.lora_B["default"].weight.copy_(update[name].B / layer.scaling["default"])


# --- EWC ----------------------------------------------------------------------------------------------------------------------


def begun(kind: Any, model: LanguageModel, items: list[EncodedItem], strength: float = 1.0) -> Ewc:
    ewc = Ewc(EwcOptions(strength, kind))
    ewc.begin(started(model, items))
    return ewc


def alone(model: LanguageModel, items: list[EncodedItem]) -> Iterator[torch.Tensor]:
    """Each item's loss, with a graph of its own."""
    return (plain_losses(model, [item])[0] for item in items)


def dense_gradients(model: LanguageModel, items: list[EncodedItem], name: str) -> torch.Tensor:
    """(items, d_out, d_in) gradients of each item's loss in one module's own weight, by plain autograd."""
    weight = target_layers(model.peft_model)[name].get_base_layer().weight
    weight.requires_grad_(True)
    try:
        return torch.stack([torch.autograd.grad(loss, weight)[0] for loss in alone(model, items)])
    finally:
        weight.requires_grad_(False)


def test_the_diagonal_is_the_mean_of_squared_gradients_in_the_weight(
    model: LanguageModel, items: list[EncodedItem]
) -> None:
    fisher = begun("diagonal", model, items).tasks[0].fisher
    assert set(fisher) == set(target_layers(model.peft_model))
    for name in list(fisher)[:3]:
        found = fisher[name]
        assert isinstance(found, Diagonal)
        expected = dense_gradients(model, items, name).square().mean(dim=0)
        torch.testing.assert_close(found.squares, expected, rtol=1e-4, atol=1e-9)


def test_kronecker_factors_are_those_of_the_layer_s_own_passes(model: LanguageModel, items: list[EncodedItem]) -> None:
    """Input and output gradients of one module, by a second set of hooks; of one token their product is exact."""
    name = "model.layers.1.mlp.down_proj"
    layer, xs, gs = target_layers(model.peft_model)[name], [], []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        xs.append(inputs[0].detach()[0])
        output.register_hook(lambda g: gs.append(g.detach()[0]))

    handle = layer.get_base_layer().register_forward_hook(keep)
    layer.get_base_layer().weight.requires_grad_(True)
    for loss in alone(model, items):
        loss.backward()
    handle.remove()
    layer.get_base_layer().weight.requires_grad_(False)
    layer.get_base_layer().weight.grad = None
    model.peft_model.zero_grad(set_to_none=True)
    found = begun("kronecker", model, items).tasks[0].fisher[name]
    assert isinstance(found, Kronecker)
    x, g = torch.cat(xs), torch.cat(gs)
    torch.testing.assert_close(found.inputs, x.T @ x / len(x), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.outputs, g.T @ g / ITEMS, rtol=1e-4, atol=1e-9)


def test_the_quadratic_forms_are_those_of_whole_matrices() -> None:
    draw = torch.Generator().manual_seed(0)
    B, A, X, G = (torch.randn(*shape, generator=draw).double() for shape in ((4, 2), (2, 3), (9, 3), (9, 4)))
    D = B @ A
    half = Kronecker(X.T @ X / 9, G.T @ G / 9)
    vec = D.T.reshape(-1)  # columns one after the other
    torch.testing.assert_close(half.quadratic(Factors(B, A)), vec @ torch.kron(half.inputs, half.outputs) @ vec)
    squares = torch.rand(4, 3, generator=draw).double()
    torch.testing.assert_close(Diagonal(squares).quadratic(Factors(B, A)), (squares * D * D).sum())


def raw_penalty(model: LanguageModel, items: list[EncodedItem], moved: dict[str, Factors]) -> float:
    """What EWC on the entries of A and B would be, from the live factors to `moved`, by plain autograd."""
    layers = target_layers(model.peft_model)
    weights = {name: (layer.lora_B["default"].weight, layer.lora_A["default"].weight) for name, layer in layers.items()}
    flat = [weight for pair in weights.values() for weight in pair]
    per_item = [torch.autograd.grad(loss, flat) for loss in alone(model, items)]
    squares = [torch.stack(gradients).square().mean(dim=0) for gradients in zip(*per_item, strict=True)]
    targets = [t for name in weights for t in (moved[name].B / layers[name].scaling["default"], moved[name].A)]
    return 0.5 * sum(
        float((f * (t - w.detach()).square()).sum()) for f, t, w in zip(squares, targets, flat, strict=True)
    )


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_ewc_on_delta_w_is_the_same_in_two_gauges_and_ewc_on_factors_is_not(
    kind: str, llama_folder: Path, items: list[EncodedItem]
) -> None:
    """Fisher information, penalty, and its gradient pulled back to delta W, at a point that is as far from both."""
    penalties, gradients, raw = [], [], []
    for gauge in (None, 3):
        model = load(llama_folder)
        start = model.adapter_factors()
        here = dict(start) if gauge is None else regauged(start, gauge)
        set_factors(model, here)
        ewc = begun(kind, model, items, strength=2.0)
        # The same function in both gauges: B and A moved by what the gauge makes of one step.
        step = {name: Factors(p.B.double() + 0.1, p.A.double() - 0.05) for name, p in start.items()}
        moved = step if gauge is None else regauged(step, gauge)
        doubled = {n: type(f)(*(t.double() for t in vars(f).values())) for n, f in ewc.tasks[0].fisher.items()}
        anchor = {n: Factors(p.B.double(), p.A.double()) for n, p in ewc.tasks[0].update.items()}
        ewc.tasks = [Anchored(WeightUpdate(anchor), doubled)]
        leaves = {
            name: Factors(p.B.clone().requires_grad_(), p.A.clone().requires_grad_()) for name, p in moved.items()
        }
        penalty = ewc.penalty_at(WeightUpdate(leaves))
        penalties.append(float(penalty.detach()))
        raw.append(raw_penalty(model, items, moved))
        name = "model.layers.0.self_attn.q_proj"
        gB, gA = torch.autograd.grad(penalty, [leaves[name].B, leaves[name].A])
        # The gradient G in delta W acts on tangents dB A + B dA: of it G A^T and B^T G are seen, here without A and B.
        A, B = leaves[name].A.detach(), leaves[name].B.detach()
        gradients.append((gB @ torch.linalg.pinv(A.T), torch.linalg.pinv(B.T) @ gA))
    assert penalties[1] == pytest.approx(penalties[0], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).norm()) < 1e-5 * float(one.norm())
    assert abs(raw[1] / raw[0] - 1) > 0.1


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_what_ewc_keeps_for_a_third_task_is_what_it_had(
    kind: str, model: LanguageModel, items: list[EncodedItem], tmp_path: Path
) -> None:
    first = Ewc(EwcOptions(1.0, kind))
    first.begin(started(model, items, last=False))
    first.save(tmp_path)
    second = Ewc(EwcOptions(1.0, kind))
    second.begin(started(model, items[:3], kept=tmp_path))
    assert len(second.tasks) == 2
    update = WeightUpdate({name: Factors(p.B + 0.1, p.A) for name, p in model.adapter_factors().items()})
    alone = Ewc(EwcOptions(1.0, kind))
    alone.begin(started(model, items[:3]))
    total = float(first.penalty_at(update)) + float(alone.penalty_at(update))
    assert float(second.penalty_at(update)) == pytest.approx(total, rel=1e-6)
    assert float(second.penalty_at(model.adapter_factors())) == pytest.approx(0, abs=1e-8)
    assert isinstance(second.tasks[0], Anchored)
    second.save(tmp_path / "..")  # the last task keeps nothing
    assert not list(tmp_path.parent.glob("*.safetensors"))


# --- KL -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_divergence_is_that_of_scipy(direction: str) -> None:
    draw = torch.Generator().manual_seed(0)
    before, now = (3 * torch.randn(4, 7, generator=draw).double() for _ in range(2))
    p, q = (
        log_softmax(logits.numpy(), axis=1) for logits in ((before, now) if direction == "forward" else (now, before))
    )
    expected = rel_entr(np.exp(p), np.exp(q)).sum(axis=1).mean()
    assert float(divergence(before, now, direction)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("source", ["inputs", "text", "generated"])
def test_the_penalty_is_zero_before_training_and_that_of_two_models_after(source: Any, llama_folder: Path) -> None:
    model, earlier = load(llama_folder), load(llama_folder)
    items = make_encoded(model, 3)
    passages = [Passage(f"passage/{n}", tuple(item.input_ids[:9])) for n, item in enumerate(items)]
    kl = Kl(KlOptions(strength=0.5, source=source, batch=2, texts=3, tokens=6))
    kl.begin(started(model, items, text=lambda: [passage_item(passage) for passage in passages]))
    trained = [p for p in model.peft_model.parameters() if p.requires_grad]
    start = kl.penalty(model, items)
    assert float(start.detach()) == pytest.approx(0, abs=1e-7)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(start, trained)) < 1e-6
    fill_adapter(model.peft_model, seed=1)
    live = [p.detach().clone() for p in trained]
    found = kl.penalty(model, items)
    used = items if source == "inputs" else list(kl._texts)
    with torch.no_grad():
        pairs = [(earlier.answer_logits(collate([i], 0)), model.answer_logits(collate([i], 0))) for i in used]
        each = [divergence(a, b, "forward") * len(a) for a, b in pairs]
    sizes = [len(item.predictions) for item in used]
    if source == "inputs":
        assert float(found.detach()) == pytest.approx(0.5 * float(sum(each)) / sum(sizes), rel=1e-4)
    else:  # two of three texts, whichever the batch chose
        means = [0.5 * float(each[a] + each[b]) / (sizes[a] + sizes[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert min(abs(float(found.detach()) / mean - 1) for mean in means) < 1e-4
        assert torch.equal(kl.penalty(model, items), found)
    assert all(torch.equal(p, kept) for p, kept in zip(trained, live, strict=True))
    assert float(sum(g.square().sum() for g in torch.autograd.grad(found, trained))) > 0


# --- O-LoRA -------------------------------------------------------------------------------------------------------------------


def test_loss_and_gradients_are_those_of_two_adapters_of_peft(llama_folder: Path) -> None:
    """The penalty by the loop of the original's trainer, on a PEFT model with the earlier adapter beside the new one."""
    model, other = load(llama_folder), load(llama_folder)
    items = make_encoded(model, 4)
    method = OLora(OLoraOptions(strength=0.5, norm=0.1))
    method.begin(started(model, items))
    layers, fresh = target_layers(model.peft_model), {}
    draw = torch.Generator().manual_seed(3)
    for name, layer in layers.items():
        B, A = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        B.data[:, 2:] = 0.3 * torch.randn(len(B), 2, generator=draw)
        fresh[name] = B.detach()[:, 2:].clone(), A.detach()[2:].clone()
    loss = plain_losses(model, items).mean() + method.penalty(model, items)
    loss.backward()  # type: ignore[no-untyped-call]

    theirs = other.peft_model
    theirs.add_adapter("new", theirs.peft_config["default"])
    theirs.base_model.set_adapter(["default", "new"])
    orthogonal, norms = torch.zeros(()), torch.zeros(())
    for name, layer in target_layers(theirs).items():
        layer.lora_B["new"].weight.data, layer.lora_A["new"].weight.data = (t.clone() for t in fresh[name])
        orthogonal = (
            orthogonal + torch.abs(torch.mm(layer.lora_A["default"].weight, layer.lora_A["new"].weight.T)).sum()
        )
        norms = norms + sum(torch.norm(part["new"].weight, p=2) for part in (layer.lora_A, layer.lora_B))
    expected = plain_losses(other, items).mean() + 0.5 * orthogonal + 0.1 * norms
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()  # type: ignore[no-untyped-call]
    for name, layer in target_layers(theirs).items():
        A, B = (part["default"].weight.grad for part in (layers[name].lora_A, layers[name].lora_B))
        assert not A[:2].any()
        assert not B[:, :2].any()
        torch.testing.assert_close(A[2:], layer.lora_A["new"].weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(B[:, 2:], layer.lora_B["new"].weight.grad, rtol=1e-4, atol=1e-5)
