"""What every phase of a run needs: the project's own code, run on a model without weights, its allocations counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.cost import pieces
from llm_forgetting.experiment.cost.batches import HeaviestBatches, heaviest_batches
from llm_forgetting.experiment.cost.lengths import ItemLengths, longest_lengths
from llm_forgetting.models.language.allocation_count import counting
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import tokens_that_fit
from llm_forgetting.models.language.settings import model_settings
from llm_forgetting.models.language.weightless import are_alike, decoder_layers, weightless_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Layers of the two models that are counted where all layers are alike: what grows with depth grows by the same each.
FEW_LAYERS = (2, 3)
Piece = Callable[[LanguageModel, HeaviestBatches, ExperimentConfig], Iterator[None]]


@dataclass(frozen=True)
class PhaseNeed:
    """What one kind of phase needs of a device.

    Attributes:
        phase: `training`, `scores`, `landscape`, `plane`, `forecast`, `spectrum` or `weight spectrum`.
        peak_bytes: The most that is alive at once, weights included; a GPU's context and fragmentation come on top.
        flops: Floating-point operations of the counted piece: a training step of the largest batch, a batch of scores, a batch
            of landscape items at one point, a product over a micro-batch.
        tokens: Tokens of the items of that piece.
        arithmetic: Precision of its products: `bfloat16`, `float16`, `tf32` or `float32`.
    """

    phase: str
    peak_bytes: int
    flops: float
    tokens: int
    arithmetic: str


@dataclass(frozen=True)
class _Counted:
    """Peaks of the moments of a piece, bytes, and its operations."""

    peaks: tuple[int, ...]
    flops: float


def needs(
    config: ExperimentConfig,
    *,
    memory: int,
    gpu: bool = True,
    settings: "PretrainedConfig | None" = None,
    lengths: ItemLengths | None = None,
) -> list[PhaseNeed]:
    """What every phase that `config` asks for needs; nothing where the backbone's size cannot be known from here.

    Args:
        config: Of the run.
        memory: Of the device, bytes; the size of micro-batches depends on it.
        gpu: Whether the device is a GPU, else this machine's CPU.
        settings: The backbone's configuration; None reads it (see `model_settings`).
        lengths: Of the items; None takes all as long as `data.max_tokens` allows.
    """
    if settings is None:
        found = model_settings(config.model)
        return [] if found is None else needs(config, memory=memory, gpu=gpu, settings=found.settings, lengths=lengths)
    lengths = longest_lengths(config.data) if lengths is None else lengths
    dtype = pieces.precision(config, gpu=gpu)
    with counting(memory) as count:
        whole = weightless_model(settings, config.lora, dtype, count, probe=False)
        tokens, layers = (
            tokens_that_fit(whole.peft_model, whole.device),
            decoder_layers(whole.peft_model.get_base_model()),
        )
        depth = len(layers)
        shallow = depth > max(FEW_LAYERS) and are_alike(layers)
        del whole, layers
    batches = heaviest_batches(config, lengths, tokens_that_fit=tokens, gpu=gpu)
    wanted = _pieces(config)
    counts = [_counted(config, settings, dtype, batches, wanted, n) for n in (FEW_LAYERS if shallow else (None,))]
    found = counts[0] if not shallow else {name: _deeper(*(c[name] for c in counts), depth) for name in wanted}
    return [
        PhaseNeed(
            name, max(found[name].peaks), found[name].flops, batches.tokens(name), _arithmetic(name, config, dtype)
        )
        for name in wanted
    ]


def _pieces(config: ExperimentConfig) -> dict[str, Piece]:
    landscape, curvature = config.landscape, config.curvature
    wanted: dict[str, Piece] = {"training": pieces.training, "scores": pieces.scores, "landscape": pieces.landscape}
    if landscape.paths or landscape.checkpoint_plane:
        wanted["plane"] = pieces.plane
    if curvature.forecast:
        wanted["forecast"] = pieces.forecast
    if curvature.spectrum:
        wanted["spectrum"] = pieces.spectrum
    if curvature.spectrum and curvature.weight_probes:
        wanted["weight spectrum"] = pieces.weight_spectrum
    return wanted


def _counted(
    config: ExperimentConfig,
    settings: "PretrainedConfig",
    dtype: torch.dtype,
    batches: HeaviestBatches,
    wanted: dict[str, Piece],
    layers: int | None,
) -> dict[str, _Counted]:
    found = {}
    with counting() as count:
        model = weightless_model(settings, config.lora, dtype, count, layers)
        model.arithmetic = config.landscape.arithmetic
        for name, piece in wanted.items():
            peaks, flops = [], 0.0
            count.restart()
            for _ in piece(model, batches, config):
                peaks.append(count.peak)
                flops += count.flops
                count.restart()
            found[name] = _Counted(tuple(peaks), flops)
    return found


def _deeper(one: _Counted, other: _Counted, depth: int) -> _Counted:
    """What a model of `depth` layers needs, by those of `FEW_LAYERS`: every layer adds the same."""
    a, b = FEW_LAYERS

    def at_depth(x: float, y: float) -> float:
        return x + (y - x) * (depth - a) / (b - a)

    peaks = tuple(round(at_depth(x, y)) for x, y in zip(one.peaks, other.peaks, strict=True))
    return _Counted(peaks, at_depth(one.flops, other.flops))


def _arithmetic(name: str, config: ExperimentConfig, dtype: torch.dtype) -> str:
    native = str(dtype).removeprefix("torch.")
    if name in ("training", "scores") or config.landscape.arithmetic == "native":
        return native
    return "tf32" if config.landscape.arithmetic == "tf32" else "float32"
