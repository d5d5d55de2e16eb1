"""A backbone with one LoRA adapter and its tokenizer; the only file that knows PEFT."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_forgetting.backbones import load_backbone
from llm_forgetting.batches import Batch, answer_position_logits
from llm_forgetting.config import LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER = "default"

# LoRA options under which every module still computes W + s B A, or that only choose which modules there are. Any other
# option that is set (DoRA, biases, modules_to_save, embedding or token adapters, ...) is refused by name.
_COVERED_OPTIONS = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "use_rslora",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "runtime_config",
        "qalora_group_size",
        "loftq_config",
        "ephemeral_gpu_offload",
    ]
)
# Initialisations that rewrite the frozen weights, so that the saved adapter alone no longer says what the update is.
_REWRITING_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def refuse_uncovered(model: Any) -> None:
    """Raise UserError where `model`'s adapter is not delta W = s B A in every adapted module and nothing else."""
    if not isinstance(model, peft.PeftModel):
        raise UserError(f"a PEFT model with a LoRA adapter is needed, was {type(model).__name__}")
    active = list(model.active_adapters)
    if len(active) != 1:
        raise UserError(
            f"exactly one adapter must be active (delta W of several is not one B A), active: {', '.join(active)}"
        )
    if active[0] != ADAPTER:
        raise UserError(f"the active adapter must be called {ADAPTER!r}, was {active[0]!r}; load it under that name")
    config = model.peft_config[active[0]]
    if type(config) is not peft.LoraConfig:
        raise UserError(
            f"the adapter must be plain LoRA (delta W = s B A), was {config.peft_type}: landscapes of it are not defined here"
        )
    defaults = peft.LoraConfig()
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name not in _COVERED_OPTIONS and value and value != getattr(defaults, option.name, None):
            raise UserError(
                f"LoRA option {option.name}={value!r} is not covered: with it the update is not delta W = s B A in the adapted "
                f"weights alone; train without it"
            )
    initialisation = config.init_lora_weights
    if isinstance(initialisation, str) and initialisation.lower().startswith(_REWRITING_INITIALISATIONS):
        raise UserError(
            f"LoRA option init_lora_weights={initialisation!r} is not covered: it rewrites the frozen weights, so the "
            f"adapter alone is not the update; use the default initialisation"
        )
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and (module.lora_embedding_A or not module.lora_A):
            raise UserError(
                f"LoRA on an embedding ({name}) is not covered: its update is not a matrix product applied to activations"
            )
        if isinstance(module, LoraLayer) and module.merged:
            raise UserError(
                f"the adapter must not be merged into the backbone (it is in {name}); call unmerge_adapter() first"
            )
        if isinstance(module, LoraLayer) and module.disable_adapters:
            raise UserError(f"the adapter must not be disabled (it is in {name}); call enable_adapter_layers() first")


def target_layers(model: Any) -> dict[str, Any]:
    """Every LoRA layer by its module name in the backbone (`model.layers.0.self_attn.q_proj`), in the model's order."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }


class LanguageModel:
    """Backbone, tokenizer and one LoRA adapter.

    `peft_model` is the live model; `adapter_factors` reads its adapter in scale-free form delta W = B A (the scale s is
    absorbed), and `perturbed` runs a block at another point of adapter space and restores every bit afterwards.
    """

    def __init__(self, peft_model: Any, tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
        refuse_uncovered(peft_model)
        self.peft_model = peft_model
        self.tokenizer = tokenizer
        self.source = source
        forward = inspect.signature(peft_model.get_base_model().forward).parameters
        self._accepted = frozenset(forward)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        self.pad_id = int(tokenizer.pad_token_id or 0)

    @classmethod
    def load(
        cls, config: ModelConfig, lora: LoraConfig, *, seed: int, notify: Callable[[str], None] = lambda message: None
    ) -> "LanguageModel":
        """Load the backbone and put a fresh adapter (B = 0) on it, its A drawn from stream `adapter` of `seed`."""
        backbone, tokenizer = load_backbone(config, notify)
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        settings = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets if targets == "all-linear" or not isinstance(targets, str) else [targets],
            use_rslora=lora.use_rslora,
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in backbone.modules()),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "adapter"))
            try:
                model = peft.get_peft_model(backbone, settings)
            except ValueError as error:
                raise UserError(
                    f"lora.target_modules={lora.target_modules!r} must match linear modules of the model, none did; "
                    f"its linear modules are {', '.join(_linear_names(backbone))}"
                ) from error
        found = [f".{name}" for name in target_layers(model)]
        names = [] if isinstance(targets, str) else targets
        unmatched = [target for target in names if not any(name.endswith(f".{target}") for name in found)]
        if unmatched:
            raise UserError(
                f"every name of lora.target_modules must match a linear module of the model, {', '.join(unmatched)} did not; "
                f"its linear modules are {', '.join(_linear_names(backbone))}"
            )
        return cls(model.eval(), tokenizer, config.name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.peft_model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbone's weights."""
        dtype: torch.dtype = next(p.dtype for p in self.peft_model.parameters() if not p.requires_grad)
        return dtype

    def description(self) -> dict[str, Any]:
        """Name, architecture, sizes, precision and adapter, for the results."""
        layers = target_layers(self.peft_model)
        sizes = [(p.numel(), p.requires_grad) for p in self.peft_model.parameters()]
        return {
            "name": self.source,
            "architecture": type(self.peft_model.get_base_model()).__name__,
            "parameters": sum(n for n, trained in sizes if not trained),
            "adapter_parameters": sum(n for n, trained in sizes if trained),
            "adapted_modules": len(layers),
            "adapted_weights": sum(_matrix_size(layer) for layer in layers.values()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }

    def answer_logits(self, batch: Batch) -> torch.Tensor:
        """(n, vocabulary) float32 logits after `Answer:`, differentiable where gradients are on."""
        return answer_position_logits(self.peft_model, batch.to(self.device), self._accepted)

    def adapter_factors(self) -> dict[str, Factors]:
        """delta W = B A of every target module, in float32 on the model's device; copies."""
        factors = {}
        for name, layer in target_layers(self.peft_model).items():
            scale = layer.scaling[ADAPTER]
            factors[name] = Factors(
                B=layer.lora_B[ADAPTER].weight.detach().float() * scale,
                A=layer.lora_A[ADAPTER].weight.detach().float().clone(),
            )
        return factors

    @contextmanager
    def perturbed(self) -> Iterator[Callable[[dict[str, Factors]], None]]:
        """A setter that moves the adapter to any delta W = B A of its own rank; on leaving, every bit is as before.

        A float32 backbone gets W + B A merged into the adapted modules, computed from a snapshot of W: the forward then is
        the bare model's. In lower precision merging would round B A away, so there the adapter's own A and B are set.
        Either way the restore is a copy back from the snapshot, not an inverse step, so nothing drifts; it also happens
        when the block raises or is interrupted. Costs one copy of the adapted weights (merged) or of the adapter.
        """
        layers = target_layers(self.peft_model)
        merged = self.dtype in (torch.float32, torch.float64)
        weights = [weight for layer in layers.values() for weight in (_frozen(layer) if merged else _trained(layer))]
        snapshot = [weight.detach().clone() for weight in weights]

        @torch.no_grad()
        def merge(factors: dict[str, Factors]) -> None:
            for (name, layer), weight, original in zip(layers.items(), weights, snapshot, strict=True):
                B, A = factors[name].B.to(weight.dtype), factors[name].A.to(weight.dtype)
                left, right = (A.T, B.T) if layer.fan_in_fan_out else (B, A)
                torch.addmm(original, left, right, out=weight)

        @torch.no_grad()
        def set_beside(factors: dict[str, Factors]) -> None:
            for name, layer in layers.items():
                A, B = _trained(layer)
                A.copy_(factors[name].A)
                B.copy_(factors[name].B / layer.scaling[ADAPTER])

        try:
            with self.peft_model.disable_adapter() if merged else nullcontext():
                yield merge if merged else set_beside
        finally:
            with torch.no_grad():
                for weight, original in zip(weights, snapshot, strict=True):
                    weight.copy_(original)

    def adapter_sha256(self) -> str:
        """Hash over names and bytes of all adapter weights: equal exactly if the adapters are bit-equal."""
        digest = hashlib.sha256()
        for name, layer in sorted(target_layers(self.peft_model).items()):
            for weight in _trained(layer):
                digest.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Adapter (safetensors, loadable by `PeftModel.from_pretrained`) and tokenizer into an existing folder."""
        self.peft_model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def load_adapter_weights(self, folder: Path) -> None:
        """Replace the adapter's weights by those saved in `folder`."""
        try:
            state = load_file(folder / "adapter_model.safetensors")
        except (OSError, SafetensorError) as error:
            raise UserError(f"the adapter in {folder} must be a whole adapter_model.safetensors: {error}") from error
        # Compared first: PEFT keeps quiet about missing weights, and has copied some when it finds a wrong shape.
        live = peft.get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        shapes, found = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (live, state))
        wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        if wrong:
            raise UserError(
                f"the adapter in {folder} must fit this model (same lora.rank and lora.target_modules), {len(wrong)} of its "
                f"weights do not: {wrong[0]} is {found.get(wrong[0])}, must be {shapes.get(wrong[0])}"
            )
        peft.set_peft_model_state_dict(self.peft_model, state)


def _matrix_size(layer: Any) -> int:
    return int(layer.lora_B[ADAPTER].out_features * layer.lora_A[ADAPTER].in_features)


def _frozen(layer: Any) -> tuple[torch.Tensor, ...]:
    return (layer.get_base_layer().weight,)


def _trained(layer: Any) -> tuple[torch.Tensor, ...]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _linear_names(backbone: Any) -> list[str]:
    modules = backbone.named_modules()
    return sorted(
        {name.rsplit(".", 1)[-1] for name, module in modules if type(module).__name__ in ("Linear", "Conv1D")}
    )
