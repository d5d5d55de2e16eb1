"""What a model writes, against plain transformers and the teacher-forced scores of the same items."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import load, make_encoded, save, tiny_gpt2

from llm_forgetting.models.adapter.requantised import requantised
from llm_forgetting.models.language import generation
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.generation import write
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import passes, score_tasks
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.scoring import Scoring

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATED = Scoring(by="generation")
LONG = "the quick brown fox jumps over the lazy dog while the old oak stands still and watches them: "


def items(model: LanguageModel, scoring: Scoring = GENERATED, beginning: str = "") -> list[EncodedItem]:
    """Short words spelt twice, of different lengths."""
    words = ("oak", "elm", "birch", "ash", "hazel", "rowan", "willow", "yew", "fir", "pine")
    made = [
        Completion(f"s/test/{n}", "s", f"{beginning}{n} {word}:", f" {word}{word[::-1]}", scoring)
        for n, word in enumerate(words)
    ]
    return encode(model.tokenizer, made, {}, 400)


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    """Trained until it knows some of the items by heart."""
    learner = load(llama_folder, rank=8, alpha=32.0)
    learnt = items(learner)[:5]
    parameters = [parameter for parameter in learner.peft_model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        answer_losses(learner, learnt).mean().backward()
        optimiser.step()
    return learner


def plainly(model: LanguageModel, item: EncodedItem, limit: int) -> str:
    """By transformers alone, one prompt at a time, token by token over the whole text."""
    ids = list(item.input_ids[: item.places[0] + 1])
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < limit:
            token = int(model.peft_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == model.tokenizer.eos_token_id:
                break
            ids.append(token)
    return str(model.tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_what_is_written_is_right_where_every_token_is(model: LanguageModel) -> None:
    encoded = items(model)
    (scored,) = score_tasks(model, [encoded], None)
    written = write(model, encoded, None)
    assert 0 < scored.teacher_forced.sum() < len(encoded)
    assert scored.correct.tolist() == scored.teacher_forced.tolist()
    for item, found, right in zip(encoded, written, scored.teacher_forced, strict=True):
        expected = model.decode(item.targets)
        assert found.text == plainly(model, item, 2 * len(item.targets) + 16)
        assert (found.text == expected) == found.right == right
    assert passes([encoded]) == 2 * len(encoded)


@pytest.mark.parametrize("beginning", ["", LONG])
def test_the_batch_makes_no_difference(model: LanguageModel, beginning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, kept = items(model, beginning=beginning), []
    own = generation._beginning
    monkeypatch.setattr(generation, "_beginning", lambda model, tokens: kept.append(len(tokens)) or own(model, tokens))
    alone = write(model, encoded, 1, kept=False)
    assert not kept
    assert write(model, encoded, 1) == write(model, encoded, 8) == write(model, encoded, 8, kept=False) == alone
    assert (len(kept) == 2 and min(kept) > 80) if beginning else not kept


def test_models_without_packing_write_the_same(tmp_path: Path) -> None:
    model = load(save(tmp_path, tiny_gpt2()))
    encoded = items(model, beginning=LONG)
    kept = write(model, encoded, 4)
    model.supports_packing = False
    assert [found.text for found in write(model, encoded, 4)] == [found.text for found in kept]
    assert kept[0].text == plainly(model, encoded[0], 2 * len(encoded[0].targets) + 16)


def test_bfloat16_and_quantised_weights_write_what_their_own_logits_say(llama_folder: Path) -> None:
    model = load(llama_folder, dtype="bfloat16")
    encoded = items(model)[:3]
    limit = [2 * len(item.targets) + 16 for item in encoded]
    with model.computing():
        expected = [plainly(model, item, most) for item, most in zip(encoded, limit, strict=True)]
    assert [found.text for found in write(model, encoded, None)] == expected
    pytest.importorskip("bitsandbytes")
    for kind in ("8bit", "4bit"):
        with requantised(model, kind):
            with model.computing():
                expected = [plainly(model, item, most) for item, most in zip(encoded, limit, strict=True)]
            assert [found.text for found in write(model, encoded, None)] == expected


def test_ends_at_a_text_at_a_limit_and_at_the_table_of_positions(tmp_path: Path) -> None:
    model = load(save(tmp_path, tiny_gpt2(n_positions=40)))
    (whole, *_) = write(model, items(model, Scoring(by="generation", max_new_tokens=12))[:1], None)
    assert len(whole.text) <= 13
    stop = whole.text[4]
    until = items(model, Scoring(by="generation", max_new_tokens=12, until=(stop,)))[:1]
    assert write(model, until, None)[0].text == whole.text[: whole.text.index(stop)]
    (long,) = write(model, items(model, Scoring(by="generation", max_new_tokens=90))[:1], None)
    assert long.text.startswith(whole.text)


def test_the_models_own_settings_of_decoding_are_set_aside_and_come_back(model: LanguageModel) -> None:
    encoded, own = items(model)[:2], model.backbone.generation_config
    before = write(model, encoded, None)
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    try:
        assert write(model, encoded, None) == before
        assert model.backbone.generation_config is own
    finally:
        own.update(do_sample=False, temperature=1.0, repetition_penalty=1.0)


def test_of_a_conversation_the_last_turn_is_written(model: LanguageModel) -> None:
    (item,) = items(model)[:1]
    asked = len(item.input_ids) - len(item.targets) + 1
    earlier = replace(item, places=(0, 1, *item.places), targets=(*item.input_ids[1:3], *item.targets))
    assert earlier.places[2] == asked - 1
    assert write(model, [earlier], None) == write(model, [item], None)


def test_questions_between_are_scored_by_their_letters(model: LanguageModel) -> None:
    questions = make_encoded(model, 3)
    first, second = score_tasks(model, [questions, items(model)], None)
    assert first.correct.tolist() == first.teacher_forced.tolist()
    assert second.judged is not None
    assert all(second.judged)
