"""Saved LoRA adapters in PEFT's folder format, read and written without PEFT: its names and scales, safetensors only."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, at_least_float32
from llm_forgetting.models.adapter.adapter_settings import settings_problems

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
LONGEST_KIND = 60
PREFIX = "base_model.model."
# A weight's name, in a saved file or (with the adapter's name in it) in a live model's state dict.
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight")

State = Mapping[str, Any]  # of tensors
# A state dict or factors; for PEFT models also the folder of a saved adapter, or None: the bare backbone.
Checkpoint = State | str | os.PathLike[str] | None


def weight_name(module: str, factor: str) -> str:
    """How PEFT calls factor `A` or `B` of a backbone's module in a saved adapter."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's own settings; UserError where `folder` holds no adapter, one whose weights are a pickle, or settings of
    wrong types or ranges.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            if name == WEIGHTS and (folder / PICKLE).is_file():
                raise UserError(
                    f"the adapter in {folder} must be {WEIGHTS}; {PICKLE} is a pickle, which runs code when it is read: save "
                    f"it again with a current PEFT"
                )
            raise UserError(
                f"a folder with a saved PEFT adapter is needed ({CONFIG}, {WEIGHTS}), {folder} has no {name}"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} must be a JSON file, it cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise UserError(f"the adapter in {folder} must name its kind, its peft_type is {str(kind)[:60]}; save it again")
    if len(config["peft_type"]) > LONGEST_KIND:
        raise UserError(
            f"the adapter in {folder} must have settings that this PEFT knows, its peft_type is {config['peft_type'][:60]}..."
        )
    for problem in settings_problems(config, _largest_side(folder)):
        raise UserError(f"{folder / CONFIG}: {problem}; save the adapter again, or mend the file")
    return config


def _largest_side(folder: Path) -> int:
    """Of all matrices of a saved adapter, none of which is read."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = file.keys()
            return max((size for name in names for size in file.get_slice(name).get_shape()), default=1)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the adapter in {folder} must be a whole {WEIGHTS}: {error}")


def read_weights(folder: Path, *, matrices: bool = True) -> dict[str, torch.Tensor]:
    """All weights of a saved adapter, by PEFT's names, on the CPU; UserError where one is no matrix of finite numbers.

    Without `matrices` they may have any number of dimensions, as those of adapters that are not plain LoRA do.
    """
    try:
        weights = dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    for name, tensor in weights.items():
        if (matrices and tensor.dim() != 2) or not tensor.numel() or (matrices and not tensor.is_floating_point()):
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise UserError(f"the adapter in {folder} must hold matrices of floating-point numbers, {name} is {kind}")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(f"the adapter in {folder} must hold finite numbers, {name} has NaN or inf; train it again")
    return weights


def read_update(folder: Path) -> WeightUpdate:
    """delta W = B A of every module of a saved adapter, its own scale absorbed, in float32 or better."""
    config = read_config(folder)
    return update_from(read_weights(folder), lambda module, rank: saved_scale(config, module, rank), str(folder))


def saved_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """s = alpha / r, alpha / sqrt(r) for rsLoRA, of one module under an adapter's settings."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(matching, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def read_weights_at(folder: Path, scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """`read_weights`, B multiplied so that delta W = s B A is the saved one with the `scales` s of a model's modules.

    Adapters of one rank may have different alpha.
    """
    config, weights = read_config(folder), read_weights(folder)
    for name, weight in weights.items():
        match = _NAME.fullmatch(name)
        if match is not None and match["factor"] == "B" and match["module"] in scales:
            ratio = saved_scale(config, match["module"], weight.shape[1]) / scales[match["module"]]
            if not math.isclose(ratio, 1.0, rel_tol=1e-9):
                weights[name] = weight * ratio
    return weights


def update_from(state: State, scale: Callable[[str, int], float], source: str) -> WeightUpdate:
    """delta W = B A from LoRA weights by PEFT's names; `scale` gives s of a (module, rank).

    UserError where a weight is no LoRA matrix or has no partner; `source` is what it then calls them.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{source} must hold the A and B of a LoRA adapter and nothing else, it holds {name}")
        parts.setdefault(match["module"], {})[match["factor"]] = at_least_float32(tensor.detach())
    alone = [module for module, pair in parts.items() if len(pair) != 2]
    if alone or not parts:
        raise UserError(
            f"{source} must hold both A and B of every module, of {alone[0] if alone else 'none'} it does not"
        )
    for module, pair in parts.items():
        shapes = tuple(pair["B"].shape), tuple(pair["A"].shape)
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][0]:
            raise UserError(f"{source} must hold B (d_out, r) and A (r, d_in), of {module} they are {shapes}")
    return WeightUpdate(
        {
            module: Factors(B=pair["B"] * scale(module, pair["A"].shape[0]), A=pair["A"].clone())
            for module, pair in parts.items()
        }
    )


def fitted(update: Mapping[str, Any], live: WeightUpdate, source: str) -> WeightUpdate:
    """`update` in the order, precision and place of `live`; UserError where it is not of the same modules and shapes."""
    sizes, given = ({name: (len(pair.B), pair.A.shape[1]) for name, pair in part.items()} for part in (live, update))
    wrong = sorted(name for name in sizes.keys() | given.keys() if sizes.get(name) != given.get(name))
    if wrong:
        raise UserError(
            f"{source} must adapt the same modules as the model, {len(wrong)} differ: {wrong[0]} is {given.get(wrong[0])}, "
            f"must be {sizes.get(wrong[0])}"
        )
    return WeightUpdate(
        {name: Factors(update[name].B.to(pair.B), update[name].A.to(pair.A)) for name, pair in live.items()}
    )


def write_weights(folder: Path, update: WeightUpdate) -> None:
    """The factors of `update` as the weights of an adapter of scale 1."""
    save_file(
        {
            weight_name(module, factor): getattr(pair, factor).detach().float().cpu().contiguous()
            for module, pair in update.items()
            for factor in "AB"
        },
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
