"""The README.md of a checkpoint: read back by the hub's own library."""

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from runs import SmokeRun

from llm_forgetting.files import from_plain
from llm_forgetting.models.language.backbones import backbone_location
from llm_forgetting.report.model_card import card, write_cards
from llm_forgetting.results import Results


def metrics(content: ModelCard, task: str, split: str) -> dict[str, Any]:
    return {
        found.metric_type: found.metric_value
        for found in content.data.eval_results or []
        if (found.dataset_config, found.dataset_split) == (task, split)
    }


def test_every_checkpoint_of_a_run_has_a_card_with_its_scores_forgetting_and_flatness(smoke_run: SmokeRun) -> None:
    results = smoke_run.results
    for k in (1, 2):
        loaded = ModelCard.load(smoke_run.path / f"checkpoint_after_task{k}" / "README.md")
        assert loaded.data.to_dict()["library_name"] == "peft"
        found = metrics(loaded, "synthetic_1", "train")
        assert found["accuracy"] == results["forgetting"]["train"]["accuracy"]["cells"][k][0]["value"]
        assert found["forgetting_loss"] == results["forgetting"]["train"]["loss"]["tasks"][0]["absolute"]["value"]
        surface = results["landscapes"][f"after_task{k}"]["surfaces"]["synthetic_1"]
        assert found["mean_rise"] == surface["mean_rise"]["value"]
        assert found["curvature"] == surface["metrics"]["curvature_centre"]
        assert results["answer"] in loaded.text
        assert "More Information Needed" not in loaded.content
    assert "mean_rise" not in metrics(loaded, "synthetic_1", "test")
    assert "forgetting_loss" not in metrics(loaded, "synthetic_2", "train")


def test_a_card_names_its_base_model_and_data_only_by_what_the_hub_knows(smoke_run: SmokeRun) -> None:
    def data(name: str, **source: Any) -> Any:
        results = copy.deepcopy(smoke_run.results)
        results["model"]["name"] = results["config"]["model"]["name"] = name
        results["config"]["data"].update(source)
        return ModelCard(card(from_plain(Results, results), 2)).data

    assert data("synthetic").base_model is None
    assert data("synthetic").datasets is None
    assert data("/models/mine").base_model is None
    found = data("embedded", source="embedded")
    assert (found.base_model, found.datasets) == (None, ["cais/mmlu"])  # the hub's weights are others
    found = data("meta-llama/Llama-2-7b-hf", source="hub", path="me/questions")
    assert (found.base_model, found.datasets) == ("meta-llama/Llama-2-7b-hf", ["me/questions"])


@pytest.mark.parametrize("name", ["embedded", "synthetic"])
def test_the_code_of_a_card_loads_the_weights_that_were_measured(smoke_run: SmokeRun, name: str) -> None:
    results = copy.deepcopy(smoke_run.results)
    results["model"]["name"] = name
    text = card(from_plain(Results, results), 1)
    code = text.partition("```python\n")[2].partition("```")[0]
    assert f'backbone = backbone_location("{name}", print)' in code
    assert "HuggingFaceTB" not in text
    compile(code, "card", "exec")
    assert callable(backbone_location)
    assert ("SmolLM2-135M-Instruct (Q4_1, dequantised)" in text) == (name == "embedded")


def test_a_card_is_for_the_last_checkpoint_what_all_earlier_tasks_lost(smoke_run: SmokeRun) -> None:
    alone = copy.deepcopy(smoke_run.results)
    assert "| synthetic 1 | training items | accuracy |" in card(from_plain(Results, alone), 2)
    for split in alone["forgetting"].values():
        for measure in ("accuracy", "loss"):
            split[measure]["tasks"] = []
    assert "nothing could be forgotten" in card(from_plain(Results, alone), 2)


def test_cards_go_only_where_checkpoints_are(smoke_run: SmokeRun, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_after_task2").mkdir()
    write_cards(from_plain(Results, smoke_run.results), tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "checkpoint_after_task2",
        "checkpoint_after_task2/README.md",
    ]


@pytest.mark.parametrize("space", ["adapter", "weight", "raw"])
def test_a_card_says_in_which_coordinates_it_is_flat(smoke_run: SmokeRun, space: str) -> None:
    results = copy.deepcopy(smoke_run.results)
    results["landscapes"]["after_task1"]["space"] = space
    words = {"adapter": "do not depend", "weight": "filter-normalised", "raw": "not comparable"}
    assert words[space] in card(from_plain(Results, results), 1)
