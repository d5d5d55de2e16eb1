"""A LoRA model under transformers' Trainer: flatness during training, the training trajectory, and the final surface.

A random two-layer Llama learns to count. Its batches are the dicts that Trainer itself uses. Nothing is downloaded. Printed:
flatness at every measurement, the recorded points on the plane through three of them, the surface's measured error. Written:
the surface and the trajectory as JSON, and the adapter in PEFT's format.

    python examples/own_lora_model.py outputs/own_lora_model
"""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

import llm_forgetting as lf

WORDS, LENGTH = 16, 12


def sequences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Items that count upwards in steps of 1 to 3; the first two tokens are not labels."""
    random = torch.Generator().manual_seed(seed)
    starts, steps = (torch.randint(low, high, (count, 1), generator=random) for low, high in ((0, WORDS), (1, 4)))
    ids = (starts + steps * torch.arange(LENGTH)) % WORDS
    labels = ids.clone()
    labels[:, :2] = -100  # the step is known from the second token on
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One dict batch."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def model() -> Any:
    """A random base model with a fresh adapter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.05, task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), lora)


def main(folder: Path) -> None:
    """Train with the callback, then scan the final surface."""
    train, held_out = sequences(128, seed=1), sequences(32, seed=2)
    batches = {"train": [collate(train[:32])], "held_out": [collate(held_out[:20]), collate(held_out[20:])]}
    adapted = model()
    callback = lf.FlatnessCallback(None, batches, every=8, directions=4, folder=folder / "trajectory")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=16, num_train_epochs=4, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(model=adapted, args=arguments, train_dataset=train, data_collator=collate, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for entry in trainer.state.log_history:
        if "landscape/held_out/mean_rise" in entry:
            print(
                f"step {entry['step']:>3}: held-out loss {entry['landscape/held_out/loss']:.3f}, "
                f"mean rise {entry['landscape/held_out/mean_rise']:.3f} ± {entry['landscape/held_out/mean_rise_stderr']:.3f}, "
                f"adapter norm {entry['landscape/held_out/norm']:.2f}"
            )
    way = callback.project()["held_out"]
    for step, (a, b), residual, true, image in zip(
        way.steps, way.coordinates, way.residuals, way.losses, way.in_plane_losses, strict=True
    ):
        print(
            f"step {step:>3} at ({a:.2f}, {b:.2f}), {residual:.2f} off the plane: loss {true:.3f}, on the plane {image:.3f}"
        )
    surface = lf.scan_plane(adapted, None, batches["held_out"], distance=0.5, max_evaluations=120)
    print(
        f"surface: {surface.evaluations} evaluations, measured error {surface.error:.4f} nats, "
        f"{'converged' if surface.converged else 'not converged'}"
    )
    way.save_json(folder / "trajectory.json")
    surface.save_json(folder / "surface.json")
    adapted.save_pretrained(folder / "adapter")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/own_lora_model"))
