"""The parts of gpu_check.py: each writes its figures through `keep`, as soon as it has them."""

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from gpu_check_tools import (
    LARGE,
    LORA,
    PRESET,
    SMALL,
    Flops,
    Items,
    Shape,
    counting,
    items,
    matrix_rates,
    metered,
    quantised_model,
    random_model,
    with_adapter,
)

from llm_forgetting.config.measurements import CurvatureConfig, EvaluationConfig, LandscapeConfig
from llm_forgetting.config.sections import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from llm_forgetting.curvature.operators import Weights
from llm_forgetting.errors import is_out_of_memory
from llm_forgetting.experiment.analysis.landscape import gauge_self_test
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.models.hessian.products import AdapterHessian, products_at
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.backbones import BUILT_IN, load_backbone
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.models.language.scoring import merged, score, score_tasks
from llm_forgetting.tasks.embedded import cache_folder
from llm_forgetting.training.fine_tuning import fine_tune

Keep = Callable[[dict[str, Any]], None]
# The phases by their names in `--dry_run`.
DRY_RUN = {
    "scores": "scoring", "training": "training", "landscape": "scan point", "plane": "path point",
    "forecast": "forecast product", "spectrum": "spectrum product", "weight spectrum": "weights' product",
}  # fmt: skip
STEPS = 3
# Of the comparison of two devices: largest difference, and whether it is relative.
TOLERANCES = {
    "letter logits": (1e-3, False), "surface, nats": (1e-4, False), "squared gradient, relative": (1e-3, True),
    "g.Hg, relative": (1e-3, True), "forecast slope, relative": (1e-3, True), "forecast curvature, relative": (1e-3, True),
}  # fmt: skip


def reference(device: str, small: bool, keep: Keep) -> None:
    """A small float32 model on the CPU and on the device: scores, surface, curvature, forecast."""
    location = cache_folder() / BUILT_IN["embedded"]
    if location.is_dir() and not small:
        backbone, tokenizer = load_backbone(ModelConfig(dtype="float32", device="cpu"), lambda line: None)
        model = with_adapter(backbone, tokenizer)
    else:
        model = random_model(SMALL, "cpu", torch.float32)
    keep(
        {
            "model": "embedded" if location.is_dir() and not small else "random",
            "comparisons": _comparisons(model, device, TOLERANCES),
        }
    )


def quantised(device: str, small: bool, keep: Keep) -> None:
    """The same of a model of random weights in 4 and in 8 bits, but for scores, which are a GPU's own kernels'."""
    if importlib.util.find_spec("bitsandbytes") is None:
        keep({"skipped": "bitsandbytes is not installed"})
        return
    comparisons: dict[str, dict[str, float]] = {}
    for kind in ("4bit", "8bit"):
        model = quantised_model(SMALL, kind)
        chosen = {name: row for name, row in TOLERANCES.items() if name != "letter logits"}
        comparisons |= {f"{kind}: {name}": row for name, row in _comparisons(model, device, chosen).items()}
        keep({"comparisons": comparisons})


def _comparisons(
    model: LanguageModel, device: str, tolerances: Mapping[str, tuple[float, bool]]
) -> dict[str, dict[str, float]]:
    """What differs between a model on the CPU and its copy on the device."""
    moved = copy.deepcopy(model.peft_model).to(device)
    found = [_reference_figures(each) for each in (model, LanguageModel(moved, model.tokenizer, "random"))]
    comparisons = {}
    for name, (tolerance, relative) in tolerances.items():
        one, other = found[0][name], found[1][name]
        scale = float(np.abs(one).max()) if relative else 1.0
        comparisons[name] = {"difference": float(np.abs(one - other).max()) / scale, "tolerance": tolerance}
    return comparisons


def _reference_figures(model: LanguageModel) -> dict[str, Any]:
    chosen = items(model, 0, 8)
    space = AdapterSpace(canonicalise(model.adapter_factors()))
    d, e = space.directions(0, 2, space.norm)
    points = [space.point([(a, d), (b, e)]) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    objective = LandscapeObjective(model, [("task0", chosen)], 16)
    with objective.evaluating() as values_at:
        surface = np.array([float(objective.losses(values)[0]) for values in values_at(points)])
    with products_at(model, chosen, WeightUpdate.canonical(space.adapter)) as products:
        hessian = AdapterHessian(products)
        gradient = hessian.gradient()
        along = products.along_update(points[0])
        image = hessian @ gradient
    return {
        "letter logits": score(model, chosen, 8).letter_logits,
        "surface, nats": surface,
        "squared gradient, relative": np.array([float(gradient.double() @ gradient.double())]),
        "g.Hg, relative": np.array([float(gradient.double() @ image.double())]),
        "forecast slope, relative": np.array([along.slope]),
        "forecast curvature, relative": np.array([along.curvature]),
    }


def phases(device: str, small: bool, keep: Keep) -> None:
    """Every phase of the preset once: memory, seconds, and the share of the card's own matrix rate."""
    shape = SMALL if small else LARGE
    rates, done = matrix_rates(device, small), {}
    model = random_model(shape, device, torch.bfloat16)
    first, second = (items(model, task, 16 if small else PRESET["items"]) for task in (0, 1))
    factors, predicted = model.adapter_factors(), predicted_bytes(model, device, (first, second))
    path = WeightUpdate.combine([(0.5, factors), (0.5, factors)])

    def scan(point: WeightUpdate) -> Callable[[Items], float | None]:
        def compute(chosen: Items) -> float | None:
            objective = LandscapeObjective(model, [("tasks", chosen)], PRESET["batch"])
            with objective.evaluating() as values_at:
                list(values_at([point]))

        return compute

    def scoring(chosen: Items) -> float | None:
        with merged(model):
            score_tasks(model, [chosen], PRESET["batch"])

    def product(kind: str) -> Callable[[Items], float | None]:
        def compute(chosen: Items) -> float | None:
            with products_at(model, chosen, factors, micro_batch=PRESET["batch"]) as products:
                if kind == "forecast":
                    products.along_update(path)
                elif kind == "spectrum":
                    operator = AdapterHessian(products)
                    operator @ torch.randn(operator.shape[0], device=device)
                else:
                    products.weight_hessian(Weights({n: f.B @ f.A for n, f in factors.items()}))

        return compute

    own = "native" if device == "cuda" else "float32"  # of scores and training
    work: dict[str, tuple[str, Callable[[Items], float | None], Items]] = {
        "scoring": (own, scoring, first + second),
        "training": (own, lambda chosen: _train(model, chosen), sorted(first, key=_length)[-PRESET["batch"] :]),
        "scan point": ("float32", scan(factors), first + second),
        "path point": ("float32", scan(path), first + second),
        "forecast product": ("float32", product("forecast"), first),
        "spectrum product": ("float32", product("spectrum"), first),
        "weights' product": ("float32", product("weights"), first[: PRESET["batch"]]),
    }
    for name, (arithmetic, compute, chosen) in work.items():
        done[name] = _phase(device, name, compute, chosen, rates[arithmetic])
        done[name]["predicted_bytes"] = predicted.get(name)
        keep({"rates": rates, "phases": done})


def _phase(
    device: str, name: str, compute: Callable[[Items], float | None], chosen: Items, rate: float
) -> dict[str, float | str | None]:
    tokens = sum(map(_length, chosen))
    warm = sorted(chosen, key=_length)[-PRESET["batch"] :]
    try:
        with Flops() as counted:
            compute(warm)
        with metered(device) as figures:
            seconds = compute(chosen)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"error": "out of memory"}
    figures["seconds"] = seconds or figures["seconds"]
    flops = counted.count * tokens / sum(map(_length, warm)) / (STEPS if name == "training" else 1)
    return {
        **figures,
        "tokens": tokens,
        "flops": flops,
        "tokens_per_second": tokens / figures["seconds"],
        "share_of_rate": flops / figures["seconds"] / rate,
    }


def predicted_bytes(model: LanguageModel, device: str, tasks: Sequence[Items]) -> dict[str, float]:
    """Peak memory of the preset's phases as `--dry_run` counts it; none where it does not count phases one by one."""
    try:
        from llm_forgetting.experiment.cost.lengths import ItemLengths
        from llm_forgetting.experiment.cost.needs import needs
    except ImportError:
        return {}
    batch, count = PRESET["batch"], len(tasks[0])
    config = ExperimentConfig(
        model=ModelConfig(name="random", dtype="bfloat16", device=device),
        lora=LORA,
        data=DataConfig(source="hub", tasks=("task0", "task1"), train_items=count, test_items=count, max_tokens=1024),
        training=TrainingConfig(batch_size=batch, gradient_checkpointing=True),
        evaluation=EvaluationConfig(batch_size=batch),
        landscape=LandscapeConfig(num_items=count, batch_size=batch),
        curvature=CurvatureConfig(spectrum=True, micro_batch=batch),
    )
    memory = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    found = needs(
        config,
        memory=int(memory - 0.5e9),
        gpu=device == "cuda",
        settings=model.peft_model.get_base_model().config,
        lengths=ItemLengths(tuple(EncodedTask(f"task{n}", tuple(t), tuple(t)) for n, t in enumerate(tasks))),
    )
    return {DRY_RUN[need.phase]: need.peak_bytes for need in found}


def _length(item: EncodedItem) -> int:
    return len(item.input_ids)


def _train(model: LanguageModel, chosen: Items) -> float:
    """Seconds of a step, of `STEPS` that all take the same items; the first, with Trainer's start, is not counted."""
    config = TrainingConfig(
        batch_size=PRESET["batch"], num_epochs=1, learning_rate=2e-4, gradient_checkpointing=True, lr_scheduler="cosine"
    )
    with tempfile.TemporaryDirectory() as scratch:
        ends: list[float] = []
        fine_tune(
            model, chosen * STEPS, config, stream="gpu check", scratch=Path(scratch),
            advance=lambda steps, text: ends.append(time.perf_counter()),
        )  # fmt: skip
    return (ends[-1] - ends[0]) / (STEPS - 1)


def arithmetic(device: str, small: bool, keep: Keep) -> None:
    """Roughness of the loss along a line, and the gauge self-test, in each arithmetic over bfloat16 weights."""
    model, found = random_model(SMALL if small else LARGE, device, torch.bfloat16), {}
    named = [("task0", items(model, 0, 8))]
    space = AdapterSpace(canonicalise(model.adapter_factors()))
    (direction,) = space.directions(0, 1, space.norm)
    steps = np.linspace(-0.25, 0.25, 17)  # so short that a polynomial of degree 6 leaves nothing but roughness
    for name in ("float32", "tf32", "native"):
        model.arithmetic = name
        objective = LandscapeObjective(model, named, 16)
        with metered(device) as figures, objective.evaluating() as values_at:
            points = (space.point([(float(step), direction)]) for step in steps)
            losses = np.array([float(objective.losses(values)[0]) for values in values_at(points)])
        smooth = np.polynomial.Chebyshev.fit(steps, losses, 6)(steps)
        test = gauge_self_test(model, named[0], LandscapeConfig(), space.norm, space)
        found[name] = {
            "roughness": float(np.sqrt(np.mean((losses - smooth) ** 2))),
            "range": float(np.ptp(losses)),
            "self_test": test.value_relative_difference,
            "passed": test.passed,
            "seconds_per_point": figures["seconds"] / len(steps),
        }
        keep(found)


def rows(device: str, small: bool, keep: Keep) -> None:
    """1, 2, 4 and 8 points that share one forward of the backbone."""
    model, found = random_model(SMALL if small else LARGE, device, torch.bfloat16), {}
    named, factors = [("task0", items(model, 0, PRESET["batch"]))], model.adapter_factors()

    def evaluate(together: int, points: int) -> None:
        with LandscapeObjective(model, named, PRESET["batch"], together).evaluating() as values_at:
            list(values_at([factors] * points))

    evaluate(1, 1)
    for together in (1, 2, 4, 8):
        with metered(device) as figures:
            evaluate(together, 8)
        found[str(together)] = {"seconds_per_point": figures["seconds"] / 8, "peak_bytes": figures["peak_bytes"]}
        keep(found)


def synchronisations(device: str, small: bool, keep: Keep) -> None:
    """Per layer: what a model of four layers waits more often than one of two, of a tiny width."""
    found: dict[str, dict[str, float]] = {}
    totals: dict[str, list[int]] = {"scoring": [], "training loss": [], "scan point": [], "forecast product": []}
    for layers in (2, 4):
        model = random_model(Shape(64, layers, 4, 172, 512), device, torch.bfloat16)
        chosen, factors = items(model, 0, 8), model.adapter_factors()
        for name, compute in _waits(model, chosen, factors).items():
            compute()
            with counting(device) as count:
                compute()
                totals[name].append(count())
    for name, (two, four) in totals.items():
        found[name] = {"per_layer": (four - two) / 2, "total": four}
    keep(found)


def _waits(model: LanguageModel, chosen: Items, factors: WeightUpdate) -> dict[str, Callable[[], object]]:
    def scan() -> None:
        with LandscapeObjective(model, [("task0", chosen)], 8).evaluating() as values_at:
            list(values_at([factors]))

    def forecast() -> None:
        with products_at(model, chosen, factors) as products:
            products.along_update(factors)

    return {
        "scoring": lambda: score(model, chosen, 8),
        "training loss": lambda: answer_losses(model, chosen, packed=False).mean().backward(),
        "scan point": scan,
        "forecast product": forecast,
    }


PARTS: dict[str, Callable[[str, bool, Keep], None]] = {
    "reference": reference,
    "quantised": quantised,
    "phases": phases,
    "arithmetic": arithmetic,
    "rows": rows,
    "synchronisations": synchronisations,
}
