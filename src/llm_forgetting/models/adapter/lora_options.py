"""Which of PEFT's adapters are plain LoRA, delta W = s B A and no more; which others have a delta W; which have none."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from llm_forgetting.errors import UserError

# LoRA options under which every module still computes W + s B A, or that only choose which modules there are.
_PLAIN_OPTIONS = frozenset(
    [
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
        "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights", "runtime_config",
        "qalora_group_size", "loftq_config", "ephemeral_gpu_offload",
    ]
)  # fmt: skip
# Those under which it is another delta W, which PEFT's own merge knows. Any other option that is set is refused by name.
_DENSE_OPTIONS = frozenset(["use_dora", "bias", "modules_to_save", "lora_bias", "ensure_weight_tying"])
# Kinds of adapters whose merged weights were held against their forward here.
KINDS = frozenset(
    [
        "LORA", "ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS",
        "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA", "WAVEFT",
    ]
)  # fmt: skip
# Initialisations that rewrite the frozen weights, so that the saved adapter alone no longer says what the update is.
_REWRITING_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def refuse_uncovered_options(config: Any) -> None:
    """Raise UserError where `config`, a PEFT configuration, is of an adapter that is no update delta W of the weights."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in KINDS:
        raise UserError(
            f"the adapter must be an update delta W of weights that PEFT can merge, {kind[:60]} is none or was never tried; "
            f"those that were: {', '.join(sorted(KINDS))}"
        )
    if getattr(config, "target_parameters", None):
        raise UserError(
            f"LoRA option target_parameters ({', '.join(sorted(config.target_parameters))}) is not covered; where all-linear "
            f"of a mixture of experts means them, name linear modules as target_modules: q_proj, k_proj, v_proj, o_proj"
        )
    tokens = [("trainable_token_indices", getattr(config, "trainable_token_indices", None))]
    for option, value in _further_options(config) if kind == "LORA" else tokens:
        if value and option not in _DENSE_OPTIONS:
            raise UserError(
                f"LoRA option {option}={value!r} is not covered: with it the adapter is not known to be an update delta W of "
                f"the weights; train without it"
            )
    initialisation = getattr(config, "init_lora_weights", None)
    if isinstance(initialisation, str) and initialisation.lower().startswith(_REWRITING_INITIALISATIONS):
        raise UserError(
            f"LoRA option init_lora_weights={initialisation!r} is not covered: it rewrites the frozen weights, so the "
            f"adapter alone is not the update; save it with PEFT's path_initial_model_for_weight_conversion"
        )


def is_plain(config: Any) -> bool:
    """Whether an adapter of PEFT's configuration `config` is delta W = s B A in every adapted module and nothing else."""
    return type(config).__name__ == "LoraConfig" and not any(_further_options(config))


def _further_options(config: Any) -> Iterator[tuple[str, Any]]:
    """Options that are set and with which a LoRA adapter is no longer plain."""
    defaults = type(config)()
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name not in _PLAIN_OPTIONS and value and value != getattr(defaults, option.name, None):
            yield option.name, value
