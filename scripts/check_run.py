"""Recompute a finished run from its saved adapters and item ids with plain transformers and PEFT, and compare.

    python scripts/check_run.py outputs/experiment_... [--mmlu FOLDER_OF_THE_ORIGINAL_CSV_FILES]

Checks, to 1e-3: every R cell (accuracy and loss of every checkpoint on every task and split), and some of the points that
were evaluated for every loss surface, for the paths between the checkpoints and for the plane through them; and that cells
of fitted surfaces, which were not evaluated, are off by no more than three times the error that is printed beside them. All
in one item at a time, without padding, packing, batching, or any code of the package. The directions are redrawn from their
definition (docs/results.md). Exit status 0 if everything agrees, 1 if not.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

TOLERANCE = 1e-3
# A measured error is the largest at a few random points; elsewhere it may be this many times larger.
SLACK = 3
# What float32 leaves of a mean loss computed in another order, nats.
ROUNDING = 2e-5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LossesAt = Callable[[float, float], dict[str, float]]


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
    parser.add_argument("--points", type=int, default=2, help="evaluated points to recompute per surface (default 2)")
    parser.add_argument("--cells", type=int, default=2, help="fitted cells to recompute per surface (default 2)")
    given = parser.parse_args()
    results = with_arrays(json.loads((given.run / "results.json").read_text()), given.run)
    records = [json.loads(line) for line in (given.run / "items.jsonl").read_text().splitlines()]
    questions = read_original(given.mmlu) if given.mmlu else read_cached_sample()
    location = given.model or backbone_folder(results["model"]["name"])
    tokenizer = AutoTokenizer.from_pretrained(location)
    backbone = load(location, results).eval()
    ask = Examiner(tokenizer, questions)
    worst = check_matrix(given.run, results, records, backbone, ask)
    measured, fitted = check_surfaces(given.run, results, location, (given.points, given.cells), ask)
    worst = max(worst, measured, check_between(given.run, results, location, given.points, ask))
    print(f"largest difference {worst:.1e}: {'agrees' if worst <= TOLERANCE else 'DOES NOT AGREE'} to {TOLERANCE:g}")
    print(
        f"largest error of a fitted cell {fitted:.2f} times the one printed: "
        f"{'as' if fitted <= SLACK else 'NOT AS'} promised (at most {SLACK})"
    )
    return 0 if worst <= TOLERANCE and fitted <= SLACK else 1


def load(location: Path | str, results: dict) -> Any:
    """The backbone in float32; of a quantised one the plain model of its dequantised weights, which runs on a CPU are of."""
    kind = results["config"]["model"].get("quantization")
    if kind is None:
        return AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    options = {"load_in_8bit": True} if kind == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    settings = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(
        location, dtype=torch.float32, quantization_config=settings
    ).dequantize()


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
    (sample,) = cache_folder().glob("mmlu-sample-*.jsonl")
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


def with_arrays(value: Any, run: Path) -> Any:
    """results.json with the arrays of a long run, which are members of results.npz, in their places."""
    if isinstance(value, dict) and value.keys() == {"file", "key"}:
        with zipfile.ZipFile(run / value["file"]) as file:
            return np.lib.format.read_array(file.open(f"{value['key']}.npy")).tolist()
    if isinstance(value, dict):
        return {key: with_arrays(entry, run) for key, entry in value.items()}
    return [with_arrays(entry, run) for entry in value] if isinstance(value, list) else value


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
                recorded = {r["id"]: r for r in records if (r["checkpoint"], r.get("task"), r["split"]) == cell}
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


def draws(purpose: str, count: int, size: int) -> list[int]:
    """`count` numbers below `size`, always the same ones."""
    return [stream_seed(purpose, n) % size for n in range(count)]


def check_surfaces(run, results, location, counts, ask) -> tuple[float, float]:
    """Over some points of every loss surface: the largest difference from what was measured there, and over some cells that
    were fitted the largest difference as a multiple of the surface's printed error.
    """
    worst, worst_fit, (points, cells) = 0.0, 0.0, counts
    for checkpoint, landscape in results["landscapes"].items():
        if landscape["space"] != "adapter":
            print(f"L {checkpoint:12} not checked, its space is {landscape['space']}")
            continue
        model = load(location, results)
        model = PeftModel.from_pretrained(model, run / f"checkpoint_{checkpoint}").eval()
        losses_at = around(model, checkpoint, landscape, results["config"]["landscape"]["seed"], ask)
        for n in draws(f"point {checkpoint}", points, len(landscape["points"])):
            worst = max(worst, compare_point("L", checkpoint, n, landscape, losses_at))
        if landscape["fit"] is None:
            continue
        size = len(landscape["alphas"])
        for i, j in zip(draws(f"i {checkpoint}", cells, size), draws(f"j {checkpoint}", cells, size), strict=True):
            for task, found in losses_at(landscape["alphas"][i], landscape["betas"][j]).items():
                surface = landscape["surfaces"][task]
                difference, printed = abs(found - surface["loss"][i][j]), float(surface["error"]["largest"])
                print(f"F {checkpoint:12} {task:20} [{i}, {j}]  {difference:.1e}, error printed {printed:.1e}")
                worst_fit = max(worst_fit, difference / max(printed, ROUNDING))
    return worst, worst_fit


def around(model, checkpoint: str, landscape: dict, seed: int, ask) -> LossesAt:
    """The tasks' losses at (a, b) of the plane around the adapter of `model`, the directions drawn anew."""
    layers = adapted(model)
    base, directions = {}, [{}, {}]
    for name, layer in layers.items():
        update = update_of(layer, "default")
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

    def losses_at(a: float, b: float) -> dict[str, float]:
        moved = added(added(base, d, a), e, b)
        for name, layer in layers.items():
            layer.lora_B["default"].weight.data = (moved[name][0] / layer.scaling["default"]).float()
            layer.lora_A["default"].weight.data = moved[name][1].float()
        return losses(model, landscape["surfaces"], ask)

    return losses_at


def compare_point(kind: str, where: str, n: int, scan: dict, losses_at: LossesAt) -> float:
    """Largest difference over the tasks from what was measured at evaluated point number n of a scan."""
    differences = []
    for task, found in losses_at(*scan["points"][n]).items():
        differences.append(abs(found - float(scan["surfaces"][task]["measured_loss"][n])))
        print(f"{kind} {where:12} {task:20} point {n}  {differences[-1]:.1e}")
    return max(differences)


def losses(model, surfaces: dict, ask) -> dict[str, float]:
    """Mean loss of the model on every task's landscape items."""
    return {
        task: sum(ask(model, identity)[0] for identity in surface["items"]) / len(surface["items"])
        for task, surface in surfaces.items()
    }


def adapted(model) -> dict[str, Any]:
    """The adapted layers by their names in the backbone."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def update_of(layer, adapter: str) -> torch.Tensor:
    """delta W = s B A of one layer, (d_out, d_in), in float64."""
    B, A = layer.lora_B[adapter].weight.detach().double(), layer.lora_A[adapter].weight.detach().double()
    return layer.scaling[adapter] * B @ A


def check_between(run, results, location, points, ask) -> float:
    """Largest difference over some points of every path and of the plane through three checkpoints, delta W added to W."""
    model, updates = None, {}
    for checkpoint in results["landscapes"]:
        folder = run / f"checkpoint_{checkpoint}"
        if model is None:
            plain = load(location, results)
            model = PeftModel.from_pretrained(plain, folder, adapter_name=checkpoint).eval()
        else:
            model.load_adapter(folder, adapter_name=checkpoint)
        updates[checkpoint] = {name: update_of(layer, checkpoint) for name, layer in adapted(model).items()}
    layers = adapted(model)
    frozen = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers.items()}

    def losses_with(weights: dict[str, float], surfaces: dict) -> dict[str, float]:
        for name, layer in layers.items():
            update = sum(weight * updates[checkpoint][name] for checkpoint, weight in weights.items()).float()
            layer.get_base_layer().weight.data = frozen[name] + (update.T if layer.fan_in_fan_out else update)
        with model.disable_adapter():
            return losses(model, surfaces, ask)

    differences = [0.0]
    for path in results["paths"]:
        for n in draws(f"path {path['to']}", points, len(path["nodes"])):
            t = path["nodes"][n]
            for task, found in losses_with({path["from"]: 1 - t, path["to"]: t}, path["tasks"]).items():
                differences.append(abs(found - float(path["tasks"][task]["at_nodes"]["loss"][n])))
                print(f"P {path['to']:12} {task:20} t = {t:.3f}  {differences[-1]:.1e}")
    plane = results["checkpoint_plane"]
    if plane is not None:
        _, first, last = plane["checkpoints"]
        length = product(updates[first], updates[first]) ** 0.5
        along = product(updates[first], updates[last]) / length
        height = (product(updates[last], updates[last]) - along**2) ** 0.5
        named = {first: (length, 0.0), last: (along, height)}
        for name, corner in named.items():
            differences += [abs(x - y) for x, y in zip(corner, plane["checkpoints"][name], strict=True)]
            print(f"C {name:12} corner  {max(differences[-2:]):.1e}")

        def losses_at(a: float, b: float) -> dict[str, float]:
            return losses_with({first: a / length - b * along / (height * length), last: b / height}, plane["surfaces"])

        for n in draws("plane", points, len(plane["points"])):
            differences.append(compare_point("C", "plane", n, plane, losses_at))
    return max(differences)


def product(d: dict, e: dict) -> float:
    """Frobenius product of two updates over all modules."""
    return float(sum((d[name] * e[name]).sum() for name in d))


def inner(d: dict, e: dict) -> float:
    """Frobenius inner product over all modules and both factors."""
    return float(sum((d[name][k] * e[name][k]).sum() for name in d for k in (0, 1)))


def added(d: dict, e: dict, factor: float) -> dict:
    """d + factor e."""
    return {name: tuple(x + factor * y for x, y in zip(d[name], e[name], strict=True)) for name in d}


if __name__ == "__main__":
    sys.exit(main())
