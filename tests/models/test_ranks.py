"""Ranks of a live adapter changed: PEFT reads what is then saved, and the same function comes back."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import load, make_encoded
from transformers import AutoModelForCausalLM

from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.adapter.ranks import fresh_factors, ranks_of, saved_ranks, set_ranks, set_update
from llm_forgetting.models.adapter.saved_adapter import read_weights
from llm_forgetting.models.language.batches import collate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rslora", [False, True])
def test_an_update_of_other_ranks_is_saved_as_peft_reads_it(rslora: bool, any_folder: Path, tmp_path: Path) -> None:
    """Every second module has twice the rank: delta W once more, as a sum of two halves."""
    model = load(any_folder, use_rslora=rslora)
    batch = collate(make_encoded(model, 3), model.pad_id)
    live = model.adapter_factors()
    double = {n: Factors(torch.cat([p.B, p.B], dim=1) / 2, torch.cat([p.A, p.A])) for n, p in live.items()}
    mixed = WeightUpdate({name: double[name] if row % 2 else live[name] for row, name in enumerate(live)})
    with torch.no_grad():
        before = model.answer_logits(batch)
        set_update(model.peft_model, model.adapter, mixed)
        torch.testing.assert_close(model.answer_logits(batch), before, rtol=1e-4, atol=1e-4)
    model.save(tmp_path)
    ranks = ranks_of(model.peft_model, model.adapter)
    assert sorted(set(ranks.values())) == [2, 4]
    assert saved_ranks(read_weights(tmp_path)) == ranks
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(any_folder), tmp_path)
    with torch.no_grad():
        places = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        theirs = read(input_ids=batch.input_ids, **places).logits[:, -1]
        torch.testing.assert_close(theirs, before, rtol=1e-4, atol=1e-4)
    state = model.adapter_state()
    set_ranks(model.peft_model, dict.fromkeys(ranks, 2), model.adapter)
    assert set(ranks_of(model.peft_model, model.adapter).values()) == {2}
    set_ranks(model.peft_model, ranks, model.adapter)
    model.load_adapter_weights(tmp_path)
    assert all(torch.equal(weight, state[name]) for name, weight in model.adapter_state().items())


def test_fresh_factors_are_drawn_as_peft_draws_them(llama_folder: Path) -> None:
    """Uniform within 1 / sqrt(d_in), B = 0; a function of the seed."""
    model = load(llama_folder)
    ranks = dict.fromkeys(target_layers(model.peft_model), 64)
    one, same, other = (fresh_factors(model.peft_model, model.adapter, ranks, seed) for seed in (0, 0, 1))
    for name, pair in one.items():
        bound = pair.A.shape[1] ** -0.5
        assert pair.B.shape[1] == 64
        assert not pair.B.any()
        assert 0.95 * bound < float(pair.A.abs().max()) <= bound
        assert float(pair.A.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert torch.equal(pair.A, same[name].A)
        assert not torch.equal(pair.A, other[name].A)
