"""Updates that are more than s B A, against what PEFT's own forward makes of the same adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from small_models import Everything
from tiny_models import make_encoded, plain_losses, save, tiny_gpt2, tiny_llama
from transformers import AutoModelForCausalLM

import llm_forgetting as lf
from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.checkpoint_plane import CheckpointPlane
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.path import interpolate
from llm_forgetting.landscape.spaces import WeightSpace
from llm_forgetting.models.adapter.adapted_model import AdaptedModel, attach_lora, target_layers
from llm_forgetting.models.adapter.full_updates import FullUpdates
from llm_forgetting.models.adapter.lora_options import KINDS
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.language_model import LanguageModel

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # PEFT warns of biases, of tied weights, and of what its kinds need
]
IDS = torch.tensor([[5, 6, 7, 8, 20]])
Q_V = ["q_proj", "v_proj"]

LORA: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "DoRA, Conv1D": {"use_dora": True, "target_modules": ["c_attn", "c_fc"]},
    "biases": {"bias": "all", "target_modules": ["c_attn"]},
    "biases of targets": {"bias": "lora_only", "target_modules": ["c_attn"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["c_attn"]},
    "head": {"modules_to_save": ["lm_head"]},
    "tied embedding and norm": {"modules_to_save": ["embed_tokens", "norm"]},
    "adapted embedding": {"target_modules": [*Q_V, "embed_tokens"]},
}
OTHERS: dict[str, Callable[[], Any]] = {
    "ADALORA": lambda: peft.AdaLoraConfig(r=2, total_step=10, target_modules=Q_V),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "C3A": lambda: peft.C3AConfig(block_size=8, target_modules=["q_proj"]),
    "DELORA": lambda: peft.DeloraConfig(r=2, target_modules=Q_V),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=10, scaling=10.0, target_modules=["q_proj"]),
    "GRALORA": lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"]),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=Q_V),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "LOHA": lambda: peft.LoHaConfig(r=2, target_modules=Q_V),
    "LOKR": lambda: peft.LoKrConfig(r=2, target_modules=Q_V),
    "MISS": lambda: peft.MissConfig(r=2, target_modules=Q_V),
    "OFT": lambda: peft.OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"]),
    "RANDLORA": lambda: peft.RandLoraConfig(r=2, randlora_alpha=1, target_modules=["q_proj"]),
    "ROAD": lambda: peft.RoadConfig(group_size=4, target_modules=Q_V),
    "SHIRA": lambda: peft.ShiraConfig(r=2, target_modules=Q_V),
    "VBLORA": lambda: peft.VBLoRAConfig(r=2, target_modules=["q_proj"], num_vectors=8, vector_length=8, topk=2),
    "VERA": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=10, target_modules=["q_proj"]),
}  # fmt: skip


def settings_of(kind: str) -> Any:
    if kind in OTHERS:
        return OTHERS[kind]()
    turned = kind in {"DoRA, Conv1D", "biases", "biases of targets", "lora_bias"}
    return peft.LoraConfig(**{"r": 2, "target_modules": Q_V, "fan_in_fan_out": turned, **LORA[kind]})


def bare_of(settings: Any) -> Any:
    tied = bool(getattr(settings, "modules_to_save", None)) and "norm" in settings.modules_to_save
    return tiny_gpt2() if getattr(settings, "fan_in_fan_out", False) else tiny_llama(tie_word_embeddings=tied)


def made(settings: Any) -> Any:
    """A fresh adapter by PEFT."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(bare_of(settings), settings)
    return model.eval()


def fill(model: Any, seed: int = 1, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data.add_(size * torch.randn(parameter.shape, generator=generator))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """BOFT would compile its kernel for CUDA: seconds, and setuptools for the whole process."""
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: None)


@pytest.mark.parametrize("kind", [*LORA, *OTHERS])
def test_the_update_is_that_of_pefts_own_forward(kind: str, tmp_path: Path) -> None:
    """Live and from a folder, put in the places of the weights; and the model is as before, to the bit."""
    settings = settings_of(kind)
    model, adapted = (live := made(settings)), AdaptedModel(live)  # the backbone's own biases are known before training
    fill(model)
    model.save_pretrained(tmp_path)
    other = AdaptedModel(made(settings_of(kind)))
    expected, bare = logits(model), logits(bare_of(settings))
    assert (expected - bare).abs().max() > 0.01
    assert not adapted.low_rank
    for reader, update in ((adapted, adapted.adapter_factors()), (other, other.update_of(tmp_path))):
        before = Everything(reader.peft_model)
        with reader.perturbed() as move:
            move(WeightUpdate({}))
            torch.testing.assert_close(logits(reader.peft_model), bare, rtol=0, atol=0)
            move(update)
            torch.testing.assert_close(logits(reader.peft_model), expected, rtol=1e-5, atol=1e-5)
            move(WeightUpdate.combine([(0.0, update), (0.5, update), (0.5, update)]))
            torch.testing.assert_close(logits(reader.peft_model), expected, rtol=1e-5, atol=1e-5)
        before.assert_same(reader.peft_model)


def test_every_kind_that_is_taken_was_held_against_peft() -> None:
    assert {*OTHERS, "LORA"} == KINDS


def test_several_active_adapters_are_one_update() -> None:
    model = made(peft.LoraConfig(r=2, target_modules=Q_V))
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    fill(model)
    adapted = AdaptedModel(model)
    expected = logits(model)
    with adapted.perturbed() as move:
        move(adapted.adapter_factors())
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Path, Path]:
    """A DoRA model whose head is trained too, and two checkpoints for it: its own kind, and plain LoRA of another rank."""
    folder = save(tmp_path_factory.mktemp("bare"), tiny_llama())
    first, second = tmp_path_factory.mktemp("dora"), tmp_path_factory.mktemp("lora")
    for place, settings in (
        (first, peft.LoraConfig(r=2, target_modules=Q_V, use_dora=True, modules_to_save=["lm_head"])),
        (second, peft.LoraConfig(r=3, target_modules=[*Q_V, "o_proj"])),
    ):
        model = made(settings)
        fill(model, seed=len(place.name))
        model.save_pretrained(place)
    return LanguageModel.open_adapter(first, ModelConfig(name=str(folder))), first, second


def dense_of(model: Any) -> dict[str, torch.Tensor]:
    """W' - W of all parameters, by PEFT's merge of a whole model."""
    before = {name: p.detach().clone() for name, p in tiny_llama().named_parameters()}
    return {name: p.detach() - before[name] for name, p in model.merge_and_unload().named_parameters()}


def test_sums_and_products_of_mixed_updates_are_those_of_dense_matrices(pair: Any) -> None:
    model, *folders = pair
    x, y = updates = [model.update_of(folder) for folder in folders]
    a, b = (dense_of(peft.PeftModel.from_pretrained(tiny_llama(), folder)) for folder in folders)
    product = lambda u, v: sum(float((u[n].double() * v[n].double()).sum()) for n in u)  # noqa: E731
    assert x.inner(y) == pytest.approx(product(a, b), rel=1e-4)
    assert [u.norm() for u in updates] == pytest.approx([product(a, a) ** 0.5, product(b, b) ** 0.5], rel=1e-5)
    mixed = WeightUpdate.combine([(1.0, y), (-2.0, x)])
    difference = {name: b[name] - 2 * a[name] for name in a}
    assert mixed.norm() == pytest.approx(product(difference, difference) ** 0.5, rel=1e-5)
    assert set(mixed.parameters) == {name for name, part in difference.items() if part.abs().max() > 1e-6}
    image = CheckpointPlane(WeightUpdate({}), x, y).project(mixed)
    assert image.residual < 1e-3 * mixed.norm()
    with pytest.raises(TypeError, match="only low-rank updates have canonical factors"):
        canonicalise(x)


def test_weight_space_has_the_row_norms_of_the_merged_weights_and_leaves_vectors_alone(pair: Any) -> None:
    model, folder, _ = pair
    update = model.update_of(folder)
    merged = dict(peft.PeftModel.from_pretrained(tiny_llama(), folder).merge_and_unload().named_parameters())
    norms = model.weight_row_norms(update)
    for name, rows in norms.items():
        torch.testing.assert_close(rows, merged[f"{name}.weight"].norm(dim=1), rtol=1e-5, atol=1e-6)
    assert set(norms) == {name.removesuffix(".weight") for name in update.parameters}
    space = WeightSpace(update, norms)
    d, e = space.directions(seed=0, count=2, length=0.5)
    assert abs(space.cosine(d, e)) < 1e-6
    step = WeightUpdate.combine([(1.0, space.point([(1.0, d)])), (-1.0, update)])
    assert step.norm() == pytest.approx(0.5, rel=1e-4)


def test_slope_and_curvature_along_a_mixed_update_are_those_of_a_fine_difference(pair: Any) -> None:
    model, *folders = pair
    first, second = (model.update_of(folder) for folder in folders)
    items = make_encoded(model, 3)
    difference = WeightUpdate.combine([(1.0, second), (-1.0, first)])

    def loss(t: float) -> float:
        with model.perturbed() as move, torch.no_grad():
            move(interpolate(first, second, t))
            return float(plain_losses(model, items).double().mean())

    h = 3e-2
    left, centre, right = loss(-h), loss(0.0), loss(h)
    for method in ("exact", "differences"):
        with products_at(model, items, first, micro_batch=2, method=method) as products:
            found = products.along_update(difference)
        assert found.loss == pytest.approx(centre, abs=1e-5)
        assert found.slope == pytest.approx((right - left) / (2 * h), rel=2e-2, abs=1e-3)
        assert found.curvature == pytest.approx((right - 2 * centre + left) / h**2, rel=5e-2, abs=2e-2)
    assert model.peft_model.active_adapters == ["default"]


def test_a_plain_model_that_has_read_another_kind_counts_as_such(pair: Any) -> None:
    _, dora, lora = pair
    model = AdaptedModel(peft.PeftModel.from_pretrained(tiny_llama(), lora).eval())
    assert model.low_rank
    expected = logits(peft.PeftModel.from_pretrained(tiny_llama(), dora).eval())
    update = model.update_of(dora)
    assert not model.low_rank
    with model.perturbed() as move:
        move(update)
        torch.testing.assert_close(logits(model.peft_model), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="a spectrum needs a plain LoRA adapter"):
        model.require_low_rank("a spectrum")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_initialisation_from_the_weights_is_pefts_own_as_plain_lora(init: str, rslora: bool, tmp_path: Path) -> None:
    """The saved adapter is loaded by PEFT on the original weights; one step of training is that of PEFT's own adapter."""
    settings = {"r": 2, "lora_alpha": 3, "use_rslora": rslora, "target_modules": Q_V, "init_lora_weights": init}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**settings))
    config = LoraConfig(rank=2, alpha=3, use_rslora=rslora, target_modules=tuple(Q_V), init=init)
    ours = attach_lora(tiny_llama(), config, seed=0)
    frozen = {name: p.clone() for name, p in ours.named_parameters() if not p.requires_grad}
    if "niter" not in init:  # that one draws random numbers
        for model in (theirs, ours):
            model.train()
            model(input_ids=IDS, labels=IDS).loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p.sub_(0.1 * p.grad)
        torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)
    assert (logits(ours) - logits(tiny_llama())).abs().max() > (0.01 if "niter" not in init else -1)
    for name, parameter in ours.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])
    for layer in target_layers(ours).values():
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert A.shape[0] == 4
        assert B.grad is None or not B.grad[:, 2:].any()
    AdaptedModel(ours).save(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(logits(again), logits(ours), rtol=1e-5, atol=1e-5)


def test_an_adapter_from_another_initialisation_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = save(tmp_path / "bare", tiny_llama())
    config = LoraConfig(rank=2, target_modules=("q_proj",), init="pissa")
    model = LanguageModel.load(ModelConfig(name=str(folder)), config, seed=0)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    model.load_adapter_weights(tmp_path / "adapter")
    with torch.no_grad():
        next(iter(target_layers(model.peft_model).values())).lora_A["default"].weight[3] += 1
    with pytest.raises(UserError, match=r"the adapter, as training left it, must hold what lora\.init takes out"):
        model.save(tmp_path / "adapter")
    model.peft_model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"must hold what lora\.init takes out of this backbone's weights"):
        model.load_adapter_weights(tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"lora.init=pissa needs a rank of at most the smallest side .* lower lora.rank"
    ):
        attach_lora(tiny_llama(), LoraConfig(rank=17, init="pissa"), seed=0)


# Models of narrow weights, whole models, and the Python API


def test_over_narrow_weights_everything_is_computed_in_float32(tmp_path: Path) -> None:
    folder = save(tmp_path / "bare", tiny_llama())
    config = LoraConfig(rank=2, target_modules=tuple(Q_V), use_dora=True)
    model = LanguageModel.load(ModelConfig(name=str(folder), dtype="bfloat16"), config, seed=0)
    fill(model.peft_model)
    assert (model.dtype, model.precision) == (torch.bfloat16, torch.float32)
    update = model.adapter_factors()
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if name in update.dense:
                parameter.add_(update.dense[name].read())
    items = make_encoded(model, 2)
    with model.perturbed() as move, torch.no_grad():
        move(update)
        torch.testing.assert_close(logits(model.peft_model), logits(oracle), rtol=1e-5, atol=1e-5)
        centre = float(plain_losses(model, items).mean())
    with products_at(model, items, update) as products:
        found = products.along_update(update)
    assert found.loss == pytest.approx(centre, abs=1e-5)
    assert found.slope != 0


def full_model(tmp_path: Path, **changes: Any) -> tuple[LanguageModel, Path]:
    """A whole model on a base, and the folder of another."""
    base = save(tmp_path / "base", tiny_llama(**changes))
    other = tiny_llama(**changes)
    with torch.no_grad():
        for n, parameter in enumerate(other.parameters()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
    other.save_pretrained(tmp_path / "other")
    return LanguageModel.load(ModelConfig(name=str(base)), None, seed=0), tmp_path / "other"


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_is_read_from_its_files(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its files name the parameters otherwise: then transformers reads them."""
    model, folder = full_model(tmp_path, tie_word_embeddings=tied)
    other = AutoModelForCausalLM.from_pretrained(folder)
    before = Everything(model.peft_model)
    update = model.update_of(folder)
    pairs = zip(other.parameters(), tiny_llama(tie_word_embeddings=tied).parameters(), strict=True)
    difference = [(p - q).double().square().sum() for p, q in pairs]
    assert update.norm() == pytest.approx(float(torch.stack(difference).sum()) ** 0.5, rel=1e-4)
    with model.perturbed() as move:
        move(update)
        torch.testing.assert_close(logits(model.peft_model), logits(other), rtol=1e-5, atol=1e-5)
    before.assert_same(model.peft_model)
    monkeypatch.setattr(FullUpdates, "_fits", lambda updates, folder: False)
    assert model.update_of(folder).norm() == pytest.approx(update.norm(), rel=1e-6)


def test_the_live_whole_model_is_what_was_loaded_or_trained(tmp_path: Path) -> None:
    model, folder = full_model(tmp_path)
    start = model.adapter_sha256()
    assert model.adapter_factors().norm() == 0
    model.load_adapter_weights(folder)
    expected = model.update_of(folder).norm()
    assert model.adapter_factors().norm() == pytest.approx(expected, rel=1e-6)
    kept = model.adapter_state()
    with torch.no_grad():
        next(model.peft_model.parameters()).add_(1.0)
    assert model.adapter_factors().norm() > 2 * expected
    model.set_adapter_state(kept)
    assert model.adapter_factors().norm() == pytest.approx(expected, rel=1e-6)
    model.set_adapter_state({})
    assert (model.adapter_factors().norm(), model.adapter_sha256()) == (0, start)


def test_what_is_no_whole_model_of_this_architecture_is_refused_in_one_line(pair: Any, tmp_path: Path) -> None:
    _, adapter, _ = pair
    model, folder = full_model(tmp_path)
    wider = save(tmp_path / "wider", tiny_llama(intermediate_size=32))
    reasons = {adapter: "a folder with a whole model is needed", wider: "must have the architecture of this one"}
    for place, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            model.update_of(place)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"must be whole, model\.safetensors is not"):
        model.update_of(folder)


def test_the_python_api_measures_any_adapter(pair: Any) -> None:
    """In weight space, from the live model and from folders; what needs factors is refused in one line."""
    _, dora, lora = pair
    model = peft.PeftModel.from_pretrained(tiny_llama(), dora).eval()
    batches = [{"input_ids": IDS, "labels": IDS}]
    expected = float(model(**batches[0]).loss)
    before = Everything(model)
    surface = lf.scan_plane(model, None, batches, resolution=5, max_evaluations=23)
    assert surface.losses[2, 2] == pytest.approx(expected, abs=1e-2)
    plane = lf.checkpoint_plane(
        model, None, batches, checkpoints={"base": None, "A": str(dora), "B": str(lora)}, resolution=5
    )
    step = lf.checkpoint_difference(model, str(dora), str(lora))
    forecast = lf.forecast(model, None, batches, direction=step)
    line = lf.scan_line(model, None, batches, direction=step, steps=[-0.03, 0.0, 0.03, 1.0])
    before.assert_same(model)
    plain = peft.PeftModel.from_pretrained(tiny_llama(), lora).eval()
    back = lf.forecast(plain, None, batches, direction=WeightUpdate.combine([(-1.0, step)]))
    assert back.loss + back.observed == pytest.approx(expected, abs=2e-5)
    other = peft.PeftModel.from_pretrained(tiny_llama(), lora).eval()
    true = [float(net(**batches[0]).loss) for net in (tiny_llama(), model, other)]
    assert list(plane.at_checkpoints.values()) == pytest.approx(true, abs=1e-5)
    left, centre, right, end = line.losses
    assert (forecast.loss, centre, end) == pytest.approx((true[1], true[1], true[2]), abs=1e-5)
    assert forecast.observed == pytest.approx(true[2] - true[1], abs=2e-5)
    assert forecast.first_order == pytest.approx((right - left) / 0.06, rel=2e-2, abs=1e-3)
    assert forecast.curvature == pytest.approx((right - 2 * centre + left) / 0.03**2, rel=5e-2, abs=2e-2)
    for call in (
        lambda: lf.hessian_spectrum(model, None, batches),
        lambda: lf.scan_plane(model, None, batches, space="adapter"),
    ):
        with pytest.raises(lf.UserError, match="needs a plain LoRA adapter"):
            call()
