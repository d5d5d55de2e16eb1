"""Quantised backbones: which checkpoints can be read, what the packages that read them need to be told, and what they take.

`model.quantization` quantises a plain checkpoint while it is loaded, through bitsandbytes: NF4 blocks of 64 weights, or rows of
int8 (LLM.int8()). A checkpoint that is quantised itself says how in its config.json.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llm_forgetting.config.measurements import Arithmetic
from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.linear_layers import between_embeddings
from llm_forgetting.models.adapter.requantised import BLOCK
from llm_forgetting.models.adapter.widened import frozen_product

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

READABLE: Mapping[str, str] = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}
"""Kinds of quantised checkpoints that are read, and the package that each needs."""
# That of torchao is apart: transformers imports it wherever it is installed, and it talks.
EXTRAS = {"bitsandbytes": "quantised", "torchao": "torchao", "lm_eval": "harness"}


def kind_of(settings: object) -> str | None:
    """How the weights of a checkpoint are quantised, by the name in its config.json; None where they are plain."""
    quantised = getattr(settings, "quantization_config", None)
    said = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
    kind = said.get("quant_method")
    return None if kind is None else str(getattr(kind, "value", kind))


def require_readable(config: ModelConfig, settings: object) -> None:
    """UserError where the weights are quantised in a way that cannot be read here, or would be quantised twice."""
    kind = kind_of(settings)
    if kind is None:
        if config.quantization is not None:
            require_package("bitsandbytes", f"model.quantization={config.quantization}")
        return
    if kind not in READABLE:
        raise UserError(
            f"model.name={config.name!r} must have plain weights, or such as are quantised by {' or '.join(READABLE)}; its "
            f"config.json says {kind}, which cannot be read here: take the checkpoint without quantisation; "
            "model.quantization=4bit quantises it"
        )
    if config.quantization is not None:
        raise UserError(
            f"model.quantization must be null for a checkpoint that is quantised already, was {config.quantization!r}; "
            f"the config.json of model.name={config.name!r} says {kind}"
        )
    require_package(READABLE[kind], f"model.name={config.name!r}, which is quantised ({kind}),")


def require_package(package: str, what: str) -> None:
    """UserError where `package`, which `what` needs, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{what} needs the package {package}, which is not installed: pip install 'llm-forgetting[{EXTRAS[package]}]'"
        )


def loading_options(config: ModelConfig, dtype: torch.dtype) -> dict[str, "BitsAndBytesConfig"]:
    """What `from_pretrained` is to be given for `model.quantization`; its products are of `dtype`."""
    from transformers import BitsAndBytesConfig

    if config.quantization is None:
        return {}
    make: Callable[..., BitsAndBytesConfig] = BitsAndBytesConfig
    if config.quantization == "8bit":
        return {"quantization_config": make(load_in_8bit=True)}
    four = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four}


def note_plain_weights(config: ModelConfig, backbone: nn.Module, notify: Callable[[str], None]) -> None:
    """Say so where `model.quantization` left many of the weights as they were: experts, for one, are no linear layers."""
    if config.quantization is None:
        return
    embeddings = {id(p) for which in ("input", "output") for p in _embeddings(backbone, which)}
    inner = [weight for weight in backbone.parameters() if id(weight) not in embeddings]
    plain = sum(weight.numel() for weight in inner if weight.is_floating_point())
    total = plain + sum(numbers(weight) for weight in inner if not weight.is_floating_point())
    if plain > 0.1 * total:
        notify(
            f"model.quantization={config.quantization}: {100 * plain / total:.0f}% of the weights between the embeddings stay "
            "as they are, because they belong to no linear layer"
        )


def _embeddings(backbone: Any, which: str) -> Iterator[nn.Parameter]:
    module = getattr(backbone, f"get_{which}_embeddings")()
    return iter(()) if module is None else module.parameters()


def numbers(parameter: torch.Tensor) -> int:
    """How many numbers a parameter stands for: of a 4-bit one the bytes hold two each."""
    shape: torch.Size = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
    return shape.numel()


def description_of(backbone: nn.Module) -> str | None:
    """How the weights of a loaded backbone are quantised, such as `bitsandbytes 4bit nf4`; None where they are plain."""
    settings: Any = getattr(getattr(backbone, "config", None), "quantization_config", None)
    kind = kind_of(getattr(backbone, "config", None))
    if kind != "bitsandbytes":
        return kind
    if settings.load_in_8bit:
        return f"{kind} 8bit (LLM.int8())"
    return f"{kind} 4bit {settings.bnb_4bit_quant_type}"


def quantises_activations(backbone: nn.Module) -> bool:
    """Whether the backbone's own kernels round activations too, those of one item by what is beside it in the batch."""
    return "int8()" in (description_of(backbone) or "")


def arithmetic_of(kind: str, arithmetic: Arithmetic, device: torch.device) -> str:
    """What the numbers of a backbone quantised as `kind` says are of, for readers."""
    kernels = f"the kernels of {kind.split(maxsplit=1)[0]}" + (
        ", which quantise activations too" if "int8()" in kind else ""
    )
    if arithmetic == "native":
        return f"{kernels}, throughout"
    wide = f"{arithmetic} products with dequantised weights"
    return f"{wide}, throughout" if device.type == "cpu" else f"scores and training by {kernels}; all else {wide}"


def bits_of(config: ModelConfig, settings: object) -> int | None:
    """Bits of a quantised weight, by `model.quantization` or the checkpoint; None of plain ones, and where it is not told."""
    said = getattr(settings, "quantization_config", None) or {}
    four, eight = ((said if isinstance(said, dict) else vars(said)).get(f"load_in_{n}bit") for n in (4, 8))
    return 4 if config.quantization == "4bit" or four else 8 if config.quantization == "8bit" or eight else None


class WeightlessQuantised(nn.Linear):
    """A layer of a model without weights that holds as many bytes as one of bitsandbytes, and computes as that does."""

    def __init__(self, plain: Any, bits: int) -> None:
        d_in, d_out = (plain.in_features, plain.out_features) if isinstance(plain, nn.Linear) else (plain.nx, plain.nf)
        self.wide_dtype: torch.dtype = plain.weight.dtype
        super().__init__(d_in, d_out, plain.bias is not None, "meta", self.wide_dtype)
        # Of one byte, and no integers: of those the count keeps real ones.
        held = d_out * d_in if bits == 8 else -(-d_out * d_in // 2)
        self.weight = nn.Parameter(torch.empty(held, dtype=torch.float8_e4m3fn, device="meta"), requires_grad=False)
        scales = d_out if bits == 8 else -(-d_out * d_in // BLOCK)
        self.scales = nn.Parameter(torch.empty(scales, device="meta"), requires_grad=False)

    def dequantize(self) -> torch.Tensor:
        """(d_out, d_in), as `widened` asks for it."""
        return torch.empty(self.out_features, self.in_features, dtype=self.wide_dtype, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Dequantise, and multiply, anew in a backward pass."""
        y = frozen_product(x, self)
        return y if self.bias is None else y + self.bias


def quantise_weightless(backbone: nn.Module, bits: int) -> None:
    """Exchange the linear layers between the embeddings for such as hold as many bytes as quantised ones."""
    for name, layer in list(between_embeddings(backbone)):
        backbone.set_submodule(name, WeightlessQuantised(layer, bits))
