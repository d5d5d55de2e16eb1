"""Adapters on a backbone: a fresh one, or anyone's saved one; its settings checked, attached by PEFT, its weights loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from llm_forgetting.config.sections import LoraConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.initial_part import begin_with_weights
from llm_forgetting.models.adapter.linear_layers import is_linear, target_names
from llm_forgetting.models.adapter.lora_options import is_plain, refuse_uncovered_options
from llm_forgetting.models.adapter.saved_adapter import PREFIX, read_config
from llm_forgetting.models.adapter.widened import is_quantised
from llm_forgetting.seeding import derive_seed


def refuse_uncovered(model: Any) -> None:
    """Raise UserError where `model` has no adapter, one that is no update delta W of its weights, or one that is not in use."""
    if not isinstance(model, peft.PeftModel):
        raise UserError(f"a PEFT model with a LoRA adapter is needed, was {type(model).__name__}")
    for name in model.active_adapters:
        refuse_uncovered_options(model.peft_config[name])
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise UserError(
            f"all weights must be on one device, they are on {', '.join(devices)} (device_map or offloading); load the model "
            "onto one"
        )
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if isinstance(module, LoraLayer) and not hasattr(module.get_base_layer(), "weight"):
            raise UserError(
                f"every adapted layer must have a weight, {name} ({type(module.get_base_layer()).__name__}) has a quantised "
                "one of its own kind; load the backbone without quantisation"
            )
        if module.merged:
            raise UserError(
                f"the adapter must not be merged into the backbone (it is in {name}); call unmerge_adapter() first"
            )
        if module.disable_adapters:
            raise UserError(f"the adapter must not be disabled (it is in {name}); call enable_adapter_layers() first")


def is_plain_lora(model: Any) -> bool:
    """Whether delta W = s B A of one adapter, in linear modules, is the whole of the update."""
    embedded = (
        module.lora_embedding_A or not module.lora_A for module in model.modules() if isinstance(module, LoraLayer)
    )
    active = model.active_adapters
    return len(active) == 1 and is_plain(model.peft_config[active[0]]) and not any(map(bool, embedded))


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
    settings = _settings(lora, targets, turned=any(type(module).__name__ == "Conv1D" for module in backbone.modules()))
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever GPUs there are
        torch.default_generator.manual_seed(derive_seed(seed, "adapter"))
        try:
            model = peft.get_peft_model(backbone, settings)
            if lora.rewrites:
                _require_plain_weights(model, lora.init)
                begin_with_weights(target_layers(model), lora)
        except ValueError as error:
            raise UserError(
                f"lora.target_modules={lora.target_modules!r} must match linear modules of the model, none did; "
                f"its linear modules are {', '.join(linear_names(backbone))}"
            ) from error
    layer_names = [f".{name}" for name in target_layers(model)]
    names = [] if isinstance(targets, str) else targets
    unmatched = [target for target in names if not any(name.endswith(f".{target}") for name in layer_names)]
    if unmatched:
        raise UserError(
            f"every name of lora.target_modules must match a linear module of the model, {', '.join(unmatched)} did not; "
            f"its linear modules are {', '.join(linear_names(backbone))}"
        )
    return model


def _require_plain_weights(model: Any, init: object) -> None:
    for name, layer in target_layers(model).items():
        if is_quantised(layer.get_base_layer()):
            raise UserError(
                f"lora.init={init} takes a part out of the weights, which must not be quantised, {name} is; load the backbone "
                f"without quantisation, or set lora.init=true"
            )


def _settings(lora: LoraConfig, targets: str | list[str], *, turned: bool) -> Any:
    """PEFT's configuration; of twice the rank and the same scale where `init` takes a part out of the weights."""
    times = 2 if lora.rewrites else 1
    scale = times**0.5 if lora.use_rslora else times
    return peft.LoraConfig(
        r=times * lora.rank,
        lora_alpha=scale * lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.rewrites else lora.init,
        bias=lora.bias,
        modules_to_save=list(lora.modules_to_save) or None,
        rank_pattern={name: times * rank for name, rank in lora.rank_pattern.items()},
        alpha_pattern={name: scale * alpha for name, alpha in lora.alpha_pattern.items()},
        layers_to_transform=list(lora.layers_to_transform) or None,
        fan_in_fan_out=turned,
        task_type="CAUSAL_LM",
    )


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
                f"({targets if isinstance(targets, str) else ', '.join(sorted(targets or ()))}) is there; "
                f"its linear modules are {', '.join(linear_names(backbone))}"
            ) from error
        except Exception as error:  # as above
            raise UserError(f"the adapter in {folder} must fit the backbone: {_one_line(error)}") from error


def load_weights(peft_model: Any, adapter: str, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Give an attached adapter the weights `state` of the one saved in `folder`; UserError where they do not fit."""
    # Compared first: PEFT keeps quiet about missing weights, and has copied some when it finds a wrong shape.
    own, live = adapter_weights(peft_model, adapter), dict(peft_model.named_parameters())
    # Beside the adapter of an embedding PEFT saves the embedding itself.
    state = {name: t for name, t in state.items() if name in own or name not in live or not torch.equal(t, live[name])}
    shapes, saved_shapes = ({name: tuple(t.shape) for name, t in s.items()} for s in (own, state))
    wrong = sorted(name for name in shapes.keys() | saved_shapes.keys() if shapes.get(name) != saved_shapes.get(name))
    if wrong:
        raise UserError(
            f"the adapter in {folder} must fit this model (same lora.rank and lora.target_modules), {len(wrong)} of its "
            f"weights do not: {wrong[0]} is {saved_shapes.get(wrong[0])}, must be {shapes.get(wrong[0])}"
        )
    peft.set_peft_model_state_dict(peft_model, state, adapter_name=adapter)


def adapter_weights(peft_model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """All that PEFT saves of an adapter, by its names; not copied."""
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(
        peft_model, adapter_name=adapter, save_embedding_layers=False
    )
    return state


def linear_names(backbone: Any) -> list[str]:
    """The last names of a backbone's linear modules."""
    return sorted({name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if is_linear(module)})


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
