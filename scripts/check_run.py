"""Recompute a finished run from its saved adapters and item ids with plain transformers and PEFT, and compare.

    python scripts/check_run.py outputs/experiment_... [--mmlu FOLDER_OF_THE_ORIGINAL_CSV_FILES]

Checks, to 1e-3: every R cell (accuracy and loss of every checkpoint on every task and split), and some points of every
loss surface, all in one item at a time, without padding, batching, or any code of the package. The directions are
redrawn from their definition (docs/results.md). Exit status 0 if everything agrees, 1 if not.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-3
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def main() -> int:
    """Compare and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "--mmlu", type=Path, help="the original MMLU folder (dev/val/test CSV); default: the cached sample"
    )
    parser.add_argument(
        "--model", type=Path, help="the backbone's folder; default: the cache, or the name in results.json"
    )
    parser.add_argument("--points", type=int, default=3, help="points to recompute per surface (default 3)")
    given = parser.parse_args()
    results = json.loads((given.run / "results.json").read_text())
    records = [json.loads(line) for line in (given.run / "items.jsonl").read_text().splitlines()]
    questions = read_original(given.mmlu) if given.mmlu else read_cached_sample()
    location = given.model or backbone_folder(results["model"]["name"])
    tokenizer = AutoTokenizer.from_pretrained(location)
    backbone = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32).eval()
    ask = Examiner(tokenizer, questions)
    worst = max(
        check_matrix(given.run, results, records, backbone, ask),
        check_surfaces(given.run, results, location, given.points, ask),
    )
    agreed = worst <= TOLERANCE
    print(f"largest difference {worst:.1e}: {'agrees' if agreed else 'DOES NOT AGREE'} to {TOLERANCE:g}")
    return 0 if agreed else 1


def cache_folder() -> Path:
    """Where the embedded model and data are."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("LLM_FORGETTING_CACHE") or user_cache_path("llm-forgetting"))


def backbone_folder(name: str) -> Path | str:
    """The folder or hub name of the backbone."""
    return cache_folder() / "SmolLM2-135M-Instruct" if name == "embedded" else name


def read_original(folder: Path) -> dict[str, tuple[str, list[str], int]]:
    """id -> question, choices, answer of the original CSV files."""
    found = {}
    for split in ("val", "test"):
        for file in sorted((folder / split).glob("*.csv")):
            subject = file.name.removesuffix(f"_{split}.csv")
            with file.open(encoding="utf-8", newline="") as stream:
                for row, cells in enumerate(csv.reader(stream)):
                    found[f"{subject}/{split}/{row}"] = (cells[0], cells[1:5], LETTERS.index(cells[5].strip()))
    return found


def read_cached_sample() -> dict[str, tuple[str, list[str], int]]:
    """id -> question, choices, answer of the embedded sample."""
    index = Path(__file__).resolve().parents[1] / "src/llm_forgetting/data/mmlu_sample_index.csv"
    (sample,) = [path for path in cache_folder().iterdir() if path.suffix == ".jsonl"]
    found = {}
    with index.open(newline="") as labels, sample.open(encoding="utf-8") as lines:
        for label, line in zip(csv.DictReader(labels), lines, strict=True):
            row = json.loads(line)
            choices = re.fullmatch(r"A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)", row["options"], re.DOTALL).groups()
            identity = f"{label['subject']}/test/{label['test_row']}"
            found[identity] = (row["question"], list(choices), LETTERS.index(row["answer"][0]))
    return found


@dataclass(frozen=True)
class Examiner:
    """Asks a model one item, by id."""

    tokenizer: Any
    questions: dict[str, tuple[str, list[str], int]]

    def __call__(self, model, identity) -> tuple[float, bool]:
        """Loss (nats) of the answer letter over the full vocabulary, and whether the largest letter is the answer."""
        question, choices, answer = self.questions[identity]
        options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
        subject = identity.split("/")[0].replace("_", " ")
        description = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        prompt = f"{description}{question.strip()}\n{options}Answer:"
        letters = [self.tokenizer(f"{prompt} {letter}")["input_ids"][-1] for letter in LETTERS[: len(choices)]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([self.tokenizer(prompt)["input_ids"]])).logits[0, -1].double()
        return float(logits.logsumexp(0) - logits[letters[answer]]), int(logits[letters].argmax()) == answer


def check_matrix(run, results, records, backbone, ask) -> float:
    """Largest difference over all R cells."""
    worst = 0.0
    checkpoints = results["forgetting"]["train"]["checkpoints"]
    model = backbone
    for i, checkpoint in enumerate(checkpoints):
        if i == 1:
            model = PeftModel.from_pretrained(backbone, run / f"checkpoint_{checkpoint}").eval()
        elif i > 1:
            model.load_adapter(run / f"checkpoint_{checkpoint}", adapter_name=checkpoint)
            model.set_adapter(checkpoint)
        for j, task in enumerate(results["task_names"]):
            for split in ("train", "test"):
                ids = [item["id"] for item in results["tasks"][j]["splits"][split]]
                cell = (checkpoint, task, split)
                recorded = {r["id"]: r for r in records if (r["checkpoint"], r["task"], r["split"]) == cell}
                found = [ask(model, identity) for identity in ids]
                losses, correct = zip(*found, strict=True)
                cells = results["forgetting"][split]
                differences = {
                    "loss": abs(sum(losses) / len(ids) - cells["loss"]["cells"][i][j]["value"]),
                    "accuracy": abs(sum(correct) / len(ids) - cells["accuracy"]["cells"][i][j]["value"]),
                    "item": max(
                        abs(loss - recorded[identity]["loss"]) for identity, loss in zip(ids, losses, strict=True)
                    ),
                }
                said = "  ".join(f"{name} {value:.1e}" for name, value in differences.items())
                print(f"R {checkpoint:12} {task:20} {split:5}  {said}")
                worst = max(worst, *differences.values())
    return worst


def stream_seed(*purpose: object) -> int:
    """The documented 63-bit seed of a named stream."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, purpose)).encode()).digest()[:8], "big") >> 1


def gaussian(seed: int, rows: int, columns: int) -> torch.Tensor:
    """The documented normal matrix: one generator, 256 rows at a time."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(256, rows - start) for start in range(0, rows, 256)]
    return torch.cat([torch.randn(size, columns, generator=generator) for size in sizes])


def check_surfaces(run, results, location, points, ask) -> float:
    """Largest difference over some points of every loss surface."""
    worst, seed = 0.0, results["config"]["landscape"]["seed"]
    for checkpoint, landscape in results["landscapes"].items():
        model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, run / f"checkpoint_{checkpoint}").eval()
        adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
        layers = {name.removeprefix("base_model.model."): module for name, module in adapted}
        base, directions = {}, [{}, {}]
        for name, layer in layers.items():
            scale = layer.scaling["default"]
            update = (
                scale
                * layer.lora_B["default"].weight.detach().double()
                @ layer.lora_A["default"].weight.detach().double()
            )
            rank = layer.lora_A["default"].weight.shape[0]
            U, S, Vh = torch.linalg.svd(update, full_matrices=False)
            U, root, V = U[:, :rank], S[:rank].sqrt(), Vh[:rank].T
            base[name] = (U * root, root[:, None] * V.T)
            for index in range(2):
                rows, columns = update.shape
                G1 = gaussian(stream_seed(seed, "direction", index, name, "B"), rows, columns).double()
                G2 = gaussian(stream_seed(seed, "direction", index, name, "A"), rows, columns).double()
                directions[index][name] = (G1 @ V * root / rows**0.5, root[:, None] * (U.T @ G2) / columns**0.5)
        d, e = directions
        e = added(e, d, -inner(d, e) / inner(d, d))
        length = landscape["reference_norm"]
        print(f"|P| {checkpoint:12} {abs(inner(base, base) ** 0.5 - landscape['adapter_norm']):.1e}")
        d, e = (added(f, f, length / inner(f, f) ** 0.5 - 1) for f in (d, e))
        size = len(landscape["alphas"])
        for n in range(points):
            i, j = stream_seed("point", n, "i") % size, stream_seed("point", n, "j") % size
            moved = added(added(base, d, landscape["alphas"][i]), e, landscape["betas"][j])
            for name, layer in layers.items():
                layer.lora_B["default"].weight.data = (moved[name][0] / layer.scaling["default"]).float()
                layer.lora_A["default"].weight.data = moved[name][1].float()
            for task, surface in landscape["surfaces"].items():
                losses = [ask(model, identity)[0] for identity in surface["items"]]
                difference = abs(sum(losses) / len(losses) - surface["loss"][i][j])
                print(f"L {checkpoint:12} {task:20} [{i}, {j}]  {difference:.1e}")
                worst = max(worst, difference)
    return worst


def inner(d: dict, e: dict) -> float:
    """Frobenius inner product over all modules and both factors."""
    return float(sum((d[name][k] * e[name][k]).sum() for name in d for k in (0, 1)))


def added(d: dict, e: dict, factor: float) -> dict:
    """d + factor e."""
    return {name: tuple(x + factor * y for x, y in zip(d[name], e[name], strict=True)) for name in d}


if __name__ == "__main__":
    sys.exit(main())
