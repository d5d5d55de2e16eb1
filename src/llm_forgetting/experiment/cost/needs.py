"""What every phase of a run needs: the project's own code, run on a model without weights, its allocations counted."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from llm_forgetting.config.methods import methods_key
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.cost import pieces
from llm_forgetting.experiment.cost.batches import HeaviestBatches, heaviest_batches
from llm_forgetting.experiment.cost.lengths import ItemLengths, longest_lengths
from llm_forgetting.models.hessian.products import remember_tangent_pass, supports_tangent_pass
from llm_forgetting.models.language.allocation_count import counting
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import tangent_bytes_per_token, tokens_within
from llm_forgetting.models.language.quantisation import bits_of
from llm_forgetting.models.language.settings import model_settings
from llm_forgetting.models.language.weightless import are_alike, decoder_layers, weightless_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Layers of the two models that are counted where all layers are alike: what grows with depth grows by the same each.
FEW_LAYERS = (2, 3)
Piece = Callable[[LanguageModel, HeaviestBatches, ExperimentConfig], Iterator[None]]
PIECES: Mapping[str, Piece] = {
    "training": pieces.training,
    "scores": pieces.scores,
    "landscape": pieces.landscape,
    "plane": pieces.plane,
    "forecast": pieces.forecast,
    "spectrum": pieces.spectrum,
    "weight spectrum": pieces.weight_spectrum,
}
"""The kinds of phases and what is counted of each."""


@dataclass(frozen=True)
class PhaseNeed:
    """What one kind of phase needs of a device.

    Attributes:
        phase: One of `PIECES`.
        peak_bytes: The most that is alive at once, weights included; a GPU's context and fragmentation come on top.
        flops: Floating-point operations of the counted piece: a training step of the largest batch, a batch of scores, a batch
            of landscape items at the points that share a forward pass, a product over a micro-batch.
        tokens: Tokens of the items of that piece.
        arithmetic: Precision of its products: `bfloat16`, `float16`, `tf32` or `float32`.
    """

    phase: str
    peak_bytes: int
    flops: float
    tokens: int
    arithmetic: str


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
        memory: What tensors can have of the device, bytes; the size of micro-batches depends on it.
        gpu: Whether the device is a GPU, else this machine's CPU.
        settings: The backbone's configuration; None reads it (see `model_settings`).
        lengths: Of the items; None takes all as long as `data.max_tokens` allows.
    """
    if settings is None:
        model = model_settings(config.model)
        if model is None:
            return []
        settings = model.settings
    counter = NeedsCounter(settings, longest_lengths(config.data) if lengths is None else lengths)
    return counter.needs(config, memory=memory, gpu=gpu)


@dataclass(frozen=True)
class _Counted:
    """Peaks of the moments of a piece, bytes, and its operations."""

    peaks: tuple[int, ...]
    flops: float


@dataclass(frozen=True)
class _Whole:
    """What is known of the whole model without a pass: bytes of its weights and of a token in a tangent pass, its layers."""

    weights: int
    bytes_per_token: int
    depth: int
    alike: bool


@dataclass
class NeedsCounter:
    """Counts needs of a backbone on items of given lengths.

    What several devices or configurations have in common is counted once.
    """

    settings: "PretrainedConfig"
    lengths: ItemLengths
    _found: dict[tuple[object, ...], _Counted] = field(default_factory=dict)
    _wholes: dict[tuple[object, ...], _Whole] = field(default_factory=dict)
    _tangent_pass: bool | None = None

    def needs(
        self, config: ExperimentConfig, *, memory: int, gpu: bool, phases: Collection[str] | None = None
    ) -> list[PhaseNeed]:
        """As the function `needs`; of some phases, if they are given."""
        dtype, batches = pieces.precision(config, gpu=gpu), self.batches(config, memory=memory, gpu=gpu)
        wanted = [name for name in _wanted(config) if phases is None or name in phases]
        keys = {
            name: (name, dtype, config.model.quantization, gpu, _relevant(name, config, batches)) for name in wanted
        }
        missing = [name for name in wanted if keys[name] not in self._found]
        for name, counted in self._counted(config, batches, missing, gpu=gpu).items():
            self._found[keys[name]] = counted
        return [
            PhaseNeed(
                name,
                max(self._found[keys[name]].peaks),
                self._found[keys[name]].flops,
                batches.tokens(name),
                _arithmetic(name, config, dtype, gpu=gpu),
            )
            for name in wanted
        ]

    def batches(self, config: ExperimentConfig, *, memory: int, gpu: bool) -> HeaviestBatches:
        """The batches that are counted."""
        whole = self._whole(config, pieces.precision(config, gpu=gpu))
        fit = tokens_within(memory - whole.weights, whole.bytes_per_token)
        return heaviest_batches(config, self.lengths, tokens_that_fit=fit, gpu=gpu)

    def surely_fits(self, config: ExperimentConfig, memory: int, *, gpu: bool) -> bool:
        """Whether a bound well above what would be counted is within `memory` bytes: no pass is made for it."""
        whole = self._whole(config, pieces.precision(config, gpu=gpu))
        batches = heaviest_batches(config, self.lengths, tokens_that_fit=1, gpu=gpu)
        tokens = max(batches.tokens(name) for name in _wanted(config))
        longest = max(len(item.input_ids) for item in self.lengths.items)
        heads = getattr(self.settings, "num_attention_heads", 1)
        copies = 10 if config.curvature.spectrum else 5
        return copies * whole.weights + tokens * (2 * whole.bytes_per_token + 32 * longest * heads) < memory

    def _whole(self, config: ExperimentConfig, dtype: torch.dtype) -> _Whole:
        key = config.lora, dtype, config.model.quantization
        if key not in self._wholes:
            with counting() as count:
                bits = bits_of(config.model, self.settings)
                model = weightless_model(self.settings, config.lora, dtype, count, probe=False, bits=bits).peft_model
                layers = decoder_layers(model.get_base_model())
                whole = _Whole(count.live, tangent_bytes_per_token(model), len(layers), are_alike(layers))
                self._wholes[key] = whole
        return self._wholes[key]

    def _counted(
        self, config: ExperimentConfig, batches: HeaviestBatches, names: Collection[str], *, gpu: bool
    ) -> dict[str, _Counted]:
        """The pieces called `names`, of a model of all layers."""
        whole = self._whole(config, pieces.precision(config, gpu=gpu))
        if not names or whole.depth <= max(FEW_LAYERS) or not whole.alike:
            return self._of_layers(None, config, batches, names, gpu=gpu) if names else {}
        one, other = (self._of_layers(layers, config, batches, names, gpu=gpu) for layers in FEW_LAYERS)
        return {name: _deeper(one[name], other[name], whole.depth) for name in names}

    def _of_layers(
        self,
        layers: int | None,
        config: ExperimentConfig,
        batches: HeaviestBatches,
        names: Collection[str],
        *,
        gpu: bool,
    ) -> dict[str, _Counted]:
        counted = {}
        with counting() as count:
            dtype = pieces.precision(config, gpu=gpu)
            bits = bits_of(config.model, self.settings)
            model = weightless_model(self.settings, config.lora, dtype, count, layers, gpu=gpu, bits=bits)
            model.arithmetic = config.landscape.arithmetic
            if self._tangent_pass is None:
                self._tangent_pass = supports_tangent_pass(model)
            remember_tangent_pass(model, self._tangent_pass)
            for name in names:
                peaks, flops = [], 0.0
                gc.collect()  # what the piece before left in circles is not this one's
                count.restart()
                for _ in PIECES[name](model, batches, config):
                    peaks.append(count.peak)
                    flops += count.flops
                    count.restart()
                counted[name] = _Counted(tuple(peaks), flops)
        return counted


def _deeper(one: _Counted, other: _Counted, depth: int) -> _Counted:
    """What `depth` layers need, by what `FEW_LAYERS` do: every layer adds the same."""
    a, b = FEW_LAYERS

    def at_depth(x: float, y: float) -> float:
        return x + (y - x) * (depth - a) / (b - a)

    peaks = tuple(round(at_depth(x, y)) for x, y in zip(one.peaks, other.peaks, strict=True))
    return _Counted(peaks, at_depth(one.flops, other.flops))


def _wanted(config: ExperimentConfig) -> list[str]:
    landscape, curvature = config.landscape, config.curvature
    asked = {
        "plane": landscape.paths or landscape.checkpoint_plane,
        "forecast": curvature.forecast,
        "spectrum": curvature.spectrum,
        "weight spectrum": curvature.spectrum and curvature.weight_probes > 0,
    }
    return [name for name in PIECES if asked.get(name, True)]


def _relevant(name: str, config: ExperimentConfig, batches: HeaviestBatches) -> tuple[object, ...]:
    """What decides how much a phase needs, besides the backbone and its precision."""
    common = (config.lora, batches.points, batches.tasks, batches.items(name))
    if name == "training":
        return (*common, config.training.gradient_checkpointing, methods_key(config))
    if name == "scores":
        return (*common, config.evaluation.batch_size)
    landscape = config.landscape
    around = (*common, landscape.arithmetic, landscape.space, landscape.directions, landscape.batch_size)
    return around if name in ("landscape", "plane") else (*around, config.curvature)


def _arithmetic(name: str, config: ExperimentConfig, dtype: torch.dtype, *, gpu: bool) -> str:
    own = str(dtype).removeprefix("torch.")
    if config.landscape.arithmetic == "native" or (gpu and name in ("training", "scores")):
        return own
    return "tf32" if gpu and config.landscape.arithmetic == "tf32" else "float32"
