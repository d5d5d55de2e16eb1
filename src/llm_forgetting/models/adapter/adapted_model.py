"""A model of any architecture with one LoRA adapter: how delta W is read, moved and saved."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from llm_forgetting.config.measurements import Arithmetic
from llm_forgetting.config.sections import LoraConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import write_text
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, at_least_float32
from llm_forgetting.models.adapter import perturbation
from llm_forgetting.models.adapter.linear_layers import is_linear, target_names
from llm_forgetting.models.adapter.lora_options import refuse_uncovered_options
from llm_forgetting.models.adapter.saved_adapter import (
    CONFIG,
    PREFIX,
    Checkpoint,
    fitted,
    read_config,
    read_update,
    read_weights,
    update_from,
    weight_name,
    write_weights,
)
from llm_forgetting.models.adapter.widened import is_widened, keep_layout, widened
from llm_forgetting.seeding import derive_seed


def is_adapted(model: Any) -> bool:
    """Whether `model` is a PEFT model; UserError where it only contains adapters, in A and B of which nothing is comparable."""
    if isinstance(model, peft.PeftModel):
        return True
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            f"a model with adapters must be a PEFT model (peft.get_peft_model), {type(model).__name__} only contains some; "
            f"pass the PEFT model itself, or give directions=(d, e) over named parameters"
        )
    return False


def refuse_uncovered(model: Any) -> None:
    """Raise UserError where `model`'s adapter is not delta W = s B A in every adapted module and nothing else."""
    if not isinstance(model, peft.PeftModel):
        raise UserError(f"a PEFT model with a LoRA adapter is needed, was {type(model).__name__}")
    active = list(model.active_adapters)
    if len(active) != 1:
        raise UserError(
            f"exactly one adapter must be active (delta W of several is not one B A), active: {', '.join(active)}"
        )
    refuse_uncovered_options(model.peft_config[active[0]])
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise UserError(
            f"all weights must be on one device, they are on {', '.join(devices)} (device_map or offloading); load the model "
            "onto one"
        )
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not hasattr(module.get_base_layer(), "weight"):
            raise UserError(
                f"every adapted layer must have a weight, {name} ({type(module.get_base_layer()).__name__}) has a quantised "
                "one of its own kind; load the backbone without quantisation"
            )
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
    """Every layer of the active adapter by its module name in the backbone (`model.layers.0.self_attn.q_proj`), in order."""
    active = model.active_adapters[0]
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and active in module.lora_A
    }


def attach_lora(backbone: Any, lora: LoraConfig, seed: int, notify: Callable[[str], None] = lambda line: None) -> Any:
    """`backbone` with a fresh adapter (B = 0), its A drawn from stream `adapter` of `seed`; see `target_names`."""
    targets = target_names(backbone, lora.target_modules, notify)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.use_rslora,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in backbone.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever GPUs there are
        torch.default_generator.manual_seed(derive_seed(seed, "adapter"))
        try:
            model = peft.get_peft_model(backbone, settings)
        except ValueError as error:
            raise UserError(
                f"lora.target_modules={lora.target_modules!r} must match linear modules of the model, none did; "
                f"its linear modules are {', '.join(_linear_names(backbone))}"
            ) from error
    layer_names = [f".{name}" for name in target_layers(model)]
    unmatched = [
        target
        for target in targets
        if targets != "all-linear" and not any(name.endswith(f".{target}") for name in layer_names)
    ]
    if unmatched:
        raise UserError(
            f"every name of lora.target_modules must match a linear module of the model, {', '.join(unmatched)} did not; "
            f"its linear modules are {', '.join(_linear_names(backbone))}"
        )
    return model


def saved_options(folder: Path) -> Any:
    """PEFT's settings of a saved adapter; UserError where the folder holds none, or one that is not covered."""
    read_config(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # what PEFT says of settings that it cannot take is of any type
        raise UserError(
            f"the adapter in {folder} must have settings that this PEFT knows: {_one_line(error)}"
        ) from error
    refuse_uncovered_options(config)
    return config


def attach_saved(backbone: Any, folder: Path) -> Any:
    """`backbone` with an adapter `default` of the settings, not yet the weights, of the one saved in `folder`."""
    settings = saved_options(folder)
    targets = settings.target_modules
    settings.inference_mode, settings.base_model_name_or_path = False, None
    with torch.random.fork_rng(devices=[]):
        try:
            return peft.get_peft_model(backbone, settings)
        except ValueError as error:
            raise UserError(
                f"the adapter in {folder} must fit the backbone, none of its target_modules "
                f"({targets if isinstance(targets, str) else ', '.join(sorted(targets))}) is there; "
                f"its linear modules are {', '.join(_linear_names(backbone))}"
            ) from error
        except Exception as error:  # as above
            raise UserError(f"the adapter in {folder} must fit the backbone: {_one_line(error)}") from error


class AdaptedModel:
    """A PEFT model with one active LoRA adapter.

    `peft_model` is the live model; `adapter_factors` reads its adapter in scale-free form delta W = B A (the scale s is
    absorbed), and `perturbed` runs a block at another point of adapter space and restores every bit afterwards.
    """

    def __init__(self, peft_model: Any) -> None:
        refuse_uncovered(peft_model)
        keep_layout(peft_model)
        self.peft_model = peft_model
        self.adapter: str = peft_model.active_adapters[0]
        self.arithmetic: Arithmetic = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbone's weights."""
        adapter = {id(weight) for layer in target_layers(self.peft_model).values() for weight in self._trained(layer)}
        dtype: torch.dtype = next(p.dtype for p in self.peft_model.parameters() if id(p) not in adapter)
        return dtype

    @property
    def precision(self) -> torch.dtype:
        """Precision in which analyses compute: float32 or better, the backbone's own where `arithmetic` is native."""
        return self.dtype if self.arithmetic == "native" else torch.promote_types(self.dtype, torch.float32)

    @contextmanager
    def analysed(self) -> Iterator[None]:
        """Within the block the backbone computes in `precision`."""
        if self.arithmetic == "native":
            yield
            return
        with self.matrix_products(), widened(self.peft_model.get_base_model()):
            yield

    @contextmanager
    def matrix_products(self) -> Iterator[None]:
        """Within the block a GPU's float32 products have factors of 24 bits, of 11 where `arithmetic` is tf32."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.arithmetic == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def adapter_factors(self) -> WeightUpdate:
        """delta W = B A of every target module, in float32 or better on the model's device; copies."""
        return WeightUpdate(
            {n: Factors(B=p.B.detach(), A=p.A.detach().clone()) for n, p in self.live_factors().items()}
        )

    def live_factors(self) -> WeightUpdate:
        """`adapter_factors` as functions of the trained weights: what is computed from them has a gradient."""
        return WeightUpdate(
            {
                name: Factors(B=at_least_float32(B) * layer.scaling[self.adapter], A=at_least_float32(A))
                for name, layer in target_layers(self.peft_model).items()
                for A, B in [self._trained(layer)]
            }
        )

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Write the adapter as (A / factor, factor B): delta W stays, to rounding, and to the bit for a power of 2."""
        for layer in target_layers(self.peft_model).values():
            A, B = self._trained(layer)
            A.div_(factor)
            B.mul_(factor)

    @property
    def is_trained(self) -> bool:
        """Whether delta W is not 0 (that of a fresh adapter is)."""
        return any(bool(pair.B.any() and pair.A.any()) for pair in self.adapter_factors().values())

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """A and B by the names that PEFT gives them in a saved adapter; copies on the CPU."""
        return {
            weight_name(name, factor): weight.detach().cpu().clone()
            for name, layer in target_layers(self.peft_model).items()
            for factor, weight in zip("AB", self._trained(layer), strict=True)
        }

    def set_adapter_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the adapter the weights that `adapter_state` had."""
        with torch.no_grad():
            for name, layer in target_layers(self.peft_model).items():
                for factor, weight in zip("AB", self._trained(layer), strict=True):
                    weight.copy_(state[weight_name(name, factor)])

    def update_of(self, checkpoint: Checkpoint) -> WeightUpdate:
        """delta W of a checkpoint on this backbone, on the model's device.

        A folder of a saved adapter (its own rank and scale), a PEFT state dict (the live adapter's scale), factors, or None:
        the bare backbone, delta W = 0. UserError where it does not fit.
        """
        live = self.adapter_factors()
        if checkpoint is None:
            return WeightUpdate.zero(live)
        if isinstance(checkpoint, str | os.PathLike):
            return fitted(read_update(Path(checkpoint)), live, f"the adapter in {checkpoint}")
        if all(isinstance(pair, Factors) for pair in checkpoint.values()):
            return fitted(dict(checkpoint), live, "the checkpoint")
        layers = target_layers(self.peft_model)
        scales = {name: float(layer.scaling[self.adapter]) for name, layer in layers.items()}
        update = update_from(checkpoint, lambda module, rank: scales.get(module, 1.0), "the checkpoint")
        return fitted(update, live, "the checkpoint")

    def weight_row_norms(self) -> dict[str, torch.Tensor]:
        """(d_out,) row norms of the merged weight W + delta W of every target module."""
        factors = self.adapter_factors()
        return {
            name: perturbation.merged_weight(layer, factors[name]).norm(dim=1)
            for name, layer in target_layers(self.peft_model).items()
        }

    @property
    def can_merge(self) -> bool:
        """Whether W + B A can be written into the backbone: float32 or float64 (not quantised), so that B A is not rounded
        away, and no adapted W that another module uses too (a head tied to the embedding), which would move as well.
        """
        layers = [layer.get_base_layer() for layer in target_layers(self.peft_model).values()]
        if any(map(is_widened, layers)):
            return False
        weights = [layer.weight for layer in layers]
        adapted = {id(weight) for weight in weights}
        places = [id(p) for _, p in self.peft_model.named_parameters(remove_duplicate=False) if id(p) in adapted]
        return len(places) == len(weights) and all(w.dtype in (torch.float32, torch.float64) for w in weights)

    @contextmanager
    def perturbed(self) -> Iterator[Callable[[WeightUpdate], None]]:
        """A setter that moves the model to any delta W = B A (of any rank); on leaving, every bit is as before.

        A float32 backbone gets W + B A merged into the adapted modules, computed from a snapshot of W: the forward then is
        the bare model's. Where merging is not possible (`can_merge`), it is applied beside a backbone that is never written.
        Either way nothing drifts, also when the block raises or is interrupted.
        Costs one copy of the adapted weights (merged) or one float32 weight at a time (beside narrow weights, see `widened`).
        """
        if not self.can_merge:
            with self.unmerged() as move_all:
                yield lambda point: move_all([point])
            return
        with self.without_adapter(), self.analysed(), perturbation.merged(target_layers(self.peft_model)) as move:
            yield move

    @contextmanager
    def unmerged(self) -> Iterator[Callable[[Sequence[WeightUpdate]], None]]:
        """A setter that applies one low-rank update per row of the batch beside the frozen weights, which are never written.

        With several points the batch must have as many rows; they then share one forward of the backbone.
        """
        with self.without_adapter(), self.analysed(), perturbation.unmerged(target_layers(self.peft_model)) as move:
            yield move

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The bare backbone; which parameters are trained is as before afterwards (PEFT trains all that it enables)."""
        trained = [(parameter, parameter.requires_grad) for parameter in self.peft_model.parameters()]
        try:
            self.peft_model.base_model.disable_adapter_layers()
            yield
        finally:
            self.peft_model.base_model.enable_adapter_layers()
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    def adapter_sha256(self) -> str:
        """Hash over names and bytes of all adapter weights: equal exactly if the adapters are bit-equal."""
        digest = hashlib.sha256()
        for name, layer in sorted(target_layers(self.peft_model).items()):
            for weight in self._trained(layer):
                digest.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """The adapter into an existing folder (safetensors, loadable by `PeftModel.from_pretrained`)."""
        self.peft_model.save_pretrained(folder, safe_serialization=True)
        _sort_names(folder)

    def save_update(self, folder: Path, update: WeightUpdate) -> None:
        """Any delta W of this backbone, of whatever ranks, as an adapter like those of `save`; its scale s is 1."""
        ranks = {name: pair.A.shape[0] for name, pair in update.items()}
        settings = copy.deepcopy(self.peft_model.peft_config[self.adapter])
        settings.r = settings.lora_alpha = max(ranks.values())
        settings.rank_pattern = settings.alpha_pattern = {n: rank for n, rank in ranks.items() if rank != settings.r}
        settings.use_rslora, settings.inference_mode = False, True
        settings.save_pretrained(str(folder))
        _sort_names(folder)
        write_weights(folder, update)

    def load_adapter_weights(self, folder: Path) -> None:
        """Replace the adapter's weights by those saved in `folder`."""
        state = read_weights(folder)
        # Compared first: PEFT keeps quiet about missing weights, and has copied some when it finds a wrong shape.
        shapes, saved_shapes = ({name: tuple(t.shape) for name, t in s.items()} for s in (self.adapter_state(), state))
        wrong = sorted(
            name for name in shapes.keys() | saved_shapes.keys() if shapes.get(name) != saved_shapes.get(name)
        )
        if wrong:
            raise UserError(
                f"the adapter in {folder} must fit this model (same lora.rank and lora.target_modules), {len(wrong)} of its "
                f"weights do not: {wrong[0]} is {saved_shapes.get(wrong[0])}, must be {shapes.get(wrong[0])}"
            )
        peft.set_peft_model_state_dict(self.peft_model, state, adapter_name=self.adapter)

    def _trained(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight


def _sort_names(folder: Path) -> None:
    """Module names of adapter_config.json in one order: PEFT keeps them as a set and writes them in hash order."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _linear_names(backbone: Any) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if is_linear(module)})
