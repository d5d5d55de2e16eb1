"""Whole runs on quantised backbones, in this process, recomputed with plain PEFT on dequantised weights."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from runs import TINY
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.jobs import steps_of
from llm_forgetting.experiment.session import Session
from llm_forgetting.models.language.backbones import synthetic_backbone
from llm_forgetting.progress import Silent
from llm_forgetting.report.model_card import _LOADED

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]
SMALL: dict[str, Any] = {
    **TINY,
    "data": {**TINY["data"], "train_items": 8, "test_items": 4},
    "training": {"batch_size": 4, "num_epochs": 2, "learning_rate": 0.01},
    "evaluation": {"rotations": False, "recovery_items": 0},
    "landscape": {**TINY["landscape"], "directions": 2, "num_items": 4, "self_test_items": 2},
    "curvature": {
        "spectrum": True, "lanczos_steps": 3, "eigenvalues": 1, "density_runs": 0, "trace_probes": 2, "weight_probes": 2,
        "power_steps": 1, "ascent_steps": 1, "sharpness_directions": 2,
    },
    "output": {"figures": False},
}  # fmt: skip


def losses(model: Any, items: Any) -> list[float]:
    """-log p(answer) one item at a time, by transformers' ordinary forward."""
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([item.input_ids])).logits[0, -1] for item in items]
    answers = [torch.tensor(item.letter_ids[item.item.answer]) for item in items]
    return [float(F.cross_entropy(row, answer)) for row, answer in zip(logits, answers, strict=True)]


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_run_is_that_of_plain_peft_on_the_dequantised_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "cache"))
    config: ExperimentConfig = lf.Experiment(
        "smoke",
        **{
            **SMALL,
            "model": {"name": "synthetic", "quantization": kind},
            "evaluation": {**SMALL["evaluation"], "quantised": ["8bit", "4bit"]},
        },
    ).config
    run = lf.Experiment(config).run(tmp_path / "outputs", quiet=True)
    results, folder = run.content, run.folder

    settings = BitsAndBytesConfig(
        **({"load_in_8bit": True} if kind == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        synthetic_backbone(print), quantization_config=settings, dtype=torch.float32
    )
    plain = loaded.dequantize()
    encoded = Session(config, folder, Silent()).encoded
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    model = PeftModel.from_pretrained(plain, str(folder / "checkpoint_after_task1"), adapter_name="after_task1")
    model.load_adapter(str(folder / "checkpoint_after_task2"), adapter_name="after_task2")
    model.eval()
    for checkpoint in ("after_task1", "after_task2"):
        model.set_adapter(checkpoint)
        for task in encoded:
            told = [
                line["loss"] for line in lines
                if (line.get("checkpoint"), line.get("task"), line.get("split")) == (checkpoint, task.name, "test")
            ]  # fmt: skip
            assert told == pytest.approx(losses(model, task.test), abs=1e-5)
    path = results["paths"][0]
    t = path["nodes"][5]
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            for name, share in (("after_task1", 1 - t), ("after_task2", t)):
                layer.get_base_layer().weight += share * layer.get_delta_weight(name)
    chosen = {item.item.id: item for item in encoded[0].train}
    items = [chosen[name] for name in results["tasks"][0]["landscape_items"]]
    with model.disable_adapter():
        expected = sum(losses(model, items)) / len(items)
    assert path["tasks"]["synthetic_1"]["at_nodes"]["loss"][5] == pytest.approx(expected, abs=1e-5)

    assert results["versions"]["bitsandbytes"] == bitsandbytes.__version__
    assert results["model"]["quantization"].startswith(f"bitsandbytes {kind}")
    assert results["model"]["arithmetic"] == "float32 products with dequantised weights, throughout"
    assert main(["report", str(folder)]) == 0
    for file in ("report.html", "results.md"):
        assert results["model"]["arithmetic"] in (folder / file).read_text()
    assert results["forecasts"]
    assert set(results["curvature"]) == {"after_task1", "after_task2"}

    card = (folder / "checkpoint_after_task1" / "README.md").read_text()
    assert "BitsAndBytesConfig(" + _LOADED[kind] in card
    assert f"Numbers are of {results['model']['arithmetic']}." in card

    # The base model's weights are those of `kind`, and rounded so again they stay.
    costs = {(c["checkpoint"], c["kind"], c["task"], c["split"]): c for c in results["quantised"]}
    assert len(costs) == 3 * 2 * 2 * 2
    assert abs(costs["initial", kind, "synthetic_1", "train"]["loss"]["value"]) < 1e-5
    other = "8bit" if kind == "4bit" else "4bit"
    assert {f"{name}_quantised" for name in ("evaluate_initial", "evaluate_after_task1", "evaluate_after_task2")} <= {
        step.phase.name for step in steps_of(config)
    }  # which workers take, too
    assert abs(costs["initial", other, "synthetic_1", "train"]["loss"]["value"]) > 1e-5
    assert "What quantisation costs (nats)" in (folder / "results.md").read_text()
    if kind == "8bit":
        return
    again = lf.Experiment.resume(folder, quiet=True)
    assert again.answer == run.answer
    tell = ["--model.quantization", kind, "--output_dir", str(tmp_path / "more")]
    synthetic = [
        "--task",
        "synthetic_1",
        "--data.source",
        "synthetic",
        "--data.train_items",
        "4",
        "--data.test_items",
        "4",
    ]
    cheap = ["--landscape.num_items", "2", "--landscape.directions", "2", "--landscape.self_test_items", "2"]
    assert main(["repair", str(folder)]) == 0
    checkpoint = str(folder / "checkpoint_after_task1")
    assert main(["evaluate", checkpoint, "--task", "synthetic_1", "--data.source", "synthetic", *tell]) == 0
    assert main(["landscape", checkpoint, *synthetic, *tell, *cheap]) == 0
