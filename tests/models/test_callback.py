"""Flatness during somebody's own training with transformers' Trainer, which must not notice."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import tiny_llama
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

import llm_forgetting as lf
from llm_forgetting.models.adapter.adapted_model import AdaptedModel

pytestmark = pytest.mark.usefixtures("one_thread")


def lora_model() -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(tiny_llama(), config)


class Classifier(torch.nn.Module):
    """A plain module with a frozen layer, batch normalisation and dropout, called as Trainer calls models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 6),
            torch.nn.BatchNorm1d(6),
            torch.nn.Tanh(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(6, 2),
        )
        self.layers[0].requires_grad_(False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def classifier_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch)["loss"]  # type: ignore[no-any-return]


def items(kind: str, count: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    if kind == "lora":
        ids = torch.randint(3, 90, (count, 6), generator=generator)
        return [{"input_ids": row, "labels": row} for row in ids]
    x, y = torch.randn(count, 3, generator=generator), torch.randint(2, (count,), generator=generator)
    return [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def batches(kind: str) -> list[dict[str, torch.Tensor]]:
    rows = items(kind)
    return [collate(rows[:5]), collate(rows[5:8])]


LOSSES: dict[str, Any] = {"lora": None, "plain": classifier_loss}


def trained(kind: str, folder: Path, callback: Any = None) -> tuple[Any, Trainer]:
    """Two epochs of three steps; the items' order and dropout are random."""
    model = lora_model() if kind == "lora" else Classifier()
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=0.05, seed=3,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=items(kind), data_collator=collate,  # type: ignore[arg-type]
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("kind", ["lora", "plain"])
@pytest.mark.slow
def test_training_is_the_same_with_and_without(kind: str, tmp_path: Path) -> None:
    # A loader draws a seed of its own from torch's global stream whenever it is gone through.
    loader = DataLoader(items(kind, 8), batch_size=5, collate_fn=collate)  # type: ignore[arg-type, var-annotated]
    callback = lf.FlatnessCallback(LOSSES[kind], loader, every=1, directions=2)
    (alone, quiet), (watched, trainer) = (trained(kind, tmp_path, c) for c in (None, callback))
    expected, found = alone.state_dict(), watched.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [p.requires_grad for p in watched.parameters()] == [p.requires_grad for p in alone.parameters()]
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (quiet, trainer)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert [record.step for record in callback.recorded] == list(range(7))


@pytest.mark.parametrize("kind", ["lora", "plain"])
def test_what_is_logged_is_flatness_at_that_step(kind: str, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    callback = lf.FlatnessCallback(
        LOSSES[kind], batches(kind), every=2, directions=3, distance=0.4, seed=1, log=told.append
    )
    model, trainer = trained(kind, tmp_path, callback)
    entries = [entry for entry in trainer.state.log_history if "landscape/mean_rise" in entry]
    # A fresh adapter has no directions; it is recorded, not measured.
    assert [entry["step"] for entry in entries] == ([2, 4, 6] if kind == "lora" else [0, 2, 4, 6])
    assert [record.flatness is None for record in callback.recorded] == [kind == "lora", False, False, False]
    now = lf.flatness(model, LOSSES[kind], batches(kind), directions=3, distance=0.4, seed=1)
    assert now.log().items() <= entries[-1].items()
    assert [set(entry) - {"step", "epoch"} for entry in entries] == [set(numbers) for numbers in told]
    saved = tmp_path / "state.json"
    trainer.state.save_to_json(str(saved))
    assert [e for e in TrainerState.load_from_json(str(saved)).log_history if "landscape/mean_rise" in e] == entries


def test_tasks_epochs_and_a_folder(tmp_path: Path) -> None:
    tasks = {"old": batches("lora")[:1], "new": batches("lora")[1:]}
    callback = lf.FlatnessCallback(
        None, tasks, unit="epochs", every=1, directions=2, folder=tmp_path / "way", reference_norm=5.0
    )
    model, trainer = trained("lora", tmp_path, callback)
    entries = [entry for entry in trainer.state.log_history if "landscape/old/mean_rise" in entry]
    assert [entry["epoch"] for entry in entries] == [1.0, 2.0]
    assert "landscape/new/loss" in entries[0]
    files = sorted(path.name for path in (tmp_path / "way").iterdir())
    assert files == ["step_00000000.safetensors", "step_00000003.safetensors", "step_00000006.safetensors"]
    last = load_file(tmp_path / "way" / files[-1])
    assert all(torch.equal(last[name], tensor) for name, tensor in AdaptedModel(model).adapter_state().items())
    flatness = callback.recorded[-1].flatness
    assert flatness is not None
    assert flatness["old"].along.units == (5.0, 5.0)
    way = callback.project()
    assert set(way) == {"old", "new"}
    assert way["old"].steps.tolist() == [0, 3, 6]


def test_of_completions_the_loss_is_that_per_token_that_is_learnt(tmp_path: Path) -> None:
    """Prompts are masked in the labels, and batches hold different numbers of tokens that are not."""
    rows = items("lora", 8)
    for n, row in enumerate(rows):
        row["labels"] = torch.where(torch.arange(6) < 1 + n % 4, -100, row["labels"])
    callback = lf.FlatnessCallback(None, [collate(rows[:5]), collate(rows[5:8])], every=6, directions=2)
    model, trainer = trained("lora", tmp_path, callback)
    (entry,) = (entry for entry in trainer.state.log_history if "landscape/loss" in entry)
    model.eval()
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row["input_ids"][None]).logits[0, :-1]
            losses.append(F.cross_entropy(logits, row["labels"][1:], reduction="none")[row["labels"][1:] >= 0])
    assert entry["landscape/loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def vector(kind: str, model: Any, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """delta W, or the parameters, as one vector."""
    if kind == "plain":
        return torch.cat([state[name].reshape(-1) for name, p in model.named_parameters() if p.requires_grad])
    update = AdaptedModel(model).update_of(state)
    return torch.cat([(pair.B @ pair.A).reshape(-1) for pair in update.values()])


@pytest.mark.parametrize("kind", ["lora", "plain"])
def test_the_trajectory_lies_where_dense_vectors_say(kind: str, tmp_path: Path) -> None:
    callback = lf.FlatnessCallback(LOSSES[kind], batches(kind), every=2, directions=2)
    model, _ = trained(kind, tmp_path, callback)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    way = callback.project()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    vectors = [vector(kind, model, record.state).double() for record in callback.recorded]
    origin, u, v = vectors[0], vectors[2] - vectors[0], vectors[3] - vectors[0]  # first, middle, last of four
    u = u / u.norm()
    v = v - (v @ u) * u
    v = v / v.norm()
    for k, x in enumerate(vectors):
        a, b = float((x - origin) @ u), float((x - origin) @ v)
        assert way.coordinates[k] == pytest.approx([a, b], abs=1e-4)
        assert way.residuals[k] == pytest.approx(float((x - origin - a * u - b * v).norm()), abs=1e-3)
    assert list(way.checkpoints) == ["step_0", "step_4", "step_6"]
    assert way.residuals[1] > 0.05
    for record, loss in zip(callback.recorded, way.losses, strict=True):
        if record.flatness is not None:
            assert loss == pytest.approx(record.flatness[""].centre, rel=1e-4)
    corners = [0, 2, 3]
    assert way.in_plane_losses[corners] == pytest.approx(way.losses[corners], rel=1e-4)
    assert abs(way.in_plane_losses[1] - way.losses[1]) > 1e-4
    chosen = callback.project(checkpoints={f"p{k}": callback.recorded[k].state for k in (0, 1, 3)})
    assert chosen.residuals[1] == pytest.approx(0.0, abs=1e-3)
    way.save_json(tmp_path / "way.json")
    assert json.loads((tmp_path / "way.json").read_text())["losses"] == way.losses.tolist()
    assert np.isfinite(way.losses).all()


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(lf.UserError, match="every must be at least 1"):
        lf.FlatnessCallback(None, [], every=0)
    callback = lf.FlatnessCallback(None, batches("lora"))
    with pytest.raises(lf.UserError, match=r"needs three recorded points .* there are 0; train first"):
        callback.project()
    spread = SimpleNamespace(deepspeed=None, fsdp=["full_shard"])
    with pytest.raises(lf.UserError, match="DeepSpeed and FSDP spread them"):
        callback.on_train_begin(spread, TrainerState(), None, model=lora_model())
