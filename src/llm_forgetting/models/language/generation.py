"""Completions that a model writes itself: greedy decoding in batches, after a beginning that prompts share and that is kept."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import OutOfMemoryRetry
from llm_forgetting.models.language.scoring_batches import prefix_batches
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.scoring import Scoring, rouge_l


@dataclass(frozen=True)
class Written:
    """What a model wrote after a prompt, the answer in it (None: none), the right one, and whether they are the same."""

    text: str
    answer: str | None
    expected: str
    right: bool
    rouge_l: float | None = None


@dataclass(frozen=True)
class _Prompt:
    """What stands before a completion, how the right one goes on, and what ends it; of a conversation the last turn.
    `expected` is the right answer, None for all of the right text.
    """

    tokens: tuple[int, ...]
    right: tuple[int, ...]
    ends: frozenset[int]
    limit: int
    scoring: Scoring
    expected: str | None


def is_generated(item: EncodedItem) -> bool:
    """Whether the item is judged by what the model writes."""
    return isinstance(item.item, Completion) and item.item.scoring.by == "generation"


def write(
    model: LanguageModel,
    items: Sequence[EncodedItem],
    batch_size: int | None,
    advance: Callable[[int], None] = lambda items: None,
    *,
    kept: bool = True,
) -> list[Written]:
    """What the live model writes for every completion, greedily and by transformers' `generate`, in the order given.

    An item ends with the tokenizer's or the model's end token, with the special token that its right completion ends in,
    with one of its `until` texts, or at its limit. So what is written does not depend on the batch, but for
    rounding. `batch_size` as in `score`; `kept`: whether a beginning that prompts share is computed once, where the model can.
    """
    own = _end_tokens(model)
    room = getattr(model.backbone.config, "max_position_embeddings", None)
    prompts = [_prompt(model, item, own, room) for item in items]
    asked = [
        replace(item, input_ids=prompt.tokens, places=(len(prompt.tokens) - 1,), targets=prompt.right[:1])
        for item, prompt in zip(items, prompts, strict=True)
    ]
    found: dict[int, Written] = {}
    retry = OutOfMemoryRetry(model.device)
    model.peft_model.eval()
    with torch.inference_mode(), model.computing(), _greedy(model):
        for share in prefix_batches(asked, batch_size):
            beginning = _beginning(model, share.prefix) if kept and share.prefix and model.supports_packing else None

            def compute(chosen: tuple[int, ...], beginning: DynamicCache | None = beginning) -> None:
                tokens = _continued(model, [prompts[n] for n in chosen], beginning)
                found.update((n, _judged(model, prompts[n], row)) for n, row in zip(chosen, tokens, strict=True))
                advance(len(chosen))

            for chosen in share.batches:
                retry.run(chosen, compute)
    return [found[n] for n in range(len(items))]


def _end_tokens(model: LanguageModel) -> set[int]:
    """Those of the tokenizer and of the model's own settings, which may be several."""
    own: Any = model.backbone.generation_config.eos_token_id
    ends = {own} if isinstance(own, int) else set(own or ())
    return ends | ({model.tokenizer.eos_token_id} - {None})


def _prompt(model: LanguageModel, item: EncodedItem, own: set[int], room: int | None) -> _Prompt:
    assert isinstance(item.item, Completion)
    first = max((n for n, (a, b) in enumerate(pairwise(item.places), start=1) if b != a + 1), default=0)
    tokens, right = item.input_ids[: item.places[first] + 1], item.targets[first:]
    ends = own | ({right[-1]} & set(model.tokenizer.all_special_ids))
    scoring = item.item.scoring
    limit = scoring.limit(len(right))
    # Of the text as it was given, where a part of it is asked for: tokens may say less.
    expected = None if scoring.answer is None else scoring.answer_in(item.item.answer)
    return _Prompt(tokens, right, frozenset(ends), max(1, min(limit, (room or limit) - len(tokens))), scoring, expected)


@contextmanager
def _greedy(model: LanguageModel) -> Iterator[None]:
    """The model's own settings of decoding (sampling, penalties) set aside."""
    own = model.backbone.generation_config
    settings = GenerationConfig(do_sample=False, pad_token_id=model.pad_id)  # type: ignore[no-untyped-call]
    model.backbone.generation_config = settings
    try:
        yield
    finally:
        model.backbone.generation_config = own


def _beginning(model: LanguageModel, tokens: tuple[int, ...]) -> DynamicCache | None:
    """Keys and values of a shared beginning; None where the model keeps something else of its past."""
    forward = inspect.signature(model.backbone.forward).parameters
    few = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
    cache = model.backbone(input_ids=torch.tensor([tokens], device=model.device), use_cache=True, **few).past_key_values
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if plain else None


def _continued(model: LanguageModel, prompts: Sequence[_Prompt], beginning: DynamicCache | None) -> list[list[int]]:
    """The tokens that are written after each prompt, as many as the longest takes; padding stands after the kept beginning."""
    kept = beginning.get_seq_length() if beginning is not None else 0
    width = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        rest = width - len(prompt.tokens) + kept
        for part, tokens in ((slice(0, kept), prompt.tokens[:kept]), (slice(rest, width), prompt.tokens[kept:])):
            ids[row, part], mask[row, part] = torch.tensor(tokens, dtype=torch.long), 1
    past: dict[str, Any] = {}
    if beginning is not None:
        past["past_key_values"] = copy.deepcopy(beginning)
        past["past_key_values"].batch_repeat_interleave(len(prompts))
    written = model.backbone.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(prompt.limit for prompt in prompts),
        stopping_criteria=StoppingCriteriaList([_AllEnded(model, prompts, width)]),
        **past,
    )
    return [list(row) for row in written[:, width:].tolist()]


class _AllEnded(StoppingCriteria):
    """Tells of every row whether it has ended; a row that has goes on meanwhile, and is cut afterwards."""

    def __init__(self, model: LanguageModel, prompts: Sequence[_Prompt], start: int) -> None:
        self._model, self._prompts, self._start = model, prompts, start
        self._ended = [False] * len(prompts)

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        rows = input_ids[:, self._start :].tolist()
        self._ended = [
            ended or self._ends(prompt, row)
            for ended, prompt, row in zip(self._ended, self._prompts, rows, strict=True)
        ]
        return torch.tensor(self._ended, device=input_ids.device)

    def _ends(self, prompt: _Prompt, row: list[int]) -> bool:
        if row[-1] in prompt.ends or len(row) >= prompt.limit:
            return True
        if not prompt.scoring.until:
            return False
        text = self._model.decode(row)
        return prompt.scoring.ended(text) != text


def _judged(model: LanguageModel, prompt: _Prompt, row: list[int]) -> Written:
    """The row up to its end, as text, beside the right completion's."""
    row = row[: prompt.limit]
    end = next((place for place, token in enumerate(row) if token in prompt.ends), len(row))
    scoring, text, right = prompt.scoring, prompt.scoring.ended(model.decode(row[:end])), model.decode(prompt.right)
    answer, expected = scoring.answer_in(text), right if prompt.expected is None else prompt.expected
    rouge = rouge_l(text, right) if scoring.rouge else None
    return Written(text, answer, expected, scoring.same(answer, expected), rouge)
