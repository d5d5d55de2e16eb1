"""Passes that do not fit: begun again with less, and planned with what is free."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_forgetting.errors import is_broken_device, is_out_of_memory
from llm_forgetting.landscape.factors import FactorStep
from llm_forgetting.models.hessian import micro_batches, tangent_pass
from llm_forgetting.models.hessian.micro_batches import MicroBatches
from llm_forgetting.models.hessian.products import Method, products_at
from llm_forgetting.models.language import memory
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import tangent_bytes_per_token, tokens_that_fit, with_smaller_pieces
from llm_forgetting.models.language.scoring import answer_distributions, score_points
from tests.tiny_models import load, make_encoded

CPU = torch.device("cpu")


def test_a_token_costs_what_the_linear_layers_keep_of_it() -> None:
    """Value and tangent, 4 bytes each, of 3 + 5 and 5 + 2 numbers."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    assert tangent_bytes_per_token(model) == 2 * 4 * (3 + 5 + 5 + 2)


def test_half_of_the_free_memory_is_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 5)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 64 * 100 * 2)
    assert tokens_that_fit(model, CPU) == 100
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    assert tokens_that_fit(model, CPU) == 1


def test_micro_batches_hold_no_more_tokens_than_fit(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(llama_folder)
    items = make_encoded(model, 6)
    longest = max(len(item.input_ids) for item in items)
    for tokens, largest in ((10_000, 6), (2 * longest, 2), (1, 1)):
        monkeypatch.setattr(micro_batches, "tokens_that_fit", lambda *args, tokens=tokens: tokens)
        packs = MicroBatches(model, items, 16).packs
        assert max(len(pack.items) for pack in packs) == largest
        assert sorted(n for pack in packs for n in pack.items) == list(range(6))


class Exhausted:
    """Raises for want of memory on every call over more than `most` items, `function` otherwise."""

    def __init__(self, function: Callable[..., Any], most: int, size: Callable[..., int]) -> None:
        self.function, self.most, self.size, self.failures = function, most, size, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.size(*args) > self.most:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self, instance)


@pytest.mark.parametrize("method", ["tangent", "graph"])
def test_products_are_the_same_where_memory_runs_out(
    llama_folder: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five items in packs of four the one of the second pack is counted once, though its pass failed before."""
    model = load(llama_folder)
    items, factors = make_encoded(model, 5), model.adapter_factors()

    def measured() -> tuple[list[float], FactorStep]:
        with products_at(model, items, factors, micro_batch=4, method=method) as products:
            along = products.along_update(factors)
            numbers = [along.loss, along.slope, along.curvature, products.gradient().norm()]
            return numbers, products.hessian(FactorStep(factors))

    expected, image = measured()
    if method == "tangent":
        short = Exhausted(tangent_pass.packed_answer_logits, 2, lambda backbone, pack, rows: len(pack.items))
        monkeypatch.setattr(tangent_pass, "packed_answer_logits", short)
    else:
        short = Exhausted(micro_batches.summed_losses, 2, lambda model, chosen: len(chosen))
        monkeypatch.setattr(micro_batches, "summed_losses", short)
    found, spared = measured()
    assert short.failures == 1  # what sufficed once is kept
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert FactorStep.combine([(1.0, image), (-1.0, spared)]).norm() < 2e-5 * image.norm()


def test_scans_and_distributions_go_on_with_less(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(llama_folder)
    items, point = make_encoded(model, 5), model.adapter_factors()

    def measured() -> list[np.ndarray]:
        with model.unmerged() as move:
            move([point, point])
            surfaces = [scored.letter_logits for scored in score_points(model, items, 4, 2)]
        return [*surfaces, answer_distributions(model, items, 4)]

    expected = measured()
    packed = Exhausted(LanguageModel.packed_logits, 2, lambda model, packs, rows=1, prefix=None: len(packs[0].items))
    padded = Exhausted(LanguageModel.answer_logits, 2, lambda model, batch: len(batch.input_ids))
    monkeypatch.setattr(LanguageModel, "packed_logits", packed)
    monkeypatch.setattr(LanguageModel, "answer_logits", padded)
    for found, wanted in zip(measured(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert packed.failures == padded.failures == 1


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    def never(size: int) -> None:
        raise MemoryError(str(size))

    with pytest.raises(MemoryError, match="1"):
        with_smaller_pieces(never, 5, CPU)
    with pytest.raises(RuntimeError, match="shape"):
        with_smaller_pieces(lambda size: torch.zeros(2).view(3), 5, CPU)
    assert with_smaller_pieces(lambda size: size * 10, 5, CPU) == (50, 5)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
    ],
)
def test_every_allocator_is_understood(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_broken_device(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm",
    ],
)
def test_what_says_that_a_gpu_is_of_no_more_use(said: str) -> None:
    assert is_broken_device(RuntimeError(said))
    assert not is_broken_device(RuntimeError("sizes of tensors must match"))
