"""Models and tokenizers of a few thousand weights, made in memory, and short items for them."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.tasks.task import Item

CHARACTERS = sorted(set(string.printable) - set("\t\r\x0b\x0c "))
WORDS = ("oak", "elm", "birch", "ash", "hazel", "rowan", "willow", "yew")


def llama2_tokenizer(letters: str = "ABCDE", pad_token: str | None = None) -> Any:
    """What LLaMA-2's does, on characters: BOS in front, "▁" for spaces and one more before the text, no pad token.

    " A" is the one token "▁A" inside a text, and "▁", "▁A" alone.
    """
    pieces = ["<unk>", "<s>", "</s>", "▁", *CHARACTERS, *(f"▁{letter}" for letter in letters)]
    merges = [("▁", letter) for letter in letters]
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad_token)


VOCABULARY = 4 + len(CHARACTERS) + 5


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """Two layers, hidden size 16, rotary positions, grouped keys."""
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def tiny_gpt2(**changes: Any) -> GPT2LMHeadModel:
    """Two layers, hidden size 16, absolute positions, Conv1D weights (d_in, d_out)."""
    settings = {
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).eval()


def load(folder: Path, *, seed: int = 0, dtype: Any = "float32", trained: bool = True, **lora: Any) -> LanguageModel:
    """The model saved in `folder`, rank 2 unless said; `trained` fills B with small random numbers."""
    settings: dict[str, Any] = {"rank": 2, "alpha": 4.0, **lora}
    model = LanguageModel.load(ModelConfig(name=str(folder), dtype=dtype), LoraConfig(**settings), seed=seed)
    if trained:
        fill_adapter(model.peft_model, seed)
    return model


def fill_adapter(peft_model: Any, seed: int = 0, size: float = 0.3) -> None:
    """Random numbers in every B."""
    generator = torch.Generator().manual_seed(seed)
    for layer in target_layers(peft_model).values():
        for part in layer.lora_B.values():
            noise = torch.randn(part.weight.shape, generator=generator)
            part.weight.data.copy_(size * noise)


def make_items(count: int, options: int | Sequence[int] = 4, seed: int = 0, subject: str = "trees") -> list[Item]:
    """Short items of different lengths; `options` is one number for all of them or a list to go through."""
    rng = np.random.default_rng(seed)
    cycle = [options] if isinstance(options, int) else list(options)
    made = []
    for row in range(count):
        k = cycle[row % len(cycle)]
        question = " ".join(rng.choice(WORDS, size=1 + int(rng.integers(8))))
        made.append(
            Item(f"{subject}/test/{row}", subject, f"{row} {question}", tuple("pqrstuv"[:k]), int(rng.integers(k)))
        )
    return made


def make_encoded(
    model: LanguageModel, count: int, options: int | Sequence[int] = 4, seed: int = 0
) -> list[EncodedItem]:
    """`make_items` as tokens."""
    return encode(model.tokenizer, make_items(count, options, seed), {}, 400)


def adapter_of(model: LanguageModel) -> torch.Tensor:
    """All adapter weights in one vector."""
    parameters = [p for p in model.peft_model.parameters() if p.requires_grad]
    return torch.cat([p.detach().float().reshape(-1) for p in parameters])


def plain_losses(model: LanguageModel, items: list[EncodedItem]) -> torch.Tensor:
    """Cross-entropy of every answer token, one unpadded item at a time, with transformers' ordinary forward."""
    losses = []
    for item in items:
        logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1]
        losses.append(F.cross_entropy(logits.float(), torch.tensor(item.letter_ids[item.item.answer])))
    return torch.stack(losses)


def save(folder: Path, model: Any) -> Path:
    """`model` and the LLaMA-2-like tokenizer in `folder`."""
    model.save_pretrained(folder)
    llama2_tokenizer().save_pretrained(folder)
    return folder
