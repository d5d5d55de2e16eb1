"""What the parts of gpu_check.py measure with: a random model and its items, a meter, and counts of operations and waits."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.models.adapter.adapted_model import attach_lora, target_layers
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.quantisation import loading_options
from llm_forgetting.tasks.task import Item

Items = list[EncodedItem]
PRESET = {"batch": 16, "items": 64}
LORA = LoraConfig(
    rank=16, alpha=32.0, dropout=0.05, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")
)  # fmt: skip
# Sixteenths of the lengths of MMLU's prompts in LLaMA's tokens: computer science, philosophy.
LENGTHS = (
    (58, 64, 69, 75, 87, 92, 99, 105, 117, 123, 131, 147, 165, 186, 214, 283),
    (54, 61, 63, 66, 69, 71, 74, 78, 82, 83, 87, 91, 109, 115, 139, 173),
)


@dataclass(frozen=True)
class Shape:
    """Of a Llama."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int


LARGE, SMALL = Shape(4096, 32, 32, 11008, 32000), Shape(64, 4, 4, 172, 512)


class Tokenizer:
    """All that a model asks of one that has its tokens already."""

    pad_token_id, unk_token_id, unk_token, eos_token = 0, 0, "<unk>", "</s>"


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> LanguageModel:
    """A Llama of random weights that are made on the device, with a trained-looking adapter of the preset's settings."""
    return with_adapter(_random_llama(shape, device, dtype), Tokenizer())


def quantised_model(shape: Shape, kind: str) -> LanguageModel:
    """The same on the CPU, its weights in 4 or in 8 bits."""
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        _random_llama(shape, "cpu", torch.float32).save_pretrained(folder)
        options = loading_options(ModelConfig(quantization=kind), torch.float32)
        backbone = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return with_adapter(backbone, Tokenizer())


def _random_llama(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")


def with_adapter(backbone: Any, tokenizer: Any) -> LanguageModel:
    peft_model = attach_lora(backbone.eval(), LORA, 0).eval()
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in target_layers(peft_model).values():
            B = layer.lora_B["default"].weight
            B.copy_(torch.randn(B.shape, generator=drawn) * 0.01)
    return LanguageModel(peft_model, tokenizer, "random")


def items(model: LanguageModel, task: int, count: int, shared: int = 20) -> Items:
    """Random tokens at the lengths of MMLU's prompts, with the beginning that a subject's items share."""
    vocabulary = int(model.peft_model.get_base_model().config.vocab_size)
    generator = torch.Generator().manual_seed(task)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, vocabulary, (length,), generator=generator).tolist())

    head = tokens(shared)
    return [
        EncodedItem(
            Item(f"task{task}/train/{n}", f"task{task}", f"{n}", ("", "", "", ""), n % 4),
            (*head, *tokens(LENGTHS[task][n % 16] - shared)),
            (5, 6, 7, 8),
        )
        for n in range(count)
    ]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def metered(device: str) -> Iterator[dict[str, float]]:
    """Seconds of the block, and its peak memory: allocated and reserved on a GPU; what the process holds after it on a CPU."""
    figures: dict[str, float] = {}
    synchronise(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield figures
    synchronise(device)
    figures["seconds"] = time.perf_counter() - start
    resident = psutil.Process().memory_info().rss
    figures["peak_bytes"] = torch.cuda.max_memory_allocated() if device == "cuda" else resident
    figures["reserved_bytes"] = torch.cuda.max_memory_reserved() if device == "cuda" else resident


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and attention, forward and backward.

    torch's own counter follows modules too, and so fails in the tangent pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = flop_registry.get(func._overloadpacket)
        if known is None:
            with self:  # as parts: in inference mode `linear` arrives whole
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        result = func(*args, **kwargs)
        if known is not None:
            self.count += known(*args, **kwargs, out_val=result)
        return result


def matrix_rates(device: str, small: bool) -> dict[str, float]:
    """FLOP/s of a large product in each arithmetic, best of five."""
    size, rates = 512 if small else 8192, {}
    for name, dtype in (("native", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, best = torch.randn(size, size, device=device).to(dtype), 0.0
        for _ in range(5):
            synchronise(device)
            start = time.perf_counter()
            torch.nn.functional.linear(a, a)
            synchronise(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
        rates[name] = best
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


class Waiting(TorchDispatchMode):
    """Counts the operations that make a GPU's caller wait for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        masks = name.startswith("aten.index") and any(getattr(m, "dtype", None) == torch.bool for m in _indices(args))
        self.count += masks or name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"))
        return func(*args, **(kwargs or {}))


def _indices(args: Sequence[Any]) -> Sequence[Any]:
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()


@contextmanager
def counting(device: str) -> Iterator[Callable[[], int]]:
    """How often the block waited for the device, by CUDA's own account; on a CPU how often it would have."""
    if device == "cpu":
        with Waiting() as waiting:
            yield lambda: waiting.count
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchronizing" in str(warning.message) for warning in said)
        finally:
            torch.cuda.set_sync_debug_mode("default")
