"""Your own intervention in your own training script: does it protect the old task, and is that related to flatness?

A random two-layer Llama learns one counting task after another with LoRA under transformers' Trainer, either plainly or with
distillation towards its predictions before task 2, on unlabelled sequences. Six pairs of tasks; both arms share task 1.
Printed: forgetting and learning of both arms, the forecast from slope and curvature, flatness after both tasks. Written: every
run as a record. `llm-forgetting study --records FILE --folder DIR` writes the report of a study from these records.

    python examples/own_intervention.py outputs/own_intervention
"""

import copy
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

import llm_forgetting as lf

Batch = dict[str, torch.Tensor]
TASKS, NUMBERS, LENGTH = 6, 12, 8
SEEDS = (0,)  # a claim needs several
ARMS = ("plain", "distilled")
ANALYSIS = {
    "primary": "mean_rise",
    "measures": ["mean_rise", "second_order", "update_norm"],
    "given": [["update_norm"]],
    "baseline": "plain",
    "controls": ["distilled"],  # shares its checkpoint after task 1 with `plain`: not an independent sample of flatness
}


def counting(task: int, count: int, seed: int) -> list[Batch]:
    """Items that begin with the task's token and count in the task's steps, modulo NUMBERS."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randint(0, NUMBERS, (count, 1), generator=random)
    ids = torch.cat(
        [torch.full((count, 1), NUMBERS + task), (start + (2 * task + 1) * torch.arange(LENGTH)) % NUMBERS], 1
    )
    labels = ids.clone()
    labels[:, :2] = -100  # the task and its first number cannot be predicted
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def collate(items: list[Batch]) -> Batch:
    """One dict batch."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


class Distilled(Trainer):
    """The intervention: KL from the predictions of `before` to the model's predictions, on unlabelled sequences."""

    before: torch.nn.Module | None = None
    unlabelled: torch.Tensor
    strength = 1.0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The task's loss, plus the KL term if there is a `before`."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.before is None:
            return loss
        with torch.no_grad():
            kept = self.before(input_ids=self.unlabelled).logits.log_softmax(-1)
        said = model(input_ids=self.unlabelled).logits.log_softmax(-1)
        return loss + self.strength * F.kl_div(said, kept, log_target=True, reduction="none").sum(-1).mean()


def train(
    model: Any,
    items: list[Batch],
    folder: Path,
    *,
    seed: int,
    arm: str = "plain",
    watch: lf.FlatnessCallback | None = None,
) -> None:
    """Fine-tune on one task with a fresh optimiser."""
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=16, num_train_epochs=6, learning_rate=2e-2,
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=seed,
    )  # fmt: skip
    trainer = Distilled(model=model, args=arguments, train_dataset=items, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    if watch is not None:
        trainer.add_callback(watch)
    if arm == "distilled":
        trainer.before = copy.deepcopy(model).eval()
        trainer.unlabelled = torch.randint(0, NUMBERS, (64, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
        trainer.unlabelled[:, 0] = NUMBERS + torch.arange(64) % TASKS
    trainer.train()


def fresh(seed: int) -> Any:
    """A random base model, the same for all runs, with a fresh adapter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUMBERS + TASKS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    backbone = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    return get_peft_model(backbone, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))


def adapter(model: Any) -> Batch:
    """A copy of the current adapter."""
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def pair_of_runs(old: int, new: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Both arms on one pair of tasks, as records; they share the checkpoint after task 1."""
    model = fresh(seed)
    items = {"old": counting(old, 48, seed), "new": counting(new, 48, seed + 100)}
    batches = {name: [collate(task)] for name, task in items.items()}
    train(model, items["old"], folder, seed=seed)
    after_old = adapter(model)
    flat = lf.flatness(model, None, batches, directions=4, distance=0.5)
    for arm in ARMS:
        set_peft_model_state_dict(model, after_old)
        watch = lf.FlatnessCallback(
            None, batches, every=12, directions=4, distance=0.5, reference_norm=flat["old"].along.norm
        )
        train(model, items["new"], folder, seed=seed, arm=arm, watch=watch)
        after_new = watch.recorded[-1].flatness
        assert after_new is not None
        set_peft_model_state_dict(model, after_old)
        step = lf.forecast(
            model, None, batches["old"], direction=lf.checkpoint_difference(model, after_old, watch.recorded[-1].state)
        )
        forgotten = after_new["old"].centre - flat["old"].centre
        yield {
            "cell": f"{old}-{new}-{seed}-{arm}",
            "pair": f"task {old} > task {new}",
            "tasks": [f"task {old}", f"task {new}"],
            "factors": {"seed": seed},
            "arm": arm,
            "measures": {
                "mean_rise": flat["old"].mean_rise,
                "second_order": step.second_order,
                "update_norm": step.distance,
            },
            "outcomes": {
                "forgetting_loss": forgotten,
                "observed": step.observed,
                "retention_loss": after_new["old"].centre,
                "learning_loss": flat["new"].centre - after_new["new"].centre,
                "mean_rise_after": after_new["old"].mean_rise,
            },
            "stderrs": {
                "mean_rise": flat["old"].mean_rise_stderr,
                "mean_rise_after": after_new["old"].mean_rise_stderr,
            },
            "versions": {"torch": torch.__version__},
        }


def main(folder: Path) -> None:
    """All runs, their means, one surface, the records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        record
        for old, new in ((old, (old + 1) % TASKS) for old in range(TASKS))  # pairs that share a first task count as one
        for seed in SEEDS
        for record in pair_of_runs(old, new, seed, folder)
    ]
    for arm in ARMS:
        of_arm = [record for record in records if record["arm"] == arm]

        def mean(name: str, runs: list[dict[str, Any]] = of_arm) -> float:
            return sum({**run["measures"], **run["outcomes"]}[name] for run in runs) / len(runs)

        print(
            f"{arm}: {len(of_arm)} runs forgot {mean('forgetting_loss'):+.2f} nats (forecast {mean('second_order'):+.2f}) "
            f"and learnt {mean('learning_loss'):+.2f} nats of task 2"
        )
        print(f"{arm}: mean rise {mean('mean_rise'):.2f} after task 1, {mean('mean_rise_after'):.2f} after task 2")
    model, items = fresh(0), counting(0, 48, 0)
    train(model, items, folder, seed=0)
    surface = lf.scan_plane(model, None, [collate(items)], distance=0.25, max_evaluations=120)
    print(f"surface after task 1: {surface.evaluations} evaluations, measured error {surface.error:.4f} nats")
    surface.save_json(folder / "surface.json")
    stored = {
        "name": "own_intervention",
        "study": {},
        "planned": len(records),
        "arms": ARMS,
        "analysis": ANALYSIS,
        "failures": {},
        "records": records,
    }
    (folder / "records.json.gz").write_bytes(gzip.compress(json.dumps(stored).encode()))
    print(f"llm-forgetting study --records {folder / 'records.json.gz'} --folder {folder / 'study'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/own_intervention"))
