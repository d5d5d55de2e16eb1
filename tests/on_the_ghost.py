"""What runs on the stand-in for a GPU (`ghost`), in a process of its own: `python on_the_ghost.py NAME FOLDER` prints JSON."""

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ghost
import torch
import torch.nn.functional as F
import yaml
from peft import LoraConfig, get_peft_model
from runs import TINY
from tiny_models import fill_adapter, make_encoded, save, tiny_llama
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.sections import LoraConfig as LoraSettings
from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.curvature.spectrum import estimate_spectrum
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.hessian.products import AdapterHessian, products_at, supports_tangent_pass
from llm_forgetting.models.hessian.tangent_operations import SwiGLU
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score, score_points

SPECTRUM = {"lanczos_steps": 3, "density_runs": 1, "density_steps": 2, "trace_probes": 2}


def run(folder: Path, device: str, **sections: dict[str, Any]) -> Path:
    """A whole tiny run on a device; its folder."""
    config = copy.deepcopy(TINY)
    for section, fields in {"model": {}, "output": {}, **sections}.items():
        config.setdefault(section, {}).update(fields)
    config["model"]["device"] = device
    config["output"].update(folder=str(folder / device), figures=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "--config", str(folder / "config.yaml")]) == 0
    (made,) = (folder / device).iterdir()
    return made


def narrow(folder: Path) -> dict[str, Any]:
    """A run in a GPU's default precision, the adapter between its checkpoints, and the landscape around two of them."""
    made = run(folder, "ghost", landscape={"trajectory": True, "points_per_forward": 8})
    assert main(["repair", str(made)]) == 0
    ends = [str(made / f"checkpoint_after_task{k}") for k in (1, 2)]
    scan = ["landscape", ends[0], "--task", "synthetic_1", "--data.source", "synthetic", "--model.device", "ghost"]
    scan += [
        "--landscape.max_evaluations",
        "23",
        "--landscape.num_items",
        "4",
        "--landscape.self_test_items",
        "2",
        "--output.figures",
        "false",
    ]
    assert main([*scan, "--to", ends[1], "--output.folder", str(folder / "to")]) == 0
    assert main([*scan, "--landscape.space", "weight", "--output.folder", str(folder / "weight")]) == 0
    return {name: str(next(iter((folder / name).iterdir()))) for name in ("ghost", "to", "weight")}


def wide(folder: Path) -> dict[str, Any]:
    """The same run with its curvature in float32, on the stand-in and on the CPU."""
    curvature = {"spectrum": True, "checkpoints": "first", "weight_probes": 2, "power_steps": 2, **SPECTRUM}
    curvature |= {"sharpness_directions": 2, "ascent_steps": 2}
    return {
        device: str(run(folder, device, curvature=curvature, model={"dtype": "float32"})) for device in ("ghost", "cpu")
    }


def plain_module(folder: Path) -> dict[str, Any]:
    """The public functions on a module with batch norm, once on each device."""
    return {device: _plain_module(device) for device in ("ghost", "cpu")}


def _plain_module(device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    batches = [
        (torch.randn(5, 6, generator=generator).to(device), torch.randint(3, (5,), generator=generator).to(device))
        for _ in range(2)
    ]

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1], reduction="none")

    def nearby(seed: int) -> dict[str, Tensor]:
        state = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        drawn = torch.Generator().manual_seed(seed)
        return {
            name: (value + 0.1 * torch.randn(value.shape, generator=drawn)).abs()
            if value.is_floating_point()
            else value
            for name, value in state.items()
        }

    states = [nearby(seed) for seed in (1, 2, 3)]
    step = lf.checkpoint_difference(net, *states[:2])
    there = [{name: value.to(device) for name, value in state.items()} for state in states]
    small: dict[str, Any] = {"distance": 0.1, "max_evaluations": 23}
    planes = [
        lf.scan_plane(net, loss, batches, **small),
        lf.scan_plane(net, loss, batches, directions="gradient", **small),
    ]
    between = [lf.checkpoint_plane(net, loss, batches, checkpoints=c, max_evaluations=23) for c in (states, there)]
    line = lf.scan_line(net, loss, batches, direction=step, steps=[0.0, 1.0])
    spectrum = lf.hessian_spectrum(net, loss, batches, **SPECTRUM)
    return {
        "planes": [plane.losses.tolist() for plane in planes],
        "between": [plane.losses.tolist() for plane in between],
        "line": line.losses.tolist(),
        "flatness": lf.flatness(net, loss, batches, distance=0.1, directions=2).mean_rise,
        "largest": spectrum.largest[0].value,
        "forecast": lf.forecast(net, loss, batches, direction=step).curvature,
    }


def adapter(folder: Path) -> dict[str, Any]:
    """The public functions on a PEFT model, once on each device, and the callback in a training on the stand-in."""
    return {device: _adapter(device, folder) for device in ("ghost", "cpu")}


def _adapter(device: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama().to(device), LoraConfig(r=4, target_modules="all-linear"))
    fill_adapter(model)
    ids = torch.randint(64, (4, 12))
    batches = [{"input_ids": ids, "labels": ids}]
    state = AdaptedModel(model).adapter_state()
    other = {name: value + 0.05 * torch.randn(value.shape) for name, value in state.items()}
    step = lf.checkpoint_difference(model, state, other)
    small: dict[str, Any] = {"max_evaluations": 23}
    found = {
        "plane": lf.scan_plane(model, None, batches, **small).losses.tolist(),
        "weights": lf.scan_plane(model, None, batches, space="weight", distance=0.02, **small).losses.tolist(),
        "gradient": lf.scan_line(model, None, batches, direction="gradient").losses.tolist(),
        "between": lf.checkpoint_plane(model, None, batches, checkpoints=[None, state, other], **small).losses.tolist(),
        "flatness": lf.flatness(model, None, batches, directions=2).mean_rise,
        "largest": lf.hessian_spectrum(model, None, batches, **SPECTRUM).largest[0].value,
        "forecast": lf.forecast(model, None, batches, direction=step).curvature,
    }
    if device == "ghost":
        found["callback"] = _trained(model, ids, batches, folder)
    return found


def _trained(model: Any, ids: Tensor, batches: list[dict[str, Tensor]], folder: Path) -> int:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "ghost:0"  # a user's own Trainer has to be told
    callback = lf.FlatnessCallback(None, batches, every=1, directions=2)
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, report_to="none", save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows: Any = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=[callback]).train()
    callback.project()
    return len(callback.recorded)


def counts(folder: Path) -> dict[str, Any]:
    """Synchronisations and operations of every kind of pass, for models of two and of four layers."""
    return {str(layers): _counts(folder / str(layers), layers) for layers in (2, 4)}


def _counts(folder: Path, layers: int) -> dict[str, Any]:
    save(folder, tiny_llama(num_hidden_layers=layers))
    config = ModelConfig(name=str(folder), dtype="float32", device="ghost")
    model = LanguageModel.load(config, LoraSettings(rank=2, alpha=4.0), seed=0)
    fill_adapter(model.peft_model)
    items = make_encoded(model, 6)
    factors = model.adapter_factors()
    assert supports_tangent_pass(model)

    def training() -> None:
        answer_losses(model, items).mean().backward()

    def merged() -> None:
        with model.perturbed() as move:
            move(factors)
            score(model, items, 8)

    def beside() -> None:
        with model.unmerged() as move:
            move([factors, factors])
            score_points(model, items, 8, 2)

    passes: dict[str, Callable[[], object]] = {
        "scoring": lambda: score(model, items, 8),
        "training": training,
        "scan, merged": merged,
        "scan, two points": beside,
    }
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attention:
        found = {name: _counted(compute) for name, compute in passes.items()}
    with products_at(model, items, factors, method="tangent") as products:
        step = products.gradient()
        along = WeightUpdate(step.factors)
        found["along an update"] = _counted(lambda: products.along_update(along))
        found["Hessian-vector product"] = _counted(lambda: products.hessian(step))
        hessian = AdapterHessian(products)
        found["spectrum"] = _counted(lambda: estimate_spectrum(hessian, eigenvalues=1, seed=0, **SPECTRUM))
    found["inner product"] = _counted(lambda: step.inner(step) + along.inner(along) + step.norm())
    for rows in (64, 640):
        pair = torch.ones(2, rows, 8, device="ghost", requires_grad=True)
        found[f"SwiGLU, {rows} rows"] = _counted(lambda x=pair: SwiGLU.apply(x, x).sum().backward())
    return {**found, "grouped attention": [call.kwargs["enable_gqa"] for call in attention.call_args_list]}


def _counted(compute: Callable[[], object]) -> dict[str, Any]:
    with ghost.counting() as (operations, synchronisations):
        compute()
    return {"synchronisations": synchronisations, "operations": operations.total()}


CASES = {case.__name__: case for case in (narrow, wide, plain_module, adapter, counts)}

if __name__ == "__main__":
    ghost.install()
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(CASES[sys.argv[1]](Path(sys.argv[2]))) + "\n")
