"""One of our peers in a process of its own.

    python peer_worker.py plain_loop|loss_landscapes|hessian_eigenthings CASE

It runs in the peers' environment and knows nothing of our package.
CASE is a folder with case.json (backbone, adapter, threads, the items as tokens) and, for planes, plane.safetensors (the
checkpoint's factors and two directions, delta W = B A). Questions come on stdin and answers go to stdout (see `serving`).
What is timed is said at each method; loading and collating are not.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loss_landscapes import GeneralModelWrapper, ModelWrapper, random_plane
from loss_landscapes.metrics import Metric
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from serving import Metered, direction, serve
from transformers import AutoModelForCausalLM

ADAPTER = "default"
IGNORED = -100  # labels that transformers' loss leaves out
Batch = dict[str, torch.Tensor]


def collate(items: list[dict[str, Any]], pad_id: int) -> Batch:
    """Prompt and answer letter of every item, padded to the longest; the answer's token alone is a label."""
    width = max(len(item["prompt"]) for item in items) + 1
    ids = torch.full((len(items), width), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, item in enumerate(items):
        length = len(item["prompt"])
        ids[row, : length + 1] = torch.tensor([*item["prompt"], item["answer"]])
        mask[row, : length + 1] = 1
        labels[row, length] = item["answer"]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def mean_loss(model: Any, batches: list[Batch]) -> float:
    """Forward with labels on every batch: nats per item. An item has one label, so a batch's loss is a mean over its items."""
    total, count = 0.0, 0
    for batch in batches:
        size = len(batch["input_ids"])
        total += model(**batch).loss.item() * size
        count += size
    return total / count


def sgemm_rate(rows: int, inner: int, columns: int, repeats: int) -> float:
    """GFLOP/s of the fastest of `repeats` float32 products (rows, inner) x (inner, columns)."""
    x, y = torch.rand(rows, inner), torch.rand(inner, columns)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(x, y)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(seconds) / 1e9


class Contestant:
    """The adapted model, and the items in batches of 16 in the order given."""

    def __init__(self, folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text())
        torch.set_num_threads(case["threads"])
        backbone = AutoModelForCausalLM.from_pretrained(case["backbone"], dtype=torch.float32)
        self.model: Any = PeftModel.from_pretrained(backbone, case["adapter"]).eval()
        self.layers: dict[str, Any] = {
            name.removeprefix("base_model.model."): module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        items, size = case["items"], case["batch_size"]
        self.batches = [collate(items[start : start + size], case["pad_id"]) for start in range(0, len(items), size)]

    def sgemm(self, shape: list[int], repeats: int) -> float:
        """See `sgemm_rate`; here because this process has the contestants' thread setting."""
        return sgemm_rate(*shape, repeats)


class PlainLoop(Contestant):
    """What one would write by hand: set A and B of every layer, forward with labels on every batch, cell after cell."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tensors = load_file(folder / "plane.safetensors")
        self._parts = {
            name: [[tensors[f"{part}|{name}|{factor}"] for part in ("base", "d", "e")] for factor in "BA"]
            for name in self.layers
        }

    def losses(self, cells: list[tuple[float, float]]) -> dict[str, list[float]]:
        """Loss at base + a d + b e for every cell (a, b); timed, each: setting the weights, and the loss of all items."""
        seconds, losses = [], []
        for a, b in cells:
            start = time.perf_counter()
            self._move(a, b)
            losses.append(mean_loss(self.model, self.batches))
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses}

    @torch.no_grad()
    def _move(self, a: float, b: float) -> None:
        for name, layer in self.layers.items():
            B, A = (base + a * d + b * e for base, d, e in self._parts[name])
            layer.lora_B[ADAPTER].weight.copy_(B / layer.scaling[ADAPTER])
            layer.lora_A[ADAPTER].weight.copy_(A)


class TimedLoss(Metric):  # type: ignore[misc]
    """The loss of all items as loss-landscapes asks for it, and when it was asked."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self._batches = batches
        self.begun: list[float] = []
        self.ended: list[float] = []

    def __call__(self, wrapper: ModelWrapper) -> float:
        self.begun.append(time.perf_counter())
        loss: float = wrapper.forward(self._batches)
        self.ended.append(time.perf_counter())
        return loss


class LossLandscapes(Contestant):
    """loss-landscapes' `random_plane` over A and B of every layer, through GeneralModelWrapper.

    The wrapper perturbs every parameter of the modules it is handed; it is handed the LoRA matrices alone, which is the
    surface one asks about and the cheapest for the library (with the whole model it would move 134 M weights as well). Its
    directions are its own: uniform in [0, 1], row-filtered, in raw coordinates. Its surface is therefore not compared.
    """

    def scan(self, steps: int, distance: float, seed: int) -> dict[str, Any]:
        """`random_plane` of steps x steps cells over about [-distance, distance]^2, in units of |(A, B)|.

        Timed: `setup_seconds`, once per scan (draw, orthogonalise and filter the directions, go to the first cell), and
        `seconds` per cell (move in place, loss of all items). With two steps the last cell is the checkpoint itself.
        """
        metric = TimedLoss(self.batches)
        matrices = [m for layer in self.layers.values() for m in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])]
        wrapper = GeneralModelWrapper(self.model, matrices, mean_loss)
        torch.manual_seed(seed)
        with unchanged(matrices):
            start = time.perf_counter()
            # The library divides by `distance`, and that is the plane's side, not its half: 1 / (2 distance).
            surface = random_plane(wrapper, metric, distance=1 / (2 * distance), steps=steps)
        cells = np.diff([metric.begun[0], *metric.ended])
        return {
            "setup_seconds": metric.begun[0] - start,
            "seconds": cells.tolist(),
            "losses": surface.tolist(),
        }


@contextmanager
def unchanged(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Put the weights of `modules` back after the block: the library walks them in place."""
    kept = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    try:
        yield
    finally:
        for module, state in zip(modules, kept, strict=True):
            module.load_state_dict(state)


CONTESTANTS: dict[str, type[Contestant]] = {"plain_loop": PlainLoop, "loss_landscapes": LossLandscapes}


class HessianEigenthings(Contestant):
    """Products by hessian-eigenthings' HessianOperator with its Hugging Face loss, over the LoRA matrices as they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model.set_attn_implementation("eager")  # the fused kernels have no double backward
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def product(self, method: str, seed: int, into: str) -> dict[str, Any]:
        """H v of the mean loss of all items, in micro-batches as collated; `method` as the library names it.

        Timed and metered: the product. It is written to the safetensors file `into`, by the parameters' names in PEFT.
        """
        from hessian_eigenthings.loss_fns import hf_lm_loss
        from hessian_eigenthings.operators import HessianOperator

        if len({len(batch["input_ids"]) for batch in self.batches}) > 1:
            raise ValueError("the library gives micro-batches one weight each, so they must be of one size")
        operator = HessianOperator(self.model, self.batches, hf_lm_loss(), method=method)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        step = torch.cat([direction(name, p.shape, seed).reshape(-1) for name, p in trained.items()])
        with Metered() as metered:
            found = operator.matvec(step)
        parts = found.detach().split([p.numel() for p in trained.values()])
        save_file({name: part.clone() for name, part in zip(trained, parts, strict=True)}, into)
        return metered.figures


CONTESTANTS = {
    "plain_loop": PlainLoop,
    "loss_landscapes": LossLandscapes,
    "hessian_eigenthings": HessianEigenthings,
}

if __name__ == "__main__":
    serve(CONTESTANTS, ("torch", "transformers", "peft", "numpy", "loss-landscapes", "hessian-eigenthings"))
