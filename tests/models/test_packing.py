"""Packed items against the same items one by one, without padding: logits, gradients, costs, and models that cannot."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, fill_adapter, load, make_encoded, save, tiny_gpt2, tiny_llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.models.language import packing
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.memory import OutOfMemoryRetry
from llm_forgetting.models.language.packing import CannotPackError, Pack, common_prefix, packs, segments
from llm_forgetting.models.language.scoring import score
from llm_forgetting.models.language.scoring_batches import TOKENS_PER_BATCH, prefix_batches
from llm_forgetting.tasks.task import Item

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = (40, 41, 42, 43, 44)
Make = Callable[..., list[EncodedItem]]


def make(
    subject: str, shared: int, tails: Sequence[int], options: Sequence[int] = (4,), seed: int = 0
) -> list[EncodedItem]:
    """Items of one subject that share exactly `shared` tokens; tails of the given lengths."""
    rng = np.random.default_rng([seed, *subject.encode()])
    prefix = rng.integers(3, VOCABULARY, size=shared).tolist()
    items = []
    for n, length in enumerate(tails):
        own = [3 + n, *rng.integers(3, VOCABULARY, size=length - 1).tolist()]
        k = options[n % len(options)]
        item = Item(f"{subject}/test/{n}", subject, "?", tuple("pqrst"[:k]), n % k)
        items.append(EncodedItem(item, tuple(prefix + own), LETTERS[:k]))
    return items


def prefixes_of_one_another() -> list[EncodedItem]:
    (longest,) = make("trees", 0, [12])
    return [EncodedItem(longest.item, longest.input_ids[:n], longest.letter_ids) for n in (12, 1, 5, 12, 2)]


CASES: dict[str, list[EncodedItem]] = {
    "shared prefix": make("trees", 9, [4, 11, 2, 7, 7]),
    "nothing shared": make("trees", 0, [4, 11, 2, 7]),
    "subjects mixed": [
        item
        for three in zip(
            make("trees", 6, [3, 8, 5]), make("birds", 2, [1, 4, 9]), make("fish", 0, [2, 6, 3]), strict=True
        )
        for item in three
    ],
    "one item": make("trees", 5, [6]),
    "one token": make("trees", 0, [1]),
    "one item per subject": [*make("trees", 5, [6]), *make("birds", 5, [3]), *make("fish", 5, [9])],
    "worked examples": make("trees", 200, [15, 30, 22, 8]),
    "options": make("trees", 4, [5, 3, 8, 6, 2, 7], options=(2, 4, 5, 3)),
    "prefixes of one another": prefixes_of_one_another(),
    "equal items": make("trees", 3, [4]) * 3,
    "one-token tails": make("trees", 7, [1, 1, 3]),
}
every_case = pytest.mark.parametrize("case", CASES)


def reference(model: LanguageModel, item: EncodedItem) -> tuple[list[float], float]:
    """Letter logits and log-sum-exp of all other tokens, from one unpadded row and plain PEFT."""
    with torch.inference_mode():
        logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1].double()
    others = [float(logits[token]) for token in range(len(logits)) if token not in item.letter_ids]
    top = max(others)
    return [float(logits[n]) for n in item.letter_ids], top + math.log(sum(math.exp(x - top) for x in others))


def assert_scored_as_one_by_one(model: LanguageModel, items: Sequence[EncodedItem], batch_size: int | None) -> None:
    found = score(model, items, batch_size)
    for n, item in enumerate(items):
        z, rest = reference(model, item)
        assert found.letter_logits[n, : len(z)].tolist() == pytest.approx(z, abs=1e-5)
        assert np.isneginf(found.letter_logits[n, len(z) :]).all()
        assert found.rest[n] == pytest.approx(rest, abs=1e-5)
        assert found.answers[n] == item.item.answer


@pytest.fixture(scope="module")
def models(llama_folder: Path, gpt2_folder: Path) -> dict[str, LanguageModel]:
    """Rotary positions and grouped keys; absolute positions."""
    return {"llama": load(llama_folder), "gpt2": load(gpt2_folder)}


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, models: dict[str, LanguageModel]) -> LanguageModel:
    return models[request.param]


@every_case
@pytest.mark.parametrize("batch_size", [2, 16])
def test_packed_items_are_scored_as_one_by_one(model: LanguageModel, case: str, batch_size: int) -> None:
    assert model.supports_packing
    assert_scored_as_one_by_one(model, CASES[case], batch_size)


@every_case
def test_packed_and_padded_scores_agree(model: LanguageModel, case: str) -> None:
    together, padded = (score(model, CASES[case], 3, packed=packed) for packed in (True, False))
    np.testing.assert_allclose(together.letter_logits, padded.letter_logits, atol=1e-5)
    np.testing.assert_allclose(together.rest, padded.rest, atol=1e-5)


# Packs


def sequence_of(pack: Pack, row: int) -> tuple[list[int], list[int]]:
    """Tokens and positions that the answer place of item `row` may see, in order of position."""
    layout = pack.layout
    last = int(layout.own[row].sum()) - 1
    seen = layout.keys[row][layout.mask[row, 0, last]]
    order = pack.position_ids[0][seen].argsort()
    return pack.input_ids[0][seen][order].tolist(), pack.position_ids[0][seen][order].tolist()


@every_case
@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_packs_hold_every_item_once_and_whole(case: str, batch_size: int) -> None:
    items = CASES[case]
    made = packs(items, batch_size)
    assert sorted(n for pack in made for n in pack.items) == list(range(len(items)))
    for pack in made:
        assert len(pack.items) <= batch_size
        for row, n in enumerate(pack.items):
            tokens, positions = sequence_of(pack, row)
            assert tokens == list(items[n].input_ids)
            assert positions == list(range(len(tokens)))
            own = pack.layout.queries[row][pack.layout.own[row]]
            assert pack.answer_index[row] == own[-1]
            letters = pack.letter_ids[row].tolist()
            assert letters[: len(items[n].letter_ids)] == list(items[n].letter_ids)
            assert set(letters[len(items[n].letter_ids) :]) <= {-1}


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        ([(1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 2), (1, 2, 3)], 1),
        ([(1,), (1, 2, 3)], 0),
        ([(1, 2, 3), (4, 2, 3)], 0),
        ([(1, 2, 3, 4), (1, 2, 3, 5), (1, 9, 3, 4)], 1),
    ],
)
def test_common_beginnings_leave_every_sequence_a_token(sequences: list[tuple[int, ...]], length: int) -> None:
    assert common_prefix(sequences) == length


def test_packs_are_made_subject_by_subject_and_longest_first() -> None:
    items = CASES["subjects mixed"]
    order = [n for pack in packs(items, 3) for n in pack.items]
    assert order == sorted(order, key=lambda n: (items[n].item.subject, -len(items[n].input_ids)))
    assert [len({items[n].item.subject for n in pack.items}) for pack in packs(items, 3)] == [1, 1, 1]


def test_packs_depend_on_the_items_alone() -> None:
    first, again = (packs(CASES["subjects mixed"], 4) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.items == other.items
        assert torch.equal(one.input_ids, other.input_ids)


TOKENS = {
    "shared prefix": 9 + 4 + 11 + 2 + 7 + 7,
    "nothing shared": 4 + 11 + 2 + 7,
    "subjects mixed": (6 + 3 + 8 + 5) + (2 + 1 + 4 + 9) + (2 + 6 + 3),
    "one item": 11,
    "worked examples": 200 + 15 + 30 + 22 + 8,
    "prefixes of one another": 12 + 1 + 5 + 12 + 2,
    "equal items": 6 + 3,
}


def tokens_computed(model: LanguageModel, items: Sequence[EncodedItem], batch_size: int | None) -> list[int]:
    """Tokens that went through a layer's feed-forward part, per forward pass, while the items were scored."""
    counts: list[int] = []
    block = next(module for name, module in model.peft_model.named_modules() if name.endswith(".mlp"))
    handle = block.register_forward_hook(lambda block, given, made: counts.append(made.shape[0] * made.shape[1]))
    score(model, items, batch_size)
    handle.remove()
    return counts


@pytest.mark.parametrize("case", TOKENS)
def test_no_token_is_computed_twice_or_for_padding(model: LanguageModel, case: str) -> None:
    assert tokens_computed(model, CASES[case], 64) == [TOKENS[case]]


def test_a_long_beginning_is_computed_once_for_all_packs(model: LanguageModel) -> None:
    assert tokens_computed(model, CASES["worked examples"], 2) == [200, 30 + 22, 15 + 8]


# Scoring in shares and pieces


def of_subjects(*sizes: tuple[str, int, Sequence[int]]) -> list[EncodedItem]:
    return [item for subject, shared, tails in sizes for item in make(subject, shared, tails)]


LONG = of_subjects(("trees", 90, [5, 9, 3, 7, 8]), ("birds", 70, [4, 6, 2]), ("fish", 3, [9, 4, 6]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64, None])
def test_kept_beginnings_change_no_score(model: LanguageModel, batch_size: int | None) -> None:
    assert_scored_as_one_by_one(model, LONG, batch_size)


def test_kept_beginnings_change_no_score_without_the_kernel(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_ATTEND", None)
    assert_scored_as_one_by_one(model, LONG, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64, None])
def test_every_item_is_in_one_batch_of_its_own_beginning(batch_size: int | None) -> None:
    found = prefix_batches(LONG, batch_size)
    assert sorted(n for share in found for batch in share.batches for n in batch) == list(range(len(LONG)))
    for share in found:
        for batch in share.batches:
            assert batch_size is None or len(batch) <= batch_size
            for n in batch:
                assert LONG[n].input_ids[: len(share.prefix)] == share.prefix
                assert len(LONG[n].input_ids) > len(share.prefix)


def test_items_that_lost_a_shot_do_not_spoil_the_beginning_of_the_others() -> None:
    short = [dataclasses.replace(item, shots_dropped=1) for item in make("trees", 80, [4, 5], seed=9)]
    assert sorted(len(share.prefix) for share in prefix_batches([*make("trees", 100, [5, 6, 7]), *short], 1)) == [
        80,
        100,
    ]


def test_batches_without_a_size_hold_some_thousand_tokens() -> None:
    tails = [500, 495, 490, 485, 480, 475]
    ((one,), (two, three)) = (
        share.batches for share in prefix_batches(of_subjects(("a", 70, [9, 9]), ("b", 0, tails)), None)
    )
    assert (len(one), len(two), len(three)) == (2, 4, 2)


def test_an_item_that_is_longer_than_a_batch_is_scored_alone() -> None:
    assert prefix_batches(make("trees", 0, [TOKENS_PER_BATCH + 1, 3]), None)[0].batches == ((0,), (1,))


class Small:
    """Memory for so many items at a time; keeps what it was asked."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.asked: list[int] = []
        self.done: list[int] = []

    def __call__(self, batch: tuple[int, ...]) -> None:
        self.asked.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        self.done += batch


def test_where_memory_runs_out_batches_are_halved_and_stay_small() -> None:
    memory, pieces = Small(3, torch.OutOfMemoryError("CUDA out of memory.")), OutOfMemoryRetry(torch.device("cpu"))
    for batch in (tuple(range(10)), tuple(range(10, 20))):
        pieces.run(batch, memory)
    assert memory.done == list(range(20))
    assert memory.asked == [10, 5, 2, 2, 1, 2, 2, 1, 2, 2, 2, 2, 2]


def test_what_is_too_much_for_one_item_is_raised() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        OutOfMemoryRetry(torch.device("cpu")).run(
            (0, 1), Small(0, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
        )


def test_other_errors_are_not_mistaken_for_want_of_memory() -> None:
    memory = Small(1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        OutOfMemoryRetry(torch.device("cpu")).run((0, 1), memory)
    assert memory.asked == [2]


def test_scores_are_the_same_when_memory_runs_out_on_the_way(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(model, LONG, 64)
    compute = model.packed_logits

    def small(packed: Sequence[Pack], *rest: Any) -> Any:
        if len(packed[0].items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(packed, *rest)

    monkeypatch.setattr(model, "packed_logits", small)
    np.testing.assert_allclose(score(model, LONG, 64).letter_logits, whole.letter_logits, atol=1e-5)


# Gradients


def gradients(model: LanguageModel, items: Sequence[EncodedItem], packed: bool) -> dict[str, torch.Tensor]:
    """Of the sum of all items' losses, by every parameter of the adapter."""
    trained = {name: p for name, p in model.peft_model.named_parameters() if p.requires_grad}
    loss = torch.zeros(())
    if packed:
        for pack, (logits,) in zip(packs(items, 4), model.packed_logits(packs(items, 4)), strict=True):
            targets = torch.tensor([items[n].letter_ids[items[n].item.answer] for n in pack.items])
            loss = loss + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    else:
        for item in items:
            logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1]
            loss = loss - logits.log_softmax(dim=0)[item.letter_ids[item.item.answer]]
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("case", ["shared prefix", "subjects mixed", "prefixes of one another", "options"])
def test_gradients_are_those_of_the_items_one_by_one(model: LanguageModel, case: str) -> None:
    found, expected = (gradients(model, CASES[case], packed) for packed in (True, False))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 1e-3
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max())


# Dropout of the backbone


def losses_of(model: LanguageModel, items: Sequence[EncodedItem], packed: bool, training: bool = True) -> torch.Tensor:
    model.peft_model.train(training)
    with torch.no_grad():
        return answer_losses(model, items, packed=packed)


def test_attention_that_is_dropped_altogether_is_so_in_packs_too(tmp_path: Path) -> None:
    """At a dropout of 1 nothing is random: every attention layer gives 0, whatever the pack."""
    model = other(tmp_path, tiny_gpt2(attn_pdrop=1.0))
    for case in ("shared prefix", "subjects mixed", "one item per subject"):
        together, padded = (losses_of(model, CASES[case], packed) for packed in (True, False))
        torch.testing.assert_close(together, padded, atol=1e-5, rtol=1e-5)
        assert float((together - losses_of(model, CASES[case], packed=True, training=False)).abs().max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attn_pdrop", "resid_pdrop", "embd_pdrop"])
def test_dropout_changes_the_loss_of_packed_items_as_that_of_padded_ones(tmp_path: Path, kind: str) -> None:
    """Mean and spread of every item's loss over 200 masks each, with a standard error."""
    model = other(tmp_path, tiny_gpt2(**{kind: 0.5}))
    torch.manual_seed(0)
    items = CASES["nothing shared"] + CASES["shared prefix"]
    together, padded = (torch.stack([losses_of(model, items, packed) for _ in range(200)]) for packed in (True, False))
    for statistic in (lambda losses: losses, lambda losses: (losses - losses.mean(dim=0)).square()):
        x, y = statistic(together), statistic(padded)
        stderr = ((x.var(dim=0) + y.var(dim=0)) / len(x)).sqrt()
        assert float(((x.mean(dim=0) - y.mean(dim=0)) / stderr).abs().max()) < 4
    assert float(together.std(dim=0).min()) > 0.01


# The attention comes back


def attention(model: LanguageModel) -> str:
    return str(model.peft_model.get_base_model().config._attn_implementation)


def breaking(kind: type[BaseException]) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise kind("halfway")

    return raise_it


@pytest.mark.parametrize("kind", [None, RuntimeError, KeyboardInterrupt, CannotPackError])
def test_the_attention_comes_back(
    model: LanguageModel, kind: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, expected = attention(model), reference(model, CASES["one item"][0])
    assert before == "sdpa"
    made = packs(CASES["one item"], 4)
    if kind is None:
        model.packed_logits(made)
    else:
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "scaled_dot_product_attention", breaking(kind))
            with pytest.raises(kind):
                model.packed_logits(made)
    assert attention(model) == before
    assert packing._layout_in_use.get(None) is None
    assert reference(model, CASES["one item"][0]) == expected


def test_segments_restore_whatever_attention_there_was(models: dict[str, LanguageModel]) -> None:
    backbone = models["llama"].peft_model.get_base_model()
    backbone.set_attn_implementation("eager")
    try:
        with segments(backbone):
            assert backbone.config._attn_implementation == "llm_forgetting_segment_attention"
        assert backbone.config._attn_implementation == "eager"
    finally:
        backbone.set_attn_implementation("sdpa")


# Other architectures

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}


def other(folder: Path, backbone: Any, attention: Any = "sdpa") -> LanguageModel:
    save(folder, backbone.eval())
    settings = ModelConfig(name=str(folder), dtype="float32", attention=attention)
    model = LanguageModel.load(settings, LoraConfig(rank=2, alpha=4.0), seed=0)
    fill_adapter(model.peft_model)
    return model


@pytest.mark.parametrize("kind", ["Qwen2", "GPTNeoX", "Granite", "Mistral"])
def test_other_architectures_pack(tmp_path: Path, kind: str) -> None:
    made = {
        "Qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
        "Granite": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, attention_multiplier=1.5)),
        "GPTNeoX": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
        "Mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=100)),
    }
    model = other(tmp_path, made[kind]())
    assert model.supports_packing
    assert_scored_as_one_by_one(model, CASES["subjects mixed"], 4)


def mistral(folder: Path, window: int) -> LanguageModel:
    return other(folder, MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=window)))


def gemma(folder: Path) -> LanguageModel:
    settings = Gemma2Config(**GROUPED, attn_logit_softcapping=3.0, query_pre_attn_scalar=4)
    return other(folder, Gemma2ForCausalLM(settings), attention="eager")


@pytest.mark.parametrize("kind", ["softcap", "sliding window"])
def test_attention_that_segments_do_not_know_is_padded(tmp_path: Path, kind: str) -> None:
    model = gemma(tmp_path) if kind == "softcap" else mistral(tmp_path, 4)
    before = attention(model)
    assert not model.supports_packing
    assert attention(model) == before
    assert_scored_as_one_by_one(model, CASES["subjects mixed"], 4)
    assert_scored_as_one_by_one(model, CASES["worked examples"], 4)


@pytest.mark.parametrize(
    "asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}, {"sliding_window": 3}]
)
def test_attention_with_more_than_a_causal_past_is_refused(asked: dict[str, Any]) -> None:
    """Also where the numbers of a trial would be nearly the same."""
    (pack,) = packs(make("trees", 2, [2, 2]), 4)
    q = torch.randn(1, 2, pack.input_ids.shape[1], 4, generator=torch.Generator().manual_seed(0))
    token = packing._layout_in_use.set(pack.layout)
    try:
        assert packing.segment_attention(None, q, q, q, None)[0].shape == (1, 6, 2, 4)
        with pytest.raises(CannotPackError, match=next(iter(asked)).replace("_w", ".w")):
            packing.segment_attention(None, q, q, q, None, **asked)
    finally:
        packing._layout_in_use.reset(token)


def test_a_window_as_long_as_the_longest_item_packs(tmp_path: Path) -> None:
    assert_scored_as_one_by_one(mistral(tmp_path, 20), make("trees", 9, [11, 4]), 4)


def test_items_longer_than_a_window_that_packs_short_ones_are_padded(tmp_path: Path) -> None:
    model = mistral(tmp_path, 20)
    assert_scored_as_one_by_one(model, make("trees", 9, [12, 4]), 4)


def test_a_model_without_exchangeable_attention_is_padded(models: dict[str, LanguageModel], llama_folder: Path) -> None:
    model = load(llama_folder)
    model.peft_model.get_base_model()._supports_attention_backend = False
    assert not model.probe_packing()
    assert_scored_as_one_by_one(model, CASES["subjects mixed"], 4)


def test_a_model_whose_packed_logits_are_wrong_is_padded(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial compares numbers: attention that sees the whole row is found out."""

    def everything(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        made = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return made.transpose(1, 2), None

    model = load(llama_folder)
    monkeypatch.setattr(packing, "segment_attention", everything)
    assert not model.probe_packing()


def test_encoded_prompts_share_their_description(models: dict[str, LanguageModel]) -> None:
    items = make_encoded(models["llama"], 6, options=[4, 5])
    (pack,) = packs(items, 6)
    shared = common_prefix([item.input_ids for item in items])
    assert shared > 20
    assert pack.input_ids.shape[1] == sum(len(item.input_ids) for item in items) - 5 * shared
    assert_scored_as_one_by_one(models["llama"], items, 6)


def test_packs_keep_the_backbones_own_kernel_elsewhere(llama_folder: Path) -> None:
    """Two models: one inside `segments` does not change the other."""
    model, bystander = load(llama_folder), tiny_llama()
    with segments(model.peft_model.get_base_model()), torch.inference_mode():
        assert bystander.config._attn_implementation == "sdpa"
        assert bystander(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
