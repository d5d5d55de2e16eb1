"""One piece of every phase, run as the phase runs it: a generator that yields where a peak of memory ends.

Peaks are kept apart, because with the depth of the model each grows at its own rate.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.curvature.operators import Weights
from llm_forgetting.curvature.rayleigh import largest_eigenvalue
from llm_forgetting.experiment.analysis.landscape import objective_of
from llm_forgetting.experiment.cost.batches import HeaviestBatches, Items
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.spaces import NoisyUpdate, WeightDirection
from llm_forgetting.models.hessian.products import AdapterHessian, Products, products_at
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import answer_distributions, merged, score
from llm_forgetting.training.method import Methods

# Rows of noise that weight space draws at a time.
NOISE_ROWS = 256


def precision(config: ExperimentConfig, *, gpu: bool) -> torch.dtype:
    """Precision of the backbone on a GPU or on the CPU."""
    if config.model.dtype == "auto":
        return torch.bfloat16 if gpu else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.model.dtype]


def training(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """Forward and backward pass of the largest batch; then a step of AdamW."""
    peft_model, settings = model.peft_model, config.training
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    if settings.gradient_checkpointing:
        _switch(peft_model, "enable", {"use_reentrant": False})
    peft_model.train()
    modules = [(len(pair.B), pair.A.shape[1]) for pair in model.adapter_factors().values()]
    cost = Methods.of(config).cost(modules, len(config.data.tasks) - 1)
    # From the second step on moments and gradients' memory are there; SAM keeps weights and gradients of its first pass.
    kept = [torch.empty_like(parameter) for parameter in trained for _ in range(2 + cost.adapter_copies)]
    kept += [torch.empty(cost.numbers, device=model.device)] if cost.numbers else []
    with model.computing():
        packed = not settings.gradient_checkpointing
        kept += [answer_losses(model, batches.training, packed=packed) for _ in range(cost.graphs)]
        losses = answer_losses(model, batches.training, packed=packed)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        del losses
    yield
    del kept
    optimizer = torch.optim.AdamW(trained, foreach=True)
    optimizer.step()
    yield
    peft_model.zero_grad(set_to_none=True)
    peft_model.eval()
    if settings.gradient_checkpointing:
        _switch(peft_model, "disable")


def _switch(peft_model: Any, how: str, *arguments: object) -> None:
    """Recomputation of activations; transformers renamed it in 5.x and warns about the old name."""
    name = (
        "activation_checkpointing"
        if hasattr(peft_model, "activation_checkpointing_enable")
        else "gradient_checkpointing"
    )
    getattr(peft_model, f"{name}_{how}")(*arguments)


def scores(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """A batch of items."""
    with merged(model):
        score(model, batches.scores, config.evaluation.batch_size)
    yield


def landscape(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """A batch of items at as many points as share a forward pass, directions and the checkpoint's own factors beside it."""
    space, factors = config.landscape.space, model.adapter_factors()
    if space == "weight":
        point = WeightUpdate({name: _Noise.of(name, pair) for name, pair in factors.items()})
        yield from _point(model, batches.landscape, config, [point])
        return
    kept = [FactorStep.combine([(1.0, FactorStep(factors))]) for _ in range(config.landscape.directions)]
    yield from _point(
        model, batches.landscape, config, [factors.moved([(1.0, kept[0])]) for _ in range(batches.points)]
    )
    del kept


def plane(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """The same between checkpoints, of which all tasks' are kept: a point has the ranks of two together."""
    checkpoints = [model.adapter_factors() for _ in range(batches.tasks)]
    adapter = replace(config, landscape=replace(config.landscape, space="adapter"))
    points = [WeightUpdate.combine([(1.0, c) for c in checkpoints[:2]]) for _ in range(batches.points)]
    yield from _point(model, batches.landscape, adapter, points)


def _point(model: LanguageModel, items: Items, config: ExperimentConfig, points: list[WeightUpdate]) -> Iterator[None]:
    settings = replace(config.landscape, points_per_forward=len(points))
    with objective_of(model, [("task", items)], settings).evaluating() as values_at:
        list(values_at(points))
    yield


def forecast(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """A product over a micro-batch along the difference of two checkpoints; then the losses and distributions at the second."""
    before, after = model.adapter_factors(), model.adapter_factors()
    difference = WeightUpdate.combine([(1.0, after), (-1.0, before)])
    with _products(model, batches, config, before) as products:
        products.along_update(difference)
    yield
    size = config.landscape.batch_size
    with model.perturbed() as move:
        move(after)
        score(model, batches.landscape, size)
        yield
        answer_distributions(model, batches.landscape, size)
    yield


def _products(
    model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig, at: WeightUpdate
) -> AbstractContextManager[Products]:
    settings = config.curvature
    return products_at(model, batches.products, at, micro_batch=settings.micro_batch, method=settings.products)


def spectrum(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """A product with the Hessian in the factors, beside the longest Lanczos run's basis and another run's."""
    factors, settings = model.adapter_factors(), config.curvature
    with _products(model, batches, config, factors) as products:
        hessian = AdapterHessian(products)
        kept = settings.lanczos_steps + settings.density_steps * (settings.density_runs > 0) + 3
        krylov = torch.empty(kept, hessian.shape[0], device=model.device)
        hessian @ krylov[0]
    yield


def weight_spectrum(model: LanguageModel, batches: HeaviestBatches, config: ExperimentConfig) -> Iterator[None]:
    """Three products with the Hessian in the merged weights, in the ascent to the largest eigenvalue."""
    factors, settings = model.adapter_factors(), config.curvature
    with _products(model, batches, config, factors) as products:
        largest_eigenvalue(
            products.weight_hessian,
            Weights({name: pair.B @ pair.A for name, pair in factors.items()}),
            min(3, settings.power_steps),
        )
    yield


class _Noise(NoisyUpdate):
    """A point of weight space whose noise has no numbers: drawing it takes long, and its size is all that counts."""

    @staticmethod
    def of(name: str, pair: Factors) -> "_Noise":
        """Of one module."""
        norms = torch.empty(len(pair.B), device="meta")
        return _Noise(B=pair.B, A=pair.A, row_norms=norms, module=name, noise=WeightDirection(0, (1.0,)))

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """As `NoisyUpdate.blocks`."""
        for start in range(0, len(self.B), NOISE_ROWS):
            rows = slice(start, min(start + NOISE_ROWS, len(self.B)))
            yield rows, torch.empty(rows.stop - rows.start, self.A.shape[1], device="meta")
