"""Surfaces and Hessian products of completions, against plain transformers and PEFT at the same points."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, load
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.experiment.analysis import landscape as landscape_analysis
from llm_forgetting.experiment.analysis.landscape import analyse_landscape
from llm_forgetting.experiment.analysis.paths import analyse_between, path_objective
from llm_forgetting.landscape.domains import random_points, square
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors, canonicalise
from llm_forgetting.landscape.nodes import cached
from llm_forgetting.landscape.path import interpolate
from llm_forgetting.landscape.scan import scan_plane
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.landscape.spectral import Rule
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.progress import Silent
from llm_forgetting.seeding import generator
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.task import Item

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = LandscapeConfig(distance=0.25, max_evaluations=120, resolution=9, directions=2, seed=2)


def completion(n: int, prompt: Sequence[int], learnt: Sequence[int]) -> EncodedItem:
    tokens, first = [*prompt, *learnt], len(prompt)
    item = Completion(f"s/test/{n}", "s", "?", "!")
    return EncodedItem(
        item, tuple(tokens[:-1]), (), places=tuple(range(first - 1, len(tokens) - 1)), targets=tuple(learnt)
    )


@pytest.fixture(scope="module")
def tasks() -> list[tuple[str, list[EncodedItem]]]:
    """Completions that share prompts, whole and in part, and a task of questions beside them."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, VOCABULARY, size=9).tolist()
    completions = [
        completion(0, prompt, [20, 21, 22]),
        completion(1, prompt, [20]),
        completion(2, prompt[:4], [11, 12]),
        completion(3, rng.integers(3, VOCABULARY, size=5).tolist(), [40, 41, 42, 43, 44]),
    ]
    questions = [
        EncodedItem(
            Item(f"q/test/{n}", "q", "?", ("p", "q"), n % 2), tuple(rng.integers(3, VOCABULARY, size=6)), (50, 51)
        )
        for n in range(3)
    ]
    return [("completions", completions), ("questions", questions)]


@pytest.fixture(scope="module")
def model(llama_folder: Path, tasks: list[tuple[str, list[EncodedItem]]]) -> LanguageModel:
    """Thirty steps of Adam on the completions: the surface is not flat, and the adapter not random."""
    model = load(llama_folder, trained=False)
    optimiser = torch.optim.Adam([p for p in model.peft_model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        answer_losses(model, tasks[0][1]).mean().backward()
        optimiser.step()
    optimiser.zero_grad()
    model.peft_model.eval()
    return model


def plain_losses(model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
    """Loss of every token that is learnt, one unpadded item at a time, with transformers' ordinary forward pass."""
    losses = []
    for item in items:
        logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, list(item.predictions)]
        losses.append(F.cross_entropy(logits.double(), torch.tensor(item.answer_tokens), reduction="none"))
    return torch.cat(losses)


def test_the_measured_error_holds_at_thirty_further_points(model: LanguageModel, tasks: Any) -> None:
    objective = LandscapeObjective(model, tasks, 16)
    space = AdapterSpace(canonicalise(model.adapter_factors()))
    d, e = space.directions(CONFIG.seed, 2, space.norm)

    def point(row: Sequence[float]) -> WeightUpdate:
        return space.point([(row[0], d), (row[1], e)])

    rule = Rule(budget=CONFIG.max_evaluations, seed=CONFIG.seed)
    with cached(objective) as nodes:
        plane = scan_plane(nodes, point, objective.losses, distance=0.25, cells=9, method="spectral", rule=rule)
    surface = plane.surface
    assert surface is not None
    assert surface.converged
    assert (surface.ranges > 0.3).all()
    further = square(0.25).place(random_points("square", generator(99, "further points"), 30))
    truth = np.empty((30, 2))
    with model.perturbed() as move, model.peft_model.disable_adapter(), torch.no_grad():
        for row, place in enumerate(further):
            move(point(place))
            truth[row] = [float(plain_losses(model, items).mean()) for _, items in tasks]
    error = np.abs(objective.losses(surface.fit(further)) - truth)
    # The largest of 8 errors is exceeded by one fresh point in nine; that it is no bound is said wherever it is shown.
    assert ((error <= surface.error).mean(axis=0) >= 0.8).all(), (error, surface.error)
    assert (error.max(axis=0) <= 4 * surface.error).all()
    assert (error.max(axis=0) <= 2 * rule.tolerance * np.minimum(surface.ranges, 2)).all()
    for values in (plane.values, surface.fit(further), surface.fit(3 * further)):
        assert all((entry.token_losses >= 0).all() for entry in objective.statistics(values))


def test_a_surface_of_completions_does_not_depend_on_the_gauge(model: LanguageModel, tasks: Any) -> None:
    update = model.adapter_factors()
    rng = torch.Generator().manual_seed(5)
    rewritten = {}
    for name, pair in update.items():
        R = torch.randn(2, 2, generator=rng) + 2 * torch.eye(2)
        rewritten[name] = Factors(B=pair.B @ R, A=torch.linalg.solve(R, pair.A))
    config = replace(CONFIG, distance=0.1)
    one, other = (
        analyse_landscape(model, tasks, config, reference_norm=None, advance=lambda n, text: None, update=written)
        for written in (update, WeightUpdate(rewritten))
    )
    for name in ("completions", "questions"):
        assert other.surfaces[name].loss == pytest.approx(one.surfaces[name].loss, rel=1e-4)
        assert one.surfaces[name].loss.min() >= 0
        assert one.surfaces[name].error is not None
    assert np.ptp(one.surfaces["completions"].loss) > 0.1
    assert one.fit is not None
    assert one.fit.converged
    assert one.gauge_self_test is not None
    assert one.gauge_self_test.passed
    assert one.gauge_self_test.value_relative_difference < 1e-4
    # The checkpoint's own loss is that of the tokens, not the mean of the items' means.
    centre = one.surfaces["completions"].loss[4, 4]
    with torch.no_grad():
        assert centre == pytest.approx(float(plain_losses(model, tasks[0][1]).mean()), abs=1e-5)


def test_a_self_test_allows_a_small_loss_the_rounding_of_its_logits(
    model: LanguageModel, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of a run of SmolLM2 on the skill `largest`, 0.05 nats, where logits of 20 are rounded to 1e-6."""
    low, centre, high = -0.0017432 + 2 * 0.0527476 - 0.0505794, 0.0527476, 0.0505794
    shifts = {"rounding": (1e-6, 0.0, 0.0), "another gauge": (5e-5, 0.0, 5e-5)}
    passed = {}
    for name, (before, _, after) in shifts.items():
        losses = [low, centre, high, low + before, centre, high + after]
        stub = SimpleNamespace(
            evaluating=lambda losses=losses: nullcontext(lambda points: iter(losses)), losses=lambda loss: [loss]
        )
        monkeypatch.setattr(landscape_analysis, "objective_of", lambda *_, stub=stub: stub)
        space = landscape_analysis.space_of(model, replace(CONFIG, distance=None))
        found = landscape_analysis.gauge_self_test(model, tasks[0], replace(CONFIG, distance=None), space.norm, space)
        passed[name] = found.passed
    assert passed == {"rounding": True, "another gauge": False}


def test_path_plane_and_trajectory_hold_the_losses_of_plain_transformers(
    model: LanguageModel, tasks: Any, tmp_path: Path
) -> None:
    """And t*'s loss on the items that did not choose it is that per token, as everywhere."""
    second = model.adapter_factors()
    first = WeightUpdate({name: Factors(B=0.3 * pair.B.flip(1), A=pair.A) for name, pair in second.items()})
    checkpoints = {"initial": WeightUpdate.zero(second), "after_task1": first, "after_task2": second}
    middle = interpolate(first, second, 0.5)
    found = analyse_between(
        path_objective(model, tasks, CONFIG), checkpoints, CONFIG, progress=Silent(),
        journal=lambda name: tmp_path / name, pools=[4, 3], trajectory={"epoch 1": lambda: middle},
    )  # fmt: skip
    (path,), plane = found.paths, found.checkpoint_plane
    assert plane is not None
    completions = tasks[0][1]

    def losses_at(update: WeightUpdate) -> torch.Tensor:
        with model.perturbed() as move, model.peft_model.disable_adapter(), torch.no_grad():
            move(update)
            return plain_losses(model, completions)

    profile = path.tasks["completions"]
    ends = [float(losses_at(update).mean()) for update in (first, second)]
    assert [profile.loss[0], profile.loss[-1]] == pytest.approx(ends, abs=1e-4)
    assert profile.loss.min() >= 0
    (point,) = plane.trajectory
    assert point.loss["completions"] == pytest.approx(float(losses_at(middle).mean()), abs=1e-4)
    repaired = losses_at(interpolate(first, second, path.repair.t))
    assert profile.error is not None
    assert path.repair.loss["completions"] == pytest.approx(float(repaired.mean()), abs=2 * profile.error.largest)
    # Items 0 and 2 chose, of 3 and 2 tokens; the others have 1 and 5.
    others = torch.cat([repaired[3:4], repaired[6:]])
    assert path.repair.loss_on_the_others["completions"] == pytest.approx(float(others.mean()), abs=0.01)


@contextmanager
def in_precision(model: LanguageModel, dtype: torch.dtype) -> Iterator[None]:
    model.peft_model.to(dtype)
    yield
    model.peft_model.to(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["tangent", "graph", "padded"])
def test_hessian_products_are_those_of_a_double_backward_of_plain_peft(
    model: LanguageModel, tasks: Any, method: Any, dtype: torch.dtype
) -> None:
    # Llama's norms compute in float32, in whatever precision the rest is.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    items = tasks[0][1]
    with in_precision(model, dtype), pytest.MonkeyPatch.context() as patch:
        if method == "padded":
            patch.setattr(model, "supports_packing", False)
        layers = target_layers(model.peft_model)
        pairs = {n: (layer.lora_B["default"].weight, layer.lora_A["default"].weight) for n, layer in layers.items()}
        scale = {name: layer.scaling["default"] for name, layer in layers.items()}
        rng = torch.Generator().manual_seed(1)
        vectors = {n: [torch.randn(p.shape, generator=rng).to(dtype) for p in pair] for n, pair in pairs.items()}
        leaves = [p for pair in pairs.values() for p in pair]
        with sdpa_kernel(SDPBackend.MATH):
            loss = plain_losses(model, items).mean()
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            along = sum(
                (g * v).sum() for g, v in zip(first, (v for pair in vectors.values() for v in pair), strict=True)
            )
            expected = torch.autograd.grad(along, leaves)
        # Our coordinates hold PEFT's scale in B: a step of v there is one of s v here, and dL/dB is divided by s.
        step = FactorStep({n: Factors(B=scale[n] * B, A=A) for n, (B, A) in vectors.items()})
        with products_at(
            model, items, model.adapter_factors(), micro_batch=3, method="graph" if method == "padded" else method
        ) as products:
            found = products.hessian(step)
        parts = [part for n, pair in found.factors.items() for part in (scale[n] * pair.B, pair.A)]
        difference = torch.cat([(a - b).flatten() for a, b in zip(parts, expected, strict=True)])
        assert float(difference.norm()) < tolerance * float(torch.cat([b.flatten() for b in expected]).norm())
