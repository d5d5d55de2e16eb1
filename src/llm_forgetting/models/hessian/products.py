"""Gradients and Hessian-vector products of the landscape objective at one point of adapter space.

The objective is the mean full-vocabulary loss of fixed items; the coordinates are the factors that are given (canonical ones,
for numbers that do not depend on the gauge), or the merged weights W + B A of the adapted modules.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_forgetting.curvature.operators import DirectionalDerivatives, LossOperator, Weights
from llm_forgetting.landscape.factors import FactorStep, WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.widened import NARROW
from llm_forgetting.models.hessian.coordinates import Coordinates
from llm_forgetting.models.hessian.dense_products import dense_products
from llm_forgetting.models.hessian.difference_products import DifferenceProducts
from llm_forgetting.models.hessian.graph_products import GraphProducts, flat
from llm_forgetting.models.hessian.micro_batches import MicroBatches
from llm_forgetting.models.hessian.tangent_pass import NoTangentPassError, TangentPass
from llm_forgetting.models.hessian.tangent_products import TangentProducts
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.packing import CannotPackError

Method = Literal["exact", "tangent", "graph", "differences"]
METHODS: tuple[Method, ...] = ("tangent", "graph")
PROBE_TOLERANCE = 1e-3
_PROBED: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()
_GRAPH = "second derivatives are taken of the graph, which takes more memory"


class Products(Protocol):
    """First and second derivatives at one point; `factors` are its coordinates."""

    factors: WeightUpdate

    def gradient(self) -> FactorStep:
        """g in the factors."""
        ...

    def hessian(self, step: FactorStep) -> FactorStep:
        """H v in the factors."""
        ...

    def along_update(self, update: WeightUpdate) -> DirectionalDerivatives:
        """Slope and curvature along a low-rank direction of the merged weights."""
        ...

    def weight_hessian(self, direction: Weights) -> Weights:
        """H V in the merged weights, for dense V (d_out, d_in) per module."""
        ...


class AdapterHessian(LossOperator):
    """The Hessian in the factors as an operator on flat vectors; its blocks are the adapted modules."""

    def __init__(self, products: Products) -> None:
        self.coordinates = Coordinates(products.factors)
        self._products = products
        like = next(iter(products.factors.values())).B
        super().__init__(
            self.coordinates.dimension, dtype=like.dtype, device=like.device, blocks=self.coordinates.blocks
        )

    def gradient(self) -> torch.Tensor:
        """g, (n,)."""
        return self.coordinates.vector(self._products.gradient())

    def _product(self, vector: torch.Tensor) -> torch.Tensor:
        return self.coordinates.vector(self._products.hessian(self.coordinates.step(vector)))


@contextmanager
def products_at(
    model: LanguageModel,
    items: Sequence[EncodedItem],
    factors: WeightUpdate,
    *,
    micro_batch: int = 16,
    method: Method = "exact",
) -> Iterator[Products]:
    """Products at delta W = B A of `factors`; the model is as before afterwards.

    `exact` takes the tangent pass where the model has one (see `supports_tangent_pass`), else the graph; both can be asked for.
    `differences` needs first derivatives only, with whatever attention the model uses. Where the model's updates are not plain
    LoRA there are derivatives along an update, and no others.
    """
    model.peft_model.eval()
    batches = MicroBatches(model, items, micro_batch)
    if not model.low_rank:
        with dense_products(model, batches, factors, exact=method != "differences") as dense:
            yield DifferenceProducts(dense) if method == "differences" else dense
        return
    if method == "exact":
        method = "tangent" if supports_tangent_pass(model) and batches.within_window else "graph"
    with ExitStack() as stack:
        if method == "tangent":
            yield stack.enter_context(_tangent(model, batches, factors))
            return
        stack.enter_context(model.without_adapter())
        stack.enter_context(model.analysed())
        if method == "graph":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        exact = GraphProducts(model, batches, factors)
        yield exact if method == "graph" else DifferenceProducts(exact)


@contextmanager
def _tangent(model: LanguageModel, batches: MicroBatches, factors: WeightUpdate) -> Iterator[TangentProducts]:
    layers = {name: layer.get_base_layer() for name, layer in target_layers(model.peft_model).items()}
    passed = TangentPass(model.backbone, layers, model.precision)
    with ExitStack() as stack:
        if model.can_merge:
            stack.enter_context(model.perturbed())(factors)
        else:
            stack.enter_context(model.without_adapter())
            stack.enter_context(model.matrix_products())
            passed.beside = {n: Factors(f.B.to(model.precision), f.A.to(model.precision)) for n, f in factors.items()}
        yield TangentProducts(passed, stack.enter_context(passed.stacked()), batches, factors, model.precision)


def supports_tangent_pass(model: LanguageModel) -> bool:
    """Whether the tangent pass is right for this model: compared with the graph once, on three short rows of tokens."""
    if model not in _PROBED:
        _PROBED[model] = _probe(model)
    return _PROBED[model] and model.supports_packing


def remember_tangent_pass(model: LanguageModel, supported: bool) -> None:
    """Let `supports_tangent_pass` say of `model` what is known of one like it."""
    _PROBED[model] = supported


def _probe(model: LanguageModel) -> bool:
    if not model.supports_packing:
        model.fall_back(f"{_GRAPH}: the tangent pass needs packed items")
        return False
    if not model.low_rank:
        model.fall_back(f"{_GRAPH}: the tangent pass needs plain LoRA")
        return False
    items, factors = model.probes(), model.adapter_factors()
    step = FactorStep(
        {
            name: Factors(
                *(torch.randn(part.shape, generator=torch.Generator().manual_seed(n)).to(part) for part in (f.B, f.A))
            )
            for n, (name, f) in enumerate(factors.items())
        }
    )
    images = []
    try:
        for method in METHODS:
            with products_at(model, items, factors, method=method) as products:
                images.append(torch.cat([part.flatten().double() for part in flat(products.hessian(step).factors)]))
    except (NoTangentPassError, CannotPackError, TypeError, AttributeError) as error:
        model.fall_back(f"{_GRAPH}: {error}")
        return False
    difference = float((images[0] - images[1]).norm() / images[1].norm().clamp(min=1e-30))
    if not difference <= (0.1 if model.arithmetic == "native" and model.dtype in NARROW else PROBE_TOLERANCE):
        model.fall_back(f"{_GRAPH}: those of the tangent pass differ by {difference:.2g}")
        return False
    return True
