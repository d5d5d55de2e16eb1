"""The public API on PEFT models: dict batches, adapter space, checkpoints as adapters, and nothing left behind."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from tiny_models import fill_adapter, tiny_llama
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

import llm_forgetting as lf
from llm_forgetting.landscape.directions import random_direction
from llm_forgetting.landscape.gauge import canonicalise, regauged
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, target_layers

pytestmark = pytest.mark.usefixtures("one_thread")
DictBatch = dict[str, torch.Tensor]


def adapted(seed: int = 0, size: float = 0.3, backbone: Any = None, name: str = "default", **lora: Any) -> Any:
    """A tiny Llama whose adapter has been filled."""
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        tiny_llama() if backbone is None else backbone, peft.LoraConfig(**settings), adapter_name=name
    )
    fill_adapter(model, seed, size)
    return model


def some_batches() -> list[DictBatch]:
    """Two batches of unlike size, with padding that is no label, and a row without any."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for rows, length in ((3, 7), (1, 4)):
        ids = torch.randint(3, 90, (rows, length), generator=generator)
        labels = ids.clone()
        labels[0, :3] = -100
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    batches[0]["labels"][2] = -100
    return batches


def per_token(model: Any, batches: list[DictBatch]) -> float:
    """The definition: mean of -log p over all predicted tokens."""
    found = []
    with torch.no_grad():
        for batch in batches:
            log_p = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
            for row, labels in zip(log_p, batch["labels"], strict=True):
                found += [-float(row[t - 1, labels[t]]) for t in range(1, len(labels)) if labels[t] != -100]
    return float(np.mean(found))


def test_dict_batches_weigh_their_predicted_tokens() -> None:
    model, batches = adapted().eval(), some_batches()
    expected = per_token(model, batches)
    for loss in (None, lambda model, batch: model(**batch).loss):
        assert lf.scan_line(model, loss, batches, steps=[0.0])[0] == pytest.approx(expected, rel=1e-5)
    by_items = np.average([per_token(model, [batch]) for batch in batches], weights=[3, 1])
    assert abs(by_items - expected) > 1e-3


def test_labels_of_classifiers_are_not_shifted() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=3,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = [torch.randint(1, 50, size) for size in ((3, 5), (1, 5))]
    classes = [{"input_ids": part, "labels": torch.randint(3, (len(part),))} for part in ids]
    tags = [{"input_ids": part, "labels": torch.randint(3, part.shape)} for part in ids]
    tags[0]["labels"][0, :4] = -100
    for kind, batches in ((LlamaForSequenceClassification, classes), (LlamaForTokenClassification, tags)):
        model = kind(config).eval()
        with torch.no_grad():
            logits = torch.cat([model(input_ids=b["input_ids"]).logits.reshape(-1, 3) for b in batches])
        expected = F.cross_entropy(logits, torch.cat([b["labels"].reshape(-1) for b in batches]))
        assert lf.scan_line(model, None, batches, steps=[0.0])[0] == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_returns_no_loss_is_told() -> None:
    with pytest.raises(lf.UserError, match=r"must return a loss, it does not for input_ids: add labels, or pass loss="):
        lf.scan_line(adapted(), None, [{"input_ids": torch.ones(1, 3, dtype=torch.long)}])


def rewritten(model: Any) -> Any:
    """The same function, its adapter written in another gauge."""
    other = copy.deepcopy(model)
    factors = regauged(AdaptedModel(other).adapter_factors(), 5)
    for name, layer in target_layers(other).items():
        layer.lora_A["default"].weight.data = factors[name].A
        layer.lora_B["default"].weight.data = factors[name].B / layer.scaling["default"]
    return other


def test_a_float64_adapter_is_measured_in_float64() -> None:
    model = adapted().double()
    expected = {}
    for name, layer in target_layers(model).items():
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        B.mul_(1 / 3)
        expected[name] = 2.0 * B @ A
    factors = AdaptedModel(model).adapter_factors()
    canonical = canonicalise(factors)
    for name, delta in expected.items():
        for pair in (factors[name], canonical[name].factors):
            assert float((pair.B @ pair.A - delta).abs().max()) < 1e-14
    assert {part.dtype for part in vars(random_direction(canonical, 0, 0)[name]).values()} == {torch.float64}


@pytest.mark.parametrize("directions", ["random", "gradient"])
def test_surfaces_in_adapter_space_do_not_depend_on_the_gauge(directions: Any) -> None:
    model, batches = adapted(), some_batches()
    here, there = (
        lf.scan_plane(m, None, batches, directions=directions, method="grid", resolution=3)
        for m in (model, rewritten(model))
    )
    np.testing.assert_allclose(here.losses, there.losses, rtol=1e-4)
    assert np.ptp(here.losses) > 0.1
    assert here.along.norm == pytest.approx(there.along.norm, rel=1e-5)
    assert abs(here.along.cosine or 0.0) < 1e-6


def test_the_gradient_in_adapter_space_is_that_of_the_canonical_factors() -> None:
    """Slope of the line: minus the norm of the gradient times the length of a step, both from dense matrices in float64."""
    model, batches = adapted().double(), some_batches()
    layers = target_layers(model)
    weights = {f"{name}.weight": layer.get_base_layer().weight.detach() for name, layer in layers.items()}
    adapter = canonicalise(AdaptedModel(model).adapter_factors())
    factors = {name: (m.factors.B.double(), m.factors.A.double()) for name, m in adapter.items()}
    leaves = [part.requires_grad_() for pair in factors.values() for part in pair]
    backbone = tiny_llama().double()
    merged = {f"{name}.weight": weights[f"{name}.weight"] + B @ A for name, (B, A) in factors.items()}
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        loss = torch.func.functional_call(backbone, merged, args=(), kwargs=batch).loss
        total = total + loss * float((batch["labels"][:, 1:] != -100).sum())
    mean = total / sum(float((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    norm = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, leaves)]).norm()
    h = 1e-3
    line = lf.scan_line(model, None, batches, direction="gradient", steps=[-h, h], reference_norm=2.5)
    assert line.along.units == (2.5,)
    assert (line[1] - line[0]) / (2 * h) == pytest.approx(-float(norm) * line.along.units[0], rel=1e-3)


def test_given_directions_move_raw_factors_where_those_are_named() -> None:
    model, batches = adapted().eval(), some_batches()
    d = {name: torch.randn_like(p) for name, p in model.named_parameters() if "lora_" in name}
    line = lf.scan_line(model, None, batches, direction=d, steps=[0.25])
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        parameter.data += 0.25 * d[name] if name in d else 0
    assert line[0] == pytest.approx(per_token(other, batches), rel=1e-5)


def snapshot(model: Any) -> dict[str, Any]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {
        "tensors": tensors,
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "switches": [layer.disable_adapters for layer in target_layers(model).values()],
        "active": list(model.active_adapters),
        "hooks": sum(len(module._forward_hooks) for module in model.modules()),
    }


def assert_untouched(model: Any, before: Mapping[str, Any]) -> None:
    now = snapshot(model)
    for name, tensor in now.pop("tensors").items():
        assert torch.equal(tensor, before["tensors"][name]), name
    assert now == {name: value for name, value in before.items() if name != "tensors"}


def test_moving_an_adapter_does_not_make_it_trainable() -> None:
    """PEFT trains whatever it switches back on."""
    model = adapted().requires_grad_(False)
    moving = AdaptedModel(model)
    for context in (moving.perturbed, moving.unmerged):
        with context():
            pass
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("ending", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["trained", "for inference", "bfloat16"])
def test_a_scan_leaves_no_trace(kind: str, ending: type[BaseException] | None) -> None:
    model, batches = adapted(lora_dropout=0.3).train(), some_batches()
    if kind == "for inference":  # what PeftModel.from_pretrained gives
        model.eval().requires_grad_(False)
    if kind == "bfloat16":
        model.get_base_model().to(torch.bfloat16)
        fill_adapter(model)
    before, count = snapshot(model), iter(range(1000))

    def loss(model: Any, batch: DictBatch) -> torch.Tensor:
        if ending and next(count) == 9:
            raise ending
        return model(**batch).loss  # type: ignore[no-any-return]

    for directions in ("random", "gradient"):
        count = iter(range(1000))
        if ending:
            with pytest.raises(ending):
                lf.scan_plane(model, loss, batches, directions=directions, max_evaluations=23)  # type: ignore[arg-type]
        else:
            lf.scan_plane(model, loss, batches, directions=directions, max_evaluations=23)  # type: ignore[arg-type]
        assert_untouched(model, before)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have passed a PEFT config with .*tied:UserWarning")
def test_a_head_that_is_tied_to_the_embedding_is_not_merged() -> None:
    """W + B A written into the head would move the embedding too; the adapter moves the head alone."""
    model = adapted(backbone=tiny_llama(tie_word_embeddings=True), target_modules=["lm_head", "q_proj"]).eval()
    batches, before = some_batches(), snapshot(model)
    assert not AdaptedModel(model).can_merge
    assert lf.scan_line(model, None, batches, steps=[0.0])[0] == pytest.approx(per_token(model, batches), rel=1e-5)
    assert_untouched(model, before)
    with pytest.raises(lf.UserError, match="needs space='adapter'"):
        lf.scan_line(model, None, batches, space="weight", direction="gradient")
    line = lf.scan_line(model, None, batches, space="weight", steps=[0.0, 0.1])
    assert line[0] == pytest.approx(per_token(model, batches), rel=1e-5)
    assert abs(line[1] - line[0]) > 1e-4
    assert_untouched(model, before)


def test_merged_weights_can_be_scanned_too() -> None:
    model, batches = adapted().eval(), some_batches()
    line = lf.scan_line(model, None, batches, space="weight", steps=[0.0, 0.1])
    assert line[0] == pytest.approx(per_token(model, batches), rel=1e-5)
    assert abs(line[1] - line[0]) > 1e-4
    norms = AdaptedModel(model).weight_row_norms().values()
    assert line.along.norm == pytest.approx(float(torch.cat(list(norms)).norm()), rel=1e-5)


def test_an_adapter_of_another_name_and_beside_others() -> None:
    model, batches = adapted(name="mine").eval(), some_batches()
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["k_proj"]))
    before = snapshot(model)
    line = lf.scan_line(model, None, batches, steps=[0.0, 1.0])
    assert line[0] == pytest.approx(per_token(model, batches), rel=1e-5)
    assert list(AdaptedModel(model).adapter_factors()) == [
        f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"
    ]
    assert_untouched(model, before)


def test_any_architecture_will_do() -> None:
    """PEFT on a plain torch module: no configuration, no tokens."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model = adapted(backbone=net, target_modules=["0", "2"], task_type=None)
    x, y = torch.randn(9, 3), torch.randint(2, (9,))
    flat = lf.flatness(
        model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x[:5], y[:5]), (x[5:], y[5:])], directions=3
    )
    assert flat.centre == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    assert flat.along.description.startswith("random directions of the adapter's own reachable set")


def test_a_fresh_adapter_has_no_directions() -> None:
    with pytest.raises(lf.UserError, match="must have been trained"):
        lf.flatness(adapted(size=0.0), None, some_batches())
    with pytest.raises(lf.UserError, match="must have been trained"):
        lf.scan_line(adapted(size=0.0), None, some_batches(), direction="gradient")


def test_a_module_that_only_contains_adapters_is_refused_unless_directions_are_given() -> None:
    model = torch.nn.Sequential(
        adapted(backbone=torch.nn.Sequential(torch.nn.Linear(3, 2)), target_modules=["0"], task_type=None)
    )
    batches = [torch.ones(2, 3)]

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()  # type: ignore[no-any-return]

    with pytest.raises(lf.UserError, match=r"must be a PEFT model .* or give directions"):
        lf.scan_line(model, loss, batches)
    d = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert np.isfinite(lf.scan_line(model, loss, batches, direction=d, steps=[0.0, 1.0]).losses).all()
    with pytest.raises(lf.UserError, match="parameters= is for plain modules"):
        lf.scan_line(adapted(), None, some_batches(), parameters=["*"])


def test_adapters_as_checkpoints(tmp_path: Path) -> None:
    """The bare backbone, a saved adapter of another rank and scale, and a state dict: each has its own model's loss."""
    model, batches = adapted(1).eval(), some_batches()
    saved = adapted(2, r=3, lora_alpha=1, use_rslora=True, size=0.8).eval()
    saved.save_pretrained(tmp_path)
    before = snapshot(model)
    checkpoints = {
        "backbone": None,
        "saved": tmp_path,
        "live": {name: t for name, t in model.state_dict().items() if "lora_" in name},
    }
    found = lf.checkpoint_plane(model, None, batches, checkpoints=checkpoints, resolution=5)
    for name, other in (("backbone", tiny_llama()), ("saved", saved), ("live", model)):
        assert found.at_checkpoints[name] == pytest.approx(per_token(other, batches), rel=1e-4)
    deltas = {
        name: torch.cat([layer.get_delta_weight("default").reshape(-1) for layer in target_layers(m).values()])
        for name, m in (("saved", saved), ("live", model))
    }
    assert found.checkpoints["backbone"] == (0.0, 0.0)
    assert found.checkpoints["saved"] == pytest.approx((float(deltas["saved"].detach().norm()), 0.0), rel=1e-5)
    assert float(np.hypot(*found.checkpoints["live"])) == pytest.approx(float(deltas["live"].detach().norm()), rel=1e-5)
    way = lf.checkpoint_difference(model, checkpoints["live"], tmp_path)
    line = lf.scan_line(model, None, batches, direction=way, steps=[0.0, 1.0])
    assert line[1] == pytest.approx(per_token(saved, batches), rel=1e-4)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        ({"x": torch.ones(2)}, "must hold the A and B of a LoRA adapter and nothing else, it holds x"),
        ({"q.lora_A.weight": torch.ones(2, 3)}, "both A and B of every module, of q it does not"),
        ({f"q.lora_{n}.weight": torch.ones(2, 2) for n in "AB"}, r"must adapt the same modules as the model, 5 differ"),
        ("nowhere", r"a folder with a saved PEFT adapter is needed .* nowhere has no adapter_config.json"),
    ],
)
def test_checkpoints_that_do_not_fit(checkpoint: Any, reason: str) -> None:
    with pytest.raises(lf.UserError, match=reason) as error:
        lf.checkpoint_plane(adapted(), None, some_batches(), checkpoints=[None, None, checkpoint])
    assert "\n" not in str(error.value)
