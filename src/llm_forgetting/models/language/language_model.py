"""A causal language model with one LoRA adapter and its tokenizer: answer logits, one by one or in packs."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_forgetting.config.sections import EMBEDDED_MODEL, LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import (
    AdaptedModel,
    attach_lora,
)
from llm_forgetting.models.adapter.attach import attach_saved, saved_options
from llm_forgetting.models.adapter.dense_updates import DenseUpdates
from llm_forgetting.models.adapter.full_updates import FullUpdates, is_full_model
from llm_forgetting.models.adapter.widened import is_exchanged
from llm_forgetting.models.language.backbones import backbone_folder, built_in_name, load_backbone
from llm_forgetting.models.language.batches import ROUNDING, Batch, EncodedItem, answer_position_logits, collate
from llm_forgetting.models.language.packing import (
    CannotPackError,
    Pack,
    PrefixCache,
    compute_prefix,
    pack_of,
    packed_answer_logits,
    packs,
    segments,
)
from llm_forgetting.models.language.quantisation import arithmetic_of, description_of, numbers, quantises_activations
from llm_forgetting.tasks.task import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER = "default"
Notify = Callable[[str], None]
log = logging.getLogger(__name__)
_PADDED = "items are padded, not packed, which takes longer"


class LanguageModel(AdaptedModel):
    """Backbone, tokenizer and one LoRA adapter called `default`.

    `supports_packing`: items may be computed side by side in one row of tokens; probed when the model is made.
    `fallbacks`: what this model cannot be computed by, and why, one sentence each; its numbers are right all the same.
    """

    supports_packing: bool
    fallbacks: list[str]

    def __init__(
        self, peft_model: Any, tokenizer: "PreTrainedTokenizerBase", source: str, dense: DenseUpdates | None = None
    ) -> None:
        super().__init__(peft_model, dense)
        if self.adapter != ADAPTER:
            raise UserError(
                f"the active adapter must be called {ADAPTER!r}, was {self.adapter!r}; load it under that name"
            )
        self.tokenizer = tokenizer
        self.source = source
        self._widened = is_exchanged(self.backbone)
        forward = inspect.signature(self.backbone.forward).parameters
        self._accepted = frozenset(forward)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        self.fallbacks = []
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.probe_packing()

    @classmethod
    def load(
        cls, config: ModelConfig, lora: LoraConfig | None, *, seed: int, notify: Notify = lambda message: None
    ) -> "LanguageModel":
        """Load the backbone and put a fresh adapter (B = 0) on it, its A drawn from stream `adapter` of `seed`; None trains
        all its weights.
        """
        if lora is None:
            return cls.whole(dataclasses.replace(config, dtype="float32"), notify, trained=True)
        backbone, tokenizer = load_backbone(config, notify)
        model = cls(attach_lora(backbone, lora, seed, notify).eval(), tokenizer, config.name)
        if lora.rewrites:
            model.keep_initial_parts()
        return model

    @classmethod
    def whole(cls, config: ModelConfig, notify: Notify, *, trained: bool = False) -> "LanguageModel":
        """A backbone whose own weights move; updates are counted from those that it is loaded with."""
        backbone, tokenizer = load_backbone(config, notify)
        if (kind := description_of(backbone)) is not None:
            raise UserError(
                f"weights that move must not be quantised, those of model.name={config.name!r} are ({kind}); take plain ones"
            )
        backbone.requires_grad_(trained).eval()
        return cls(backbone, tokenizer, config.name, FullUpdates(backbone, backbone_folder(config)))

    @classmethod
    def open_adapter(cls, folder: Path, model: ModelConfig, notify: Notify = lambda message: None) -> "LanguageModel":
        """Anyone's saved PEFT LoRA adapter on its backbone: `model.name`, or the one that the adapter names where that is the
        default `embedded`. Only safetensors are read.

        UserError where the folder holds no adapter, one that is not covered, or one that does not fit the backbone, and where
        the backbone cannot be found.
        """
        if is_full_model(folder):
            return cls._open_model(folder, model, notify)
        settings = saved_options(folder)
        if model.name == ModelConfig.name:
            named = settings.base_model_name_or_path
            if not named:
                raise UserError(f"the adapter in {folder} does not name its backbone; give it as model.name")
            model = dataclasses.replace(
                model, name=built_in_name(named) or named, revision=model.revision or settings.revision
            )
        try:
            backbone, tokenizer = load_backbone(model, notify)
        except UserError as error:
            raise UserError(f"the backbone of the adapter in {folder} cannot be loaded: {error}") from error
        opened = cls(attach_saved(backbone, folder).eval(), tokenizer, model.name)
        opened.load_adapter_weights(folder)
        return opened

    @classmethod
    def _open_model(cls, folder: Path, model: ModelConfig, notify: Notify) -> "LanguageModel":
        """A whole model in a folder; its update is counted from `model.name`, from itself where that is the default."""
        if model.name == ModelConfig.name:
            return cls.whole(dataclasses.replace(model, name=str(folder), revision=None), notify)
        opened = cls.whole(model, notify)
        opened.load_adapter_weights(folder)
        return opened

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.peft_model.parameters()).device
        return device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the block, of scores or of training, the backbone computes in its own precision; on a CPU in `precision`.

        There a product of 40 tokens with a bfloat16 W (4,096, 4,096) takes 0.2 s forward and 7 s backward, in float32 0.1 s.
        """
        with self.analysed() if self._widened and self.device.type == "cpu" else nullcontext():
            yield

    def description(self) -> dict[str, Any]:
        """Name, architecture, sizes, precision and adapter, for the results."""
        update = self.adapter_factors()
        trained = None if self.dense is None else self.dense.trained
        adapter = sum(pair.A.numel() + pair.B.numel() for pair in update.values()) if trained is None else trained
        return {
            "name": self.source,
            "architecture": type(self.backbone).__name__,
            "parameters": sum(map(numbers, self.backbone.parameters()))
            - (0 if self.peft_model is self.backbone else adapter),
            "adapter_parameters": adapter,
            "adapted_modules": len(update.parameters),
            "adapted_weights": sum(len(pair.B) * pair.A.shape[1] for pair in update.values())
            + sum(change.shape.numel() for change in update.dense.values()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "quantization": (kind := description_of(self.backbone)),
            "arithmetic": None if kind is None else arithmetic_of(kind, self.arithmetic, self.device),
            "title": EMBEDDED_MODEL if self.source == "embedded" else None,
        }

    @property
    def rounding(self) -> float:
        """How much a logit may differ between two ways of scoring an item."""
        kernels = self.arithmetic == "native" or self.device.type != "cpu"
        rough = kernels and quantises_activations(self.backbone)
        return ROUNDING[torch.bfloat16 if rough else self.dtype]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without the special ones."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def answer_logits(self, batch: Batch) -> torch.Tensor:
        """(n, vocabulary) float32 logits after `Answer:`, differentiable where gradients are on."""
        return answer_position_logits(self.peft_model, batch.to(self.device), self._accepted)

    def probes(self) -> list[EncodedItem]:
        """Three short rows of random tokens with a common prefix, on which it is tried out what a model can do."""
        vocabulary = int(self.backbone.config.vocab_size)
        drawn = torch.randint(vocabulary, (24,), generator=torch.Generator().manual_seed(0)).tolist()
        item = Item("probe/test/0", "probe", "", ("", ""), 0)
        return [EncodedItem(item, (*drawn[:6], *drawn[a:b]), (0, 1)) for a, b in ((6, 7), (7, 15), (15, 20))]

    def probe_packing(self) -> bool:
        """Set `supports_packing`: whether three short rows of tokens have the same logits packed (see `packing`) and alone."""
        self.supports_packing = self._packs_as_alone()
        return self.supports_packing

    def disable_packing(self, reason: CannotPackError) -> None:
        """Pad items from here on: one did not fit where the short rows of the probe had."""
        self.fall_back(f"{_PADDED}: {reason}")
        self.supports_packing = False

    def fall_back(self, sentence: str) -> None:
        """Log, and keep for the report, which of the fast ways this model does not go."""
        log.info(sentence)
        self.fallbacks.append(sentence)

    def _packs_as_alone(self) -> bool:
        probes = self.probes()
        if missing := {"position_ids", "logits_to_keep"} - self._accepted:
            self.fall_back(f"{_PADDED}: its forward takes no {' and no '.join(sorted(missing))}")
            return False
        try:
            with torch.inference_mode(), self.analysed():
                (pack,) = packs(probes, len(probes))
                together = self.packed_logits([pack])[0][0]
                prefix = self.prefix_cache(probes[0].input_ids[:6])
                after = self.packed_logits([pack_of(probes, pack.items, prefix)], 1, prefix)[0][0]
                alone = torch.cat([self.answer_logits(collate([probes[n]], self.pad_id)) for n in pack.items])
        except (CannotPackError, TypeError, KeyError) as error:
            self.fall_back(f"{_PADDED}: {error}")
            return False
        difference = float(torch.stack([together - alone, after - alone]).abs().max())
        if not difference <= ROUNDING[self.precision]:
            self.fall_back(f"{_PADDED}: packed logits differ by {difference:.2g}")
            return False
        return True

    def packed_logits(
        self, packed: Sequence[Pack], rows: int = 1, prefix: PrefixCache | None = None
    ) -> list[torch.Tensor]:
        """Per pack the (rows, n, vocabulary) float32 logits after `Answer:`, differentiable where gradients are on."""
        with segments(self.backbone):
            return [packed_answer_logits(self.peft_model, pack.to(self.device), rows, prefix) for pack in packed]

    def prefix_cache(self, tokens: tuple[int, ...]) -> PrefixCache:
        """Keys and values of `tokens` in every layer at the live checkpoint, for packs that begin with them."""
        with segments(self.backbone):
            return compute_prefix(self.peft_model, tokens, self.device)

    def save(self, folder: Path) -> None:
        """Adapter (safetensors, loadable by `PeftModel.from_pretrained`) and tokenizer into an existing folder."""
        super().save(folder)
        self.tokenizer.save_pretrained(folder)

    def save_update(self, folder: Path, update: WeightUpdate) -> None:
        """See `AdaptedModel.save_update`; the tokenizer goes with it."""
        super().save_update(folder, update)
        self.tokenizer.save_pretrained(folder)
