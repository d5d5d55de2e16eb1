"""The start-up checks: each is entered by a model that has the fault, and a sound model passes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import load, make_encoded

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.guards import GUARD_ITEMS, PASSES, check
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score, score_tasks

pytestmark = pytest.mark.usefixtures("one_thread")

Logits = torch.Tensor


def spoil(model: LanguageModel, change: Callable[[Logits, dict[str, Any]], Logits]) -> None:
    """Put `change` (logits, arguments of the call) behind the model's head."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output.logits = change(output.logits, kwargs)
        return output

    model.peft_model.get_base_model().register_forward_hook(hook, with_kwargs=True)


def padding(model: LanguageModel) -> LanguageModel:
    """`model` as one whose attention cannot be packed: its batches are padded."""
    model.supports_packing = False
    return model


def assert_refused(model: LanguageModel, match: str, count: int = 20) -> None:
    with pytest.raises(UserError, match=match) as error:
        check(model, make_encoded(model, count))
    assert "\n" not in str(error.value)


def test_a_sound_model_passes(any_folder: Path) -> None:
    model = load(any_folder)
    encoded = make_encoded(model, 40)
    report = check(model, encoded)
    assert report.items == GUARD_ITEMS == 16
    assert 0 <= report.batch_logit_difference <= 5e-5 < report.batch_tolerance == 1e-3
    assert report.repeat_loss_difference == 0
    assert report.letter_token_ids == encoded[0].letter_ids


@pytest.mark.parametrize("packed", [True, False])
def test_checked_items_are_of_mixed_length_alone_and_together(packed: bool, llama_folder: Path) -> None:
    """Alone without padding; together in one row of tokens, or where the model cannot do that in rows that are padded."""
    model = load(llama_folder)
    if not packed:
        padding(model)
    assert model.supports_packing == packed
    encoded = make_encoded(model, 60)
    shapes: list[tuple[int, ...]] = []
    masks: list[torch.Tensor | None] = []

    def note(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        shapes.append(tuple(kwargs["input_ids"].shape))
        masks.append(kwargs["attention_mask"])
        return logits

    spoil(model, note)
    check(model, encoded)
    assert [rows for rows, _ in shapes] == [1] * 16 + [16] + ([1, 1] if packed else [16, 16])
    padded = [mask is not None and bool((mask == 0).any()) for mask in masks]
    assert padded == [False] * 16 + [True] + [not packed] * 2
    lengths = sorted(len(item.input_ids) for item in encoded)
    alone, together = [width for _, width in shapes[:16]], shapes[-1][1]
    assert (min(alone), max(alone)) == (lengths[0], lengths[-1])
    if packed:  # less than all of them: what they share is there once
        assert max(alone) + 15 < together < sum(alone)
    else:
        assert together == lengths[-1]


def test_letter_mass_is_the_probability_of_the_letters(llama_folder: Path) -> None:
    model = load(llama_folder)
    encoded = make_encoded(model, 10, [4, 3])
    masses = []
    for item in encoded:
        with torch.no_grad():
            probabilities = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1].softmax(dim=0)
        masses.append(float(probabilities[list(item.letter_ids)].sum()))
    assert check(model, encoded).letter_mass == pytest.approx(np.mean(masses), rel=1e-5)
    first_letter = encoded[0].letter_ids[0]

    def certain(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        boost = torch.zeros(logits.shape[-1])
        boost[first_letter] = 60.0
        return logits + boost

    spoil(model, certain)
    assert check(model, encoded).letter_mass == pytest.approx(1, abs=1e-6)


def test_items_with_different_numbers_of_options_pass(llama_folder: Path) -> None:
    """The surplus places are -inf in both passes; their difference is no number and no reason."""
    model = load(llama_folder)
    report = check(model, make_encoded(model, 12, [2, 3, 4, 5]))
    assert report.batch_logit_difference <= 5e-5


@pytest.mark.parametrize("count", [1, 2])
def test_few_items_are_enough(count: int, llama_folder: Path) -> None:
    model = load(llama_folder)
    assert check(model, make_encoded(model, count)).items == count


def test_answers_that_depend_on_the_batch_are_refused(gpt2_folder: Path, llama_folder: Path) -> None:
    """Positions ignored: GPT-2 then takes the padding for text (this once cost LLaMA-2 7B 20 points of MMLU)."""
    model = load(gpt2_folder)
    model._accepted -= {"position_ids"}
    assert_refused(model, "must not depend on its batch; letter logits alone and in a batch differ by")
    rotary = load(llama_folder)
    rotary._accepted -= {"position_ids"}
    check(rotary, make_encoded(rotary, 20))


def test_a_mask_that_is_ignored_is_refused(llama_folder: Path) -> None:
    model = load(llama_folder)
    base = model.peft_model.get_base_model()
    whole = base.forward
    base.forward = lambda attention_mask, **kwargs: whole(attention_mask=torch.ones_like(attention_mask), **kwargs)
    assert not model.probe_packing()
    assert_refused(model, "must not depend on its batch")


def test_padding_is_checked_also_where_scoring_packs(llama_folder: Path) -> None:
    """Training's batches are padded: a model that ignores the mask must not pass because packs need none."""
    model = load(llama_folder)
    base = model.peft_model.get_base_model()
    whole = base.forward

    def without_mask(attention_mask: Any = None, **kwargs: Any) -> Any:
        return whole(attention_mask=None if attention_mask is None else torch.ones_like(attention_mask), **kwargs)

    base.forward = without_mask
    assert model.supports_packing
    assert_refused(model, "must not depend on its batch")


def test_packing_that_is_wrong_on_real_items_is_refused(llama_folder: Path) -> None:
    """Items alone are computed the plain way, so that a fault of every pack, a single item's too, shows."""
    model = load(llama_folder)
    assert model.supports_packing  # on its own short probe

    def shift(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        return logits + 0.01 * torch.arange(logits.shape[-1]) * (kwargs["attention_mask"] is None)

    spoil(model, shift)
    assert_refused(model, "must not depend on its batch")


@pytest.mark.parametrize("packed", [True, False])
def test_a_difference_within_the_tolerance_passes(packed: bool, llama_folder: Path) -> None:
    for size, refused in ((2e-4, False), (5e-3, True)):
        model = load(llama_folder)
        assert packed == (model if packed else padding(model)).supports_packing

        def shift(logits: Logits, kwargs: dict[str, Any], size: float = size) -> Logits:
            together = logits.shape[1] > 1 if packed else len(logits) > 1
            return logits + size * together

        spoil(model, shift)
        if refused:
            assert_refused(model, "must not depend on its batch")
        else:
            report = check(model, make_encoded(model, 20))
            assert report.batch_logit_difference == pytest.approx(size, rel=0.2)


def test_a_model_that_is_not_deterministic_is_refused(llama_folder: Path) -> None:
    """Noise well below the batch tolerance: only the second pass shows it."""
    model = load(llama_folder)
    generator = torch.Generator().manual_seed(0)

    def noise(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        return logits + 2e-4 * torch.randn(logits.shape, generator=generator).clamp(-2, 2)

    spoil(model, noise)
    assert_refused(model, "two passes over the same items must give the same loss, they differ by .* nats")


def test_dropout_in_eval_mode_is_refused(llama_folder: Path) -> None:
    model = load(llama_folder)
    base = model.peft_model.get_base_model()
    base.lm_head.register_forward_hook(lambda module, args, output: torch.dropout(output, 0.2, True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert_refused(model, "must not depend on its batch|two passes over the same items")


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_non_finite_base_losses_are_refused(broken: float, llama_folder: Path) -> None:
    model = load(llama_folder)
    model.peft_model.get_base_model().lm_head.weight.data[5] = broken
    assert_refused(model, r"base model's losses must be finite, some are not in torch.float32; use model.dtype=float32")


def test_one_item_that_is_not_finite_is_enough(llama_folder: Path) -> None:
    model = load(llama_folder)
    encoded = make_encoded(model, 16)
    longest = max(len(item.input_ids) for item in encoded)

    def overflow(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        return logits * (torch.nan if kwargs["input_ids"].shape == (1, longest) else 1)

    spoil(model, overflow)
    assert_refused(model, "losses must be finite", count=16)


def test_padding_that_makes_nan_is_refused(llama_folder: Path) -> None:
    """Rows that are wholly masked are NaN in some kernels: alone every item is sound, in a batch none of the short ones."""
    model = padding(load(llama_folder))

    def masked(logits: Logits, kwargs: dict[str, Any]) -> Logits:
        spoilt = (kwargs["attention_mask"] == 0).any(dim=1)
        return torch.where(spoilt[:, None, None], torch.nan, logits)

    spoil(model, masked)
    assert_refused(model, "losses must be finite")


def test_bfloat16_is_allowed_its_own_rounding(llama_folder: Path) -> None:
    model = load(llama_folder, dtype="bfloat16")
    report = check(model, make_encoded(model, 20))
    assert report.batch_tolerance == 0.75
    assert report.batch_logit_difference < 0.3


def test_checking_leaves_the_model_as_it_was(llama_folder: Path) -> None:
    model = load(llama_folder, dropout=0.3)
    before = {name: tensor.clone() for name, tensor in model.peft_model.state_dict().items()}
    model.peft_model.train()
    check(model, make_encoded(model, 5))
    assert not model.peft_model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.peft_model.state_dict().items())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_score_keeps_the_order_of_the_items(batch_size: int, packed: bool, llama_folder: Path) -> None:
    """Batches are made by length; the statistics come back in the order given, whatever the batch size."""
    model = load(llama_folder)
    encoded = make_encoded(model, 11, [4, 2, 5])
    held: list[int] = []
    statistics = score(model, encoded, batch_size, held.append, packed=packed)
    assert sum(held) == 11
    assert max(held) == min(batch_size, 11)
    for row, item in enumerate(encoded):
        with torch.no_grad():
            logits = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1]
        k = len(item.letter_ids)
        np.testing.assert_allclose(statistics.letter_logits[row, :k], logits[list(item.letter_ids)].numpy(), atol=5e-5)
        assert np.isneginf(statistics.letter_logits[row, k:]).all()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(item.letter_ids[item.item.answer]))
        assert statistics.losses[row] == pytest.approx(float(loss), abs=1e-4)
    assert statistics.answers.tolist() == [item.item.answer for item in encoded]


def test_several_groups_in_one_pass(llama_folder: Path) -> None:
    model = load(llama_folder)
    groups = [make_encoded(model, 5, seed=1), make_encoded(model, 3, 2, seed=2), make_encoded(model, 1, seed=3)]
    for found, group in zip(score_tasks(model, groups, 4), groups, strict=True):
        alone = score(model, group, 4)
        np.testing.assert_allclose(found.losses, alone.losses, atol=1e-4)
        np.testing.assert_array_equal(found.answers, alone.answers)
        np.testing.assert_allclose(found.four_way_losses, alone.four_way_losses, atol=1e-4)


def test_what_can_be_packed_is_packed_and_what_cannot_is_padded(llama_folder: Path) -> None:
    """Both give one and the same answer; only the packed one computes nothing for padding."""
    encoded = make_encoded(load(llama_folder), 9)
    tokens: dict[bool, int] = {}
    losses = {}
    for packed in (True, False):
        model = load(llama_folder) if packed else padding(load(llama_folder))
        assert model.supports_packing == packed
        seen: list[int] = []

        def note(logits: Logits, kwargs: dict[str, Any], seen: list[int] = seen) -> Logits:
            seen.append(kwargs["input_ids"].numel())
            return logits

        spoil(model, note)
        losses[packed] = score(model, encoded, 4).losses
        tokens[packed] = sum(seen)
    np.testing.assert_allclose(losses[True], losses[False], atol=1e-4)
    assert tokens[True] < sum(len(item.input_ids) for item in encoded) < tokens[False]


def test_report_is_plain_numbers(llama_folder: Path) -> None:
    model = load(llama_folder)
    report = check(model, make_encoded(model, 3))
    assert replace(report) == report
    assert all(type(value) in (int, float, tuple) for value in vars(report).values())


@pytest.mark.parametrize("count", [3, 40])
def test_every_pass_of_the_checks_is_counted(llama_folder: Path, count: int) -> None:
    model, seen = load(llama_folder), []
    report = check(model, make_encoded(model, count), seen.append)
    assert sum(seen) == PASSES * report.items == PASSES * min(count, 16)
