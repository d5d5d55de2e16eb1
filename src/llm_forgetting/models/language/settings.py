"""The configuration of a backbone (transformers' own), from what is on this machine: no network, no weights."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_forgetting.config.sections import EMBEDDED_MODEL, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json, user_path
from llm_forgetting.models.language.quantisation import kind_of, require_readable
from llm_forgetting.tasks import embedded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# The built-in backbones' folders in the cache.
BUILT_IN = {"embedded": "SmolLM2-135M-Instruct", "synthetic": "synthetic-llama-v1"}
# Their shapes, for the time before they are there.
SHAPES: Mapping[str, Json] = {
    "embedded": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "synthetic": {
        "vocab_size": 65, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    },
}  # fmt: skip

# More than any model has: they would be built for hours.
MOST_LAYERS = 1_000


@dataclass(frozen=True)
class ModelSettings:
    """A backbone's configuration; `origin` says where it stands."""

    settings: "PretrainedConfig"
    origin: str


def model_settings(config: ModelConfig) -> ModelSettings | None:
    """The backbone's configuration, guessed from its name where none can be read; None where the name says nothing either."""
    settings = read_settings(config)
    if settings is not None:
        origin = EMBEDDED_MODEL if config.name == "embedded" else "its config.json"
        if (kind := kind_of(settings)) not in (None, "bitsandbytes"):
            origin += f" (weights quantised by {kind} are counted as plain ones)"
        return ModelSettings(settings, origin)
    guess = _guessed(config.name)
    return None if guess is None else ModelSettings(guess, "guessed from its name")


def read_settings(config: ModelConfig) -> "PretrainedConfig | None":
    """The backbone's configuration in its folder or the hub's cache; None where neither has one.

    UserError where it asks for more layers than any model has, or for weights that cannot be read here.
    """
    from transformers import AutoConfig, LlamaConfig

    try:
        settings: PretrainedConfig = AutoConfig.from_pretrained(
            _place(config.name), revision=config.revision, local_files_only=True
        )
    except Exception:  # as in load_backbone, which says why
        shape = SHAPES.get(config.name)
        return None if shape is None else LlamaConfig(**shape)
    require_possible_size(config.name, settings)
    require_readable(config, settings)
    return settings


def _place(name: str) -> str:
    """The folder of a backbone, or its name in the hub's cache."""
    folder: Path = embedded.cache_folder() / BUILT_IN[name] if name in BUILT_IN else user_path(name)
    return str(folder) if folder.is_dir() else name


def _guessed(name: str) -> "PretrainedConfig | None":
    """A Llama of about as many parameters as the name says: layers are hidden / 128, as are heads."""
    from transformers import LlamaConfig

    match = re.search(r"(\d+(?:\.\d+)?)b\b", name.lower())
    if match is None:
        return None
    wanted, vocabulary = float(match.group(1)) * 1e9, 32_000

    def parameters(layers: int) -> float:
        hidden = 128 * layers
        return layers * 12 * hidden**2 + 2 * vocabulary * hidden

    layers = min(range(2, 256), key=lambda n: abs(parameters(n) - wanted))
    hidden = 128 * layers
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=round(hidden * 8 / 3 / 256 + 0.5) * 256,
        num_hidden_layers=layers, num_attention_heads=layers, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip


def local_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase | None":
    """The backbone's tokenizer, if it is on this machine."""
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            _place(config.name), revision=config.revision, local_files_only=True
        )
    except Exception:  # as in load_backbone, which says why
        return None
    return found


def without_weights(settings: "PretrainedConfig", dtype: torch.dtype = torch.float32) -> Any:
    """The modules of a backbone on `meta`, made of its configuration; UserError where transformers cannot."""
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM
    settings = copy.deepcopy(settings)
    with torch.device("meta"):
        return make.from_config(settings, dtype=dtype)


def parameters(settings: "PretrainedConfig") -> int:
    """Number of a backbone's parameters."""
    return sum(parameter.numel() for parameter in without_weights(settings).parameters())


def require_possible_size(name: str, settings: object) -> None:
    """UserError where config.json asks for more layers than any model has, which would be built for hours."""
    layers = getattr(settings, "num_hidden_layers", 1)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(
            f"model.name={name!r} must have at most {MOST_LAYERS:,} layers, its config.json says {layers:,}"
        )
