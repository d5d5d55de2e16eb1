"""A language model without weights, of any size: what it would allocate and compute is counted (see `allocation_count`)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from llm_forgetting.config.sections import LoraConfig
from llm_forgetting.models.adapter.adapted_model import attach_lora
from llm_forgetting.models.language.allocation_count import AllocationCount
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.quantisation import quantise_weightless
from llm_forgetting.models.language.settings import without_weights


class _OnCpu(LanguageModel):
    """Computes as on a CPU, whose narrow weights are widened in scores and training too."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """As `LanguageModel.computing` on a CPU."""
        with self.analysed() if self._widened else nullcontext():
            yield


class _WithoutProbe(LanguageModel):
    """For what can be told from its modules alone."""

    def probe_packing(self) -> bool:
        """Packing is not tried out."""
        self.supports_packing = False
        return False


class _NoTokenizer:
    """What a language model asks of its tokenizer where items come as tokens."""

    pad_token_id = 0
    unk_token = eos_token = "</s>"


def weightless_model(
    settings: Any,
    lora: LoraConfig | None,
    dtype: torch.dtype,
    count: AllocationCount,
    layers: int | None = None,
    *,
    gpu: bool = True,
    probe: bool = True,
    bits: int | None = None,
) -> LanguageModel:
    """The model of transformers' configuration `settings` with a fresh adapter, its weights counted by `count`.

    Args:
        settings: Of the backbone.
        lora: The adapter.
        dtype: Precision of the backbone.
        count: The count that is going on.
        layers: Decoder layers that are kept, the first ones; None keeps all.
        gpu: Whether it computes as on a GPU, else as on a CPU.
        probe: Whether it is tried out what the model can do, which takes a few passes.
        bits: Of the weights between the embeddings, 4 or 8 where they are quantised.
    """
    assert lora is not None  # see `ExperimentConfig.low_rank`
    backbone = without_weights(settings, dtype)
    if layers is not None:
        del decoder_layers(backbone)[layers:]
        backbone.config.num_hidden_layers = layers
    if bits is not None:
        quantise_weightless(backbone, bits)
    with torch.device("meta"):
        adapted = attach_lora(backbone, lora, seed=0)
    count.hold(adapted)
    tokenizer: Any = _NoTokenizer()
    kind = _WithoutProbe if not probe else LanguageModel if gpu else _OnCpu
    return kind(adapted.eval(), tokenizer, "without weights")


def decoder_layers(backbone: Any) -> nn.ModuleList:
    """The list of a backbone's decoder layers; empty where it has none of as many as its configuration says."""
    count = getattr(backbone.config, "num_hidden_layers", 0)
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(lists, nn.ModuleList())


def are_alike(layers: nn.ModuleList) -> bool:
    """Whether all layers have the same parts of the same shapes, so that each costs what another does."""
    parts = [
        [(type(module), *(p.shape for p in module.parameters(recurse=False))) for module in layer.modules()]
        for layer in layers
    ]
    kinds = {str(getattr(getattr(layer, "self_attn", layer), "sliding_window", None)) for layer in layers}
    return all(part == parts[0] for part in parts) and len(kinds) <= 1
