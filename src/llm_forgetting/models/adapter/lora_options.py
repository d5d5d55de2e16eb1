"""Which of PEFT's LoRA options leave delta W = s B A the whole of the update; all others are refused by name."""

import dataclasses
from typing import Any

from llm_forgetting.errors import UserError

# LoRA options under which every module still computes W + s B A, or that only choose which modules there are. Any other
# option that is set (DoRA, biases, modules_to_save, embedding or token adapters, ...) is refused by name.
_COVERED_OPTIONS = frozenset(
    [
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
        "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights", "runtime_config",
        "qalora_group_size", "loftq_config", "ephemeral_gpu_offload",
    ]
)  # fmt: skip
# Initialisations that rewrite the frozen weights, so that the saved adapter alone no longer says what the update is.
_REWRITING_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def refuse_uncovered_options(config: Any) -> None:
    """Raise UserError where `config`, a PEFT configuration, asks for more than delta W = s B A in the adapted weights."""
    if type(config).__name__ != "LoraConfig":
        raise UserError(
            f"the adapter must be plain LoRA (delta W = s B A), was {config.peft_type}: landscapes of it are not defined here"
        )
    if config.target_parameters:
        raise UserError(
            f"LoRA option target_parameters ({', '.join(sorted(config.target_parameters))}) is not covered; where all-linear "
            f"of a mixture of experts means them, name linear modules as target_modules: q_proj, k_proj, v_proj, o_proj"
        )
    defaults = type(config)()
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
