"""Slope and curvature along updates that are not plain LoRA: of the graph with W + t D in the places of the parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.places import Place, lines_along
from llm_forgetting.models.hessian.graph_products import GraphProducts
from llm_forgetting.models.hessian.micro_batches import MicroBatches
from llm_forgetting.models.language.language_model import LanguageModel


class DenseProducts(GraphProducts):
    """Exact derivatives along an update at the parameters that are in their places now; along nothing else.

    Keeps two tensors of the size of every parameter that the update changes.
    """

    def __init__(self, model: LanguageModel, items: MicroBatches, update: WeightUpdate) -> None:
        super().__init__(model, items, update)
        self.dtype = model.precision

    def _along(self, update: WeightUpdate, at: float) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        assert self._model.dense is not None
        t = torch.tensor(at, dtype=self.dtype, device=self._model.device, requires_grad=True)
        lines = lines_along(self._model.dense.places, update, self.dtype)

        def losses() -> Iterator[torch.Tensor]:
            waiting = self._items.losses()
            while True:
                # Anew for every micro-batch, whose graph is freed.
                with torch.enable_grad(), _substituted({id(p): (p, W + t * D) for p_s, W, D in lines for p in p_s}):
                    loss = next(waiting, None)
                if loss is None:
                    return
                yield loss

        return t, losses()


@contextmanager
def _substituted(values: Mapping[int, tuple[Place, torch.Tensor]]) -> Iterator[None]:
    before = [(place, place.now()) for place, _ in values.values()]
    try:
        for place, value in values.values():
            place.put(value)
        yield
    finally:
        for place, value in before:
            place.put(value)


@contextmanager
def dense_products(
    model: LanguageModel, items: MicroBatches, update: WeightUpdate, *, exact: bool
) -> Iterator[DenseProducts]:
    """Products at an update that is not plain LoRA; `exact` ones need kernels with second derivatives."""
    kernels = sdpa_kernel(SDPBackend.MATH) if exact else nullcontext()
    with model.without_adapter(), model.exchanged() as move:
        move(update)
        with model.analysed(), kernels:  # what has been put in place is float32, and is not widened
            yield DenseProducts(model, items, update)
