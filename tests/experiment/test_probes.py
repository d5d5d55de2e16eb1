"""Rotated options, unrelated text and recovery on live models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SmokeRun
from tiny_models import load, make_items

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.item_records import item_records, recovery_items, with_rotations
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, score
from llm_forgetting.models.language.text_loss import Passage, passages, text_losses
from llm_forgetting.tasks.prompts import render
from llm_forgetting.tasks.task import Item, turn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    return load(llama_folder)


# Rotations


@pytest.mark.parametrize("k", [2, 4, 5])
@pytest.mark.parametrize("places", [0, 1, 3])
def test_turned_options_keep_their_answer(k: int, places: int) -> None:
    for item in make_items(6, k):
        moved = turn(item, places)
        assert sorted(moved.choices) == sorted(item.choices)
        assert moved.choices[moved.answer] == item.choices[item.answer]
        assert moved.choices[0] == item.choices[places % k]
        assert turn(moved, k - places % k) == item


def test_the_logits_of_a_rotation_are_those_of_the_prompt_it_stands_for(model: LanguageModel) -> None:
    item = Item("trees/test/0", "trees", "which?", ("p", "q", "r"), 1)
    plain = encode(model.tokenizer, [item], {}, 400)
    turned = [encode(model.tokenizer, [turn(item, r)], {}, 400) for r in (1, 2)]
    records = item_records("after_task1", "trees", "train", plain, score(model, plain, 1), decode=model.decode)
    (record,) = with_rotations(records, "trees", "train", turned, [score(model, items, 1) for items in turned])
    asked = [("p", "q", "r"), ("q", "r", "p"), ("r", "p", "q")]
    assert record.rotated_letter_logits is not None
    rows = [record.letter_logits, *record.rotated_letter_logits]
    for choices, logits in zip(asked, rows, strict=True):
        prompt = render(Item("x/y/0", "trees", "which?", choices, 0))
        with torch.inference_mode():
            row = model.peft_model(**model.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        np.testing.assert_allclose(logits, row[list(plain[0].letter_ids)].numpy(), atol=1e-5)


def test_rotations_of_one_item_share_its_question(model: LanguageModel) -> None:
    items = make_items(3)
    kin = [
        EncodedItem(entry.item, entry.input_ids, entry.letter_ids, prefix_group=entry.item.id)
        for item in items
        for entry in encode(model.tokenizer, [turn(item, r) for r in (1, 2, 3)], {}, 400)
    ]
    counts: list[int] = []
    block = next(module for name, module in model.peft_model.named_modules() if name.endswith(".mlp"))
    handle = block.register_forward_hook(lambda block, given, made: counts.append(made.shape[1]))
    together = score(model, kin, 64)
    handle.remove()
    alone = score(model, kin, 1, packed=False)
    np.testing.assert_allclose(together.letter_logits, alone.letter_logits, atol=1e-5)
    everything = sum(len(item.input_ids) for item in kin)
    questions = sum(len(model.tokenizer(render(item).split("\nA.")[0])["input_ids"]) for item in items)
    assert sum(counts) < everything - 1.9 * questions


# Merged scoring


def test_merged_scoring_changes_no_number_and_no_bit(model: LanguageModel) -> None:
    items = encode(model.tokenizer, make_items(7), {}, 400)
    before, state = score(model, items, 4), {k: v.clone() for k, v in model.peft_model.state_dict().items()}
    with merged(model):
        inside = score(model, items, 4)
    np.testing.assert_allclose(inside.letter_logits, before.letter_logits, atol=1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.peft_model.state_dict().items())
    assert np.array_equal(score(model, items, 4).letter_logits, before.letter_logits)


def test_bfloat16_is_not_merged(llama_folder: Path) -> None:
    model = load(llama_folder, dtype="bfloat16")
    with merged(model):
        assert not any(layer.disable_adapters for layer in model.peft_model.modules() if hasattr(layer, "lora_A"))


# Text


def test_text_losses_are_those_of_transformers(model: LanguageModel) -> None:
    texts = [Passage("a", (1, 5, 9, 22, 7)), Passage("b", (1, 30))]
    found = text_losses(model, texts)
    for text, loss in zip(texts, found, strict=True):
        ids = torch.tensor([text.input_ids])
        with torch.inference_mode():
            assert loss == pytest.approx(float(model.peft_model(input_ids=ids, labels=ids).loss), rel=1e-5)


def test_a_text_file_is_cut_at_blank_lines(tmp_path: Path, model: LanguageModel) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"One two.\r\n\r\n\r\nThree\nfour.\n\n")
    found = passages(str(file), model.tokenizer, 400)
    assert [model.tokenizer.decode(entry.input_ids[1:]) for entry in found] == [" One two.", " Three\nfour."]
    assert [entry.id for entry in found] == ["passage/0", "passage/1"]
    assert all(len(entry.input_ids) == 5 for entry in passages(str(file), model.tokenizer, 5))


def test_the_text_that_comes_along_has_twelve_passages(model: LanguageModel) -> None:
    assert len(passages(None, model.tokenizer, 400)) == 12


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"\xff\xfe", "UTF-8"), (b"\n \n", "holds none")]
)
def test_text_that_cannot_be_used_ends_in_one_line(
    tmp_path: Path, model: LanguageModel, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        passages(str(file), model.tokenizer, 400)
    assert "evaluation.text=" in str(caught.value)
    assert "\n" not in str(caught.value)


# Recovery


def test_recovery_items_are_few_seeded_and_at_most_half(model: LanguageModel) -> None:
    items = tuple(encode(model.tokenizer, make_items(9), {}, 400))
    task = EncodedTask("trees", items, ())
    few = recovery_items(task, 3, seed=0)
    assert len(few) == 3
    assert few == recovery_items(task, 3, seed=0)
    assert few != recovery_items(task, 3, seed=1)
    assert len(recovery_items(task, 30, seed=0)) == 4


def rows(run: SmokeRun, **wanted: str) -> list[dict[str, Any]]:
    import json

    lines = (run.path / "items.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if all(entry.get(key) == value for key, value in wanted.items())]


def test_a_run_records_recovery_on_the_other_items(smoke_run: SmokeRun) -> None:
    again = rows(smoke_run, checkpoint="recovered_task1")
    trained = {entry["id"] for entry in rows(smoke_run, checkpoint="after_task2", task="synthetic_1", split="train")}
    assert len(again) == len(trained) - 10
    assert {entry["id"] for entry in again} < trained
    found = smoke_run.results["spurious"]["synthetic_1"]["recovery"]
    assert found["items"] == 10
    assert found["accuracy"]["recovered"]["correct"] == sum(entry["correct"] for entry in again)


def test_a_run_leaves_its_checkpoints_alone_after_recovery(smoke_run: SmokeRun) -> None:
    """Forecasts and paths come after it, and start from the same numbers as the evaluation."""
    (path,) = smoke_run.results["paths"]
    ids = smoke_run.results["tasks"][0]["landscape_items"]
    at_end = [r["loss"] for r in rows(smoke_run, checkpoint="after_task2", task="synthetic_1") if r["id"] in ids]
    assert path["tasks"]["synthetic_1"]["loss"][-1] == pytest.approx(np.mean(at_end), abs=1e-2)


def test_only_earlier_tasks_are_rotated_after_themselves_and_at_the_end(smoke_run: SmokeRun) -> None:
    turned = {(r["checkpoint"], r["task"], r["split"]) for r in rows(smoke_run) if "rotated_letter_logits" in r}
    assert turned == {("after_task1", "synthetic_1", "train"), ("after_task2", "synthetic_1", "train")}
    assert all(len(r["rotated_letter_logits"]) == 3 for r in rows(smoke_run) if "rotated_letter_logits" in r)


def test_a_run_follows_unrelated_text(smoke_run: SmokeRun) -> None:
    assert len(rows(smoke_run, split="text")) == 36
    found = smoke_run.results["text"]
    assert found["passages"] == 12
    assert math.isfinite(found["change"]["after_task2"]["value"])
