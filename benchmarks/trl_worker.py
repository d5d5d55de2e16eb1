"""TRL's SFTTrainer in a process of its own, offline, for `make bench-completions`.

    python trl_worker.py trl CASE

It runs in the peers' environment and knows nothing of our package. CASE is a folder with case.json (backbone, threads, chat
template), an adapter, and NAME.jsonl per set of items in TRL's formats.
"""

import json
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import load_dataset
from peft import PeftModel
from safetensors.torch import save_file
from serving import serve
from transformers import AutoModelForCausalLM, AutoTokenizer


class Trl:
    """The trainer on one set of items after the other."""

    def __init__(self, folder: Path) -> None:
        self.case = json.loads((folder / "case.json").read_text())
        torch.set_num_threads(self.case["threads"])
        self.folder = folder

    def loss(self, name: str, assistant_only: bool) -> dict[str, Any]:
        """Mean loss of all items in one padded batch, how many tokens it is of; the gradient in NAME.safetensors."""
        backbone: Any = AutoModelForCausalLM.from_pretrained(self.case["backbone"], dtype=torch.float32)
        model = PeftModel.from_pretrained(backbone, str(self.folder / "adapter"), is_trainable=True)
        tokenizer = AutoTokenizer.from_pretrained(self.case["backbone"])
        tokenizer.chat_template = self.case["chat_template"]
        data = load_dataset("json", data_files=str(self.folder / f"{name}.jsonl"), split="train")
        arguments = trl.SFTConfig(
            output_dir=str(self.folder / "trl"), per_device_train_batch_size=len(data), assistant_only_loss=assistant_only,
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, shuffle_dataset=False,
        )  # fmt: skip
        trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        (batch,) = list(trainer.get_train_dataloader())
        model.eval()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        gradient = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        save_file(gradient, self.folder / f"{name}.safetensors")
        return {"loss": float(loss.detach()), "tokens": int((batch["labels"][:, 1:] >= 0).sum())}


if __name__ == "__main__":
    serve({"trl": Trl}, ("trl", "torch", "transformers", "peft"))
