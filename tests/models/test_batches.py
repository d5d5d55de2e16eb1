"""From items to answer-position logits: letters in context, left padding, positions, length buckets."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from tiny_models import (
    VOCABULARY,
    fill_adapter,
    llama2_tokenizer,
    load,
    make_encoded,
    make_items,
    tiny_gpt2,
    tiny_llama,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_forgetting.errors import UserError
from llm_forgetting.models.language.batches import (
    EncodedItem,
    answer_position_logits,
    collate,
    length_buckets,
)
from llm_forgetting.models.language.encoding import encode, letter_tokens
from llm_forgetting.tasks.prompts import render

pytestmark = pytest.mark.usefixtures("one_thread")


def word_tokenizer(words: list[str]) -> Any:
    """One token per blank-separated word or mark, <unk> for the others; adds nothing."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, unk_token="<unk>")


def encoded_of(lengths: list[int], options: list[int]) -> list[EncodedItem]:
    """Items whose tokens are 10, 11, ... and whose letters are 90, 91, ..."""
    items = [make_items(1, k)[0] for k in options]
    return [
        EncodedItem(item, tuple(range(10, 10 + length)), tuple(range(90, 90 + k)))
        for item, length, k in zip(items, lengths, options, strict=True)
    ]


def test_letters_are_read_off_in_context() -> None:
    """As with LLaMA-2, " A" is one token after `Answer:` and two pieces alone, of which neither first nor id of "A" fits."""
    tokenizer = llama2_tokenizer()
    alone = tokenizer(" A", add_special_tokens=False)["input_ids"]
    assert len(alone) == 2
    prompt = render(make_items(1)[0])
    tokens = letter_tokens(tokenizer, prompt, "ABCD")
    assert [tokenizer.convert_ids_to_tokens(token) for token in tokens] == ["▁A", "▁B", "▁C", "▁D"]
    assert tokenizer(prompt)["input_ids"][0] == tokenizer.bos_token_id
    assert tokens[0] not in (alone[0], tokenizer.convert_tokens_to_ids("A"))


def test_encoded_item_is_the_prompt_with_what_the_tokenizer_adds() -> None:
    tokenizer = llama2_tokenizer()
    items = make_items(6, [2, 4, 5])
    for item, encoded in zip(items, encode(tokenizer, items, {}, 400), strict=True):
        assert encoded.item is item
        assert list(encoded.input_ids) == tokenizer(render(item))["input_ids"]
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(encoded.input_ids).endswith("Answer:")
        assert len(encoded.letter_ids) == len(item.choices)
        assert (encoded.shots_dropped, encoded.truncated) == (0, False)


def test_what_was_cut_is_recorded() -> None:
    tokenizer = llama2_tokenizer()
    item, *shots = make_items(3)
    whole = len(tokenizer(render(item))["input_ids"])
    examples = {item.subject: tuple(shots)}
    (fits,) = encode(tokenizer, [item], examples, 1000)
    assert list(fits.input_ids) == tokenizer(render(item, shots))["input_ids"]
    (dropped,) = encode(tokenizer, [item], examples, whole)
    assert (dropped.shots_dropped, dropped.truncated, len(dropped.input_ids)) == (2, False, whole)
    (cut,) = encode(tokenizer, [item], {}, whole - 1)
    assert cut.truncated
    assert len(cut.input_ids) < whole


def test_a_letter_of_several_tokens_is_refused() -> None:
    tokenizer = llama2_tokenizer(letters="AB")
    with pytest.raises(UserError, match="must be one token after the prompt; ' C' is 2") as error:
        letter_tokens(tokenizer, "Answer:", "ABCD")
    assert "\n" not in str(error.value)
    assert len(letter_tokens(tokenizer, "Answer:", "AB")) == 2


def test_letters_that_are_all_unknown_are_refused() -> None:
    with pytest.raises(UserError, match="must be different tokens"):
        letter_tokens(word_tokenizer(["Answer", ":"]), "Answer:", "ABCD")


def test_a_single_unknown_letter_is_refused() -> None:
    tokenizer = word_tokenizer(["Answer", ":", "A", "B", "C"])
    assert letter_tokens(tokenizer, "Answer:", "ABC") == (3, 4, 5)
    with pytest.raises(UserError, match="' D' is unknown"):
        letter_tokens(tokenizer, "Answer:", "ABCD")


def test_a_tokenizer_that_merges_a_letter_into_the_prompt_is_refused() -> None:
    """The token before changes: the loss would be of something else than the letter after this prompt."""
    pieces = ["<unk>", *"Answer:ABCD", " ", ": A"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary[": "] = len(vocabulary)
    merges = [(":", " "), (": ", "A")]
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
    with pytest.raises(UserError, match="must be one token after the prompt"):
        letter_tokens(tokenizer, "Answer:", "A")


def test_collate_pads_on_the_left_with_positions_from_zero() -> None:
    batch = collate(encoded_of([3, 5, 1], [4, 2, 3]), pad_id=7)
    assert batch.input_ids.tolist() == [[7, 7, 10, 11, 12], [10, 11, 12, 13, 14], [7, 7, 7, 7, 10]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
    assert batch.letter_ids.tolist() == [[90, 91, 92, 93], [90, 91, -1, -1], [90, 91, 92, -1]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.letter_ids.dtype == torch.long


def test_a_token_that_equals_the_pad_is_still_attended_to() -> None:
    batch = collate(encoded_of([2, 4], [2, 2]), pad_id=10)
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_length_buckets_hold_every_item_once_in_order_of_length(batch_size: int) -> None:
    lengths = [5, 9, 5, 1, 9, 3, 3, 3, 8, 2, 5, 9, 4]
    buckets = length_buckets(lengths, batch_size)
    order = [index for bucket in buckets for index in bucket]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(bucket) == batch_size for bucket in buckets[:-1])
    assert 1 <= len(buckets[-1]) <= batch_size
    assert buckets == length_buckets(list(lengths), batch_size)


def plain_logits(model: Any, item: EncodedItem) -> torch.Tensor:
    """The last row of an ordinary forward pass of the item alone, in transformers' own words."""
    return model(input_ids=torch.tensor([item.input_ids])).logits[0, -1]  # type: ignore[no-any-return]


def test_padded_answer_logits_through_peft_equal_the_unpadded(any_folder: Path) -> None:
    model, fresh_model = load(any_folder), load(any_folder, trained=False)
    items = make_encoded(model, 8)
    assert len({len(item.input_ids) for item in items}) > 3
    with torch.no_grad():
        together = model.answer_logits(collate(items, model.pad_id))
        alone = torch.stack([plain_logits(model.peft_model, item) for item in items])
        fresh = torch.stack([plain_logits(fresh_model.peft_model, item) for item in items])
    assert together.shape == (8, VOCABULARY)
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-5)
    # the adapter is in it
    assert float((alone - fresh).abs().max()) > 0.1


def test_absolute_positions_need_the_position_ids(gpt2_folder: Path, llama_folder: Path) -> None:
    """Left out, GPT-2 counts the padding as text; rotary positions are relative and do not mind."""
    for folder, least, most in ((gpt2_folder, 0.05, 100.0), (llama_folder, 0.0, 5e-5)):
        model = load(folder)
        items = make_encoded(model, 8)
        batch = collate(items, model.pad_id)
        with torch.no_grad():
            right = model.answer_logits(batch)
            without = answer_position_logits(model.peft_model, batch, model._accepted - {"position_ids"})
        longest = max(range(8), key=lambda row: len(items[row].input_ids))
        torch.testing.assert_close(without[longest], right[longest], rtol=0, atol=5e-5)
        difference = float((without - right).abs().max())
        assert least <= difference <= most


def test_the_padding_token_does_not_matter(any_folder: Path) -> None:
    model = load(any_folder)
    items = make_encoded(model, 4)
    with torch.no_grad():
        one, other = (model.answer_logits(collate(items, pad)) for pad in (0, 50))
    torch.testing.assert_close(one, other, rtol=0, atol=5e-5)


@pytest.mark.parametrize("lacking", ["logits_to_keep", "position_ids"])
def test_models_whose_forward_lacks_an_argument(lacking: str, llama_folder: Path) -> None:
    """Many models of other libraries: what they do not take is not passed, and the answer is the same."""
    model = load(llama_folder)
    inner = model.peft_model.get_base_model()
    whole = inner.forward
    seen: list[set[str]] = []

    def forward(input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        seen.append(set(kwargs))
        assert lacking not in kwargs
        return whole(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    names = [name for name in inspect.signature(whole).parameters if name not in (lacking, "kwargs")]
    batch = collate(make_encoded(model, 5), model.pad_id)
    with torch.no_grad():
        expected = model.answer_logits(batch)
        inner.forward = forward
        found = answer_position_logits(model.peft_model, batch, frozenset(names))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    assert len(seen) == 1


def test_arguments_are_read_off_the_models_own_signature() -> None:
    for make in (tiny_llama, tiny_gpt2):
        names = inspect.signature(make().forward).parameters
        assert {"position_ids", "logits_to_keep", "use_cache"} <= set(names)

    class Plain:
        """Takes ids and mask only; any other argument would raise."""

        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return SimpleNamespace(logits=torch.arange(24.0).reshape(2, 3, 4).bfloat16())

    batch = collate(encoded_of([3, 2], [4, 4]), 0)
    logits = answer_position_logits(Plain(), batch, frozenset())
    assert logits.tolist() == [[8.0, 9.0, 10.0, 11.0], [20.0, 21.0, 22.0, 23.0]]
    assert logits.dtype == torch.float32


def test_only_one_position_is_projected_onto_the_vocabulary(any_folder: Path) -> None:
    model = load(any_folder)
    shapes = []
    head = model.peft_model.get_base_model().lm_head
    hook = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        model.answer_logits(collate(make_encoded(model, 3), model.pad_id))
    hook.remove()
    assert shapes == [(3, 1, VOCABULARY)]


def test_gradients_reach_the_adapter_alone() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_llama(), config)
    fill_adapter(model)
    batch = collate(encoded_of([4, 2], [4, 4]), 0)
    answer_position_logits(model, batch, frozenset({"position_ids", "logits_to_keep"})).sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got
    assert all("lora_" in name for name in got)
