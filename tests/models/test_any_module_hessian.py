"""`hessian_spectrum` and `forecast` on other people's models against dense Hessians."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import THOROUGH
from scipy.sparse.linalg import eigsh
from small_models import Batch, Point, draw_like, mean_loss, network, over_all, some_batches
from tiny_models import load
from torch.func import functional_call

import llm_forgetting as lf
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, regauged
from llm_forgetting.models.any_module.hessian import hessian_operator

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(model: torch.nn.Module, batches: list[Batch], names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and Hessian of the mean over all items in the named parameters, by torch's own functions."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}
    shapes = [fixed[name].shape for name in names]
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def f(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, {**fixed, **given}, x), y)

    start = torch.cat([fixed[name].flatten() for name in names]).requires_grad_()
    (gradient,) = torch.autograd.grad(f(start), start, create_graph=True)
    return gradient.detach(), torch.stack([torch.autograd.grad(g, start, retain_graph=True)[0] for g in gradient])


def test_the_spectrum_of_a_network_is_that_of_its_dense_hessian() -> None:
    model, batches = network(), some_batches()
    names = [name for name, _ in model.named_parameters()]
    gradient, H = dense(model, batches, names)
    calls: list[int] = []
    found = lf.hessian_spectrum(
        model, mean_loss, batches, eigenvalues=2, lanczos_steps=31, progress=lambda: calls.append(1)
    )
    true = torch.linalg.eigvalsh(H)
    assert found.dimension == 31
    assert [entry.value for entry in found.largest] == pytest.approx(true[-2:].flip(0).tolist(), rel=1e-8)
    assert found.smallest[0].value == pytest.approx(float(true[0]), abs=1e-8)
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-8)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    start = 0
    for name, p in model.named_parameters():
        block = slice(start, start := start + p.numel())
        assert found.trace_by_module[name].value == pytest.approx(float(H.diagonal()[block].sum()), abs=1e-7)
    assert found.products == len(calls)


def test_eigsh_of_scipy_gives_the_extremes_of_the_dense_hessian() -> None:
    model, batches = network(), some_batches()
    gradient, H = dense(model, batches, [name for name, _ in model.named_parameters()])
    with hessian_operator(model, mean_loss, batches) as operator:
        torch.testing.assert_close(operator.gradient(), gradient)
        values = eigsh(operator.to_scipy(), k=2, which="LA", v0=np.ones(31), return_eigenvectors=False)
    assert sorted(values) == pytest.approx(torch.linalg.eigvalsh(H)[-2:].tolist(), rel=1e-8)
    assert operator.shape == (31, 31)
    assert list(operator.blocks) == [name for name, _ in model.named_parameters()]


@pytest.mark.slow
def test_a_few_products_come_close_and_say_how_close() -> None:
    model, batches = network(seed=2), some_batches()
    _, H = dense(model, batches, [name for name, _ in model.named_parameters()])
    scores = []
    for seed in range(20):
        found = lf.hessian_spectrum(model, mean_loss, batches, eigenvalues=1, lanczos_steps=8, seed=seed)
        scores.append(abs(found.trace.value - float(H.trace())) / found.trace.stderr)
        true = torch.linalg.eigvalsh(H)
        assert float((true - found.largest[0].value).abs().min()) <= found.largest[0].residual + 1e-12
    assert np.mean(np.array(scores) < 3) >= 0.9


def test_at_an_exact_minimum_a_forecast_is_all_curvature() -> None:
    """3/2 |W - W_0|^2 at W_0: g = 0, six eigenvalues 3 and those of the bias 0; a step of 0.1 everywhere rises by 0.09."""
    model = Point()
    minimum = model.weight.detach().clone()

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return 1.5 * (model.weight - minimum).square().sum()  # type: ignore[operator, union-attr]

    found = lf.forecast(model, loss, [torch.ones(1)], direction={"weight": torch.full((2, 3), 0.1)})
    assert (found.first_order, found.second_order, found.observed) == pytest.approx((0.0, 0.09, 0.09))
    spectrum = lf.hessian_spectrum(model, loss, [torch.ones(1)], eigenvalues=2)
    assert spectrum.gradient_norm == 0
    assert [entry.value for entry in (*spectrum.largest, *spectrum.smallest)] == pytest.approx([3.0, 0.0])
    assert spectrum.note is not None
    assert spectrum.note.startswith("2 different eigenvalues instead of 4")


def test_only_the_parameters_that_are_asked_for() -> None:
    model, batches = network(), some_batches()
    _, H = dense(model, batches, ["2.weight", "2.bias"])
    found = lf.hessian_spectrum(model, mean_loss, batches, parameters=["2.*"], lanczos_steps=15)
    assert found.dimension == 15
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-8)
    assert set(found.trace_by_module) == {"2.weight", "2.bias"}


def test_tasks_are_averaged() -> None:
    model, batches, others = network(), some_batches(), some_batches(seed=9)
    both = lf.hessian_spectrum(model, mean_loss, {"a": batches, "b": others}, lanczos_steps=31)
    alone = [lf.hessian_spectrum(model, mean_loss, part, lanczos_steps=31).trace.value for part in (batches, others)]
    assert both.trace.value == pytest.approx(sum(alone) / 2, rel=1e-8)


def test_a_step_is_forecast_and_observed() -> None:
    model, batches = network(), some_batches()
    names = [name for name, _ in model.named_parameters()]
    gradient, H = dense(model, batches, names)
    step = draw_like(model, 5)
    D = torch.cat([step[name].flatten() for name in names])
    before = over_all(model, batches)
    found = lf.forecast(model, mean_loss, batches, direction=step)
    assert found.loss == pytest.approx(before, rel=1e-12)
    assert found.first_order == pytest.approx(float(gradient @ D), rel=1e-9)
    assert found.curvature == pytest.approx(float(D @ H @ D), rel=1e-9)
    assert found.second_order == pytest.approx(found.first_order + found.curvature / 2)
    assert found.distance == pytest.approx(float(D.norm()), rel=1e-9)
    for name, p in model.named_parameters():
        p.data += step[name]
    assert found.observed == pytest.approx(over_all(model, batches) - before, rel=1e-9)


@pytest.fixture
def adapted(llama_folder: Path) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    model = load(llama_folder, target_modules=("q_proj", "v_proj")).peft_model
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 90, (n, 7), generator=generator) for n in (3, 2)]
    return model, [{"input_ids": part, "labels": part} for part in ids]


def written(model: Any, change: Callable[[dict[str, Factors]], dict[str, Factors]]) -> None:
    """Write the adapter of `model` anew."""
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel, target_layers

    factors = change(AdaptedModel(model).adapter_factors())
    for name, layer in target_layers(model).items():
        layer.lora_A["default"].weight.data.copy_(factors[name].A)
        layer.lora_B["default"].weight.data.copy_(factors[name].B / layer.scaling["default"])


@pytest.mark.slow
def test_an_adapters_spectrum_does_not_depend_on_its_gauge(adapted: Any) -> None:
    model, batches = adapted
    first = lf.hessian_spectrum(model, None, batches, lanczos_steps=40, density_runs=0)
    written(model, lambda factors: regauged(factors, 7))
    second = lf.hessian_spectrum(model, None, batches, lanczos_steps=40, density_runs=0)
    for one, other in zip((*first.largest, first.smallest[0]), (*second.largest, second.smallest[0]), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-4)
    assert (
        abs(first.trace.value - second.trace.value) < 4 * (first.trace.stderr**2 + second.trace.stderr**2) ** 0.5 + 1e-3
    )


def test_a_step_of_an_adapter_is_one_of_the_merged_weights(adapted: Any) -> None:
    """The forecast agrees with differences of losses along the step."""
    from llm_forgetting.models.adapter.adapted_model import AdaptedModel

    model, batches = adapted
    model.double()
    factors = AdaptedModel(model).adapter_factors()
    step = WeightUpdate({name: Factors(B=0.5 * pair.B, A=0.5 * pair.A) for name, pair in regauged(factors, 1).items()})
    found = lf.forecast(model, None, batches, direction=step)
    h = 0.02

    def rise(share: float) -> float:
        part = {name: Factors(share * pair.B, pair.A) for name, pair in step.items()}
        return lf.forecast(model, None, batches, direction=part).observed

    assert found.distance == pytest.approx(step.norm(), rel=1e-5)
    assert found.first_order == pytest.approx((rise(h) - rise(-h)) / (2 * h), rel=0.01)
    assert found.curvature == pytest.approx((rise(h) + rise(-h)) / h**2, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eigenvalues": 0}, "1 <= eigenvalues"),
        ({"trace_probes": 1}, "trace_probes >= 2"),
        ({"parameters": ["nothing.*"]}, "must match"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(lf.UserError, match=words):
        lf.hessian_spectrum(network(), mean_loss, some_batches(), **arguments)
    frozen = network().requires_grad_(False)
    with pytest.raises(lf.UserError, match="requires a gradient"):
        lf.hessian_spectrum(frozen, mean_loss, some_batches())


ORACLE = Path(__file__).resolve().parents[3] / "shared/oracles/tiny_llama.py"


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's model is not part of the repository")
@pytest.mark.slow
def test_the_oracles_tiny_llama_in_its_raw_coordinates() -> None:
    """Dense Hessian of 224 LoRA parameters: 0.842914, 0.786336, smallest -0.003256, trace 6.871525."""
    spec = spec_from_file_location("tiny_llama", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    oracle = module_from_spec(spec)
    spec.loader.exec_module(oracle)
    model, ids = oracle.tiny_lora()
    scores = []
    for seed in range(20 if THOROUGH else 6):
        found = lf.hessian_spectrum(
            model, oracle.loss, [ids], parameters=["*lora_*"], lanczos_steps=40, seed=seed,
            density_runs=3, density_steps=20,
        )  # fmt: skip
        assert found.dimension == 224
        assert [entry.value for entry in found.largest[:2]] == pytest.approx([0.842914, 0.786336], abs=1e-5)
        assert found.smallest[0].value == pytest.approx(-0.003256, abs=found.smallest[0].residual + 1e-6)
        scores.append((found.trace.value - 6.871525) / found.trace.stderr)
        assert found.density.moment(1) == pytest.approx(6.871525 / 224, rel=0.5)
    assert np.abs(scores).max() < 4
    assert np.mean(np.abs(scores) < 3) >= 0.9
