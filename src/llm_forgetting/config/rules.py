"""Rules of a configuration: bounds beside its fields, and what makes it impossible without data and model."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, TypeVar, get_args

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.sources import KINDS

if TYPE_CHECKING:
    from llm_forgetting.config.measurements import CurvatureConfig, LandscapeConfig
    from llm_forgetting.config.sections import (
        AnyConfig,
        DataConfig,
        ExperimentConfig,
        InterventionsConfig,
        LoraConfig,
        TrainingConfig,
    )

Value = TypeVar("Value")


MOST = 1e9
"""Largest value of a number whose field names no other: what is larger is no setting, and float32 can still square it."""


@dataclass(frozen=True)
class Bounds:
    """Smallest value of a field, whether it is legal itself, and the largest legal one."""

    value: float
    inclusive: bool
    most: float

    def problem(self, path: str, value: float | None) -> str | None:
        """What is wrong with the field at a dotted path; None, the value for no number, never is."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"{path} must be a finite number, was {value!r}"
        if value is not None and value > self.most:
            return (
                f"{path} must be at most {self.most:.16g}, was {f'{value:.16g}' if value < 1e300 else 'beyond 1e300'}"
            )
        if value is None or (value >= self.value if self.inclusive else value > self.value):
            return None
        return f"{path} must be {'at least' if self.inclusive else 'greater than'} {self.value:g}, was {value!r}"


def at_least(bound: float, *, default: Value, most: float = MOST) -> Value:
    """A field from `bound` to `most`."""
    return _bounded(Bounds(bound, True, most), default)


def above(bound: float, *, default: Value, most: float = MOST) -> Value:
    """A field greater than `bound` and at most `most`."""
    return _bounded(Bounds(bound, False, most), default)


def _bounded(bounds: Bounds, default: Value) -> Value:
    declared: Value = dataclasses.field(default=default, metadata={"bounds": bounds})
    return declared


def bounds_of(config: "AnyConfig") -> dict[str, Bounds]:
    """The bounds of a configuration's fields by dotted path, in the order of the fields."""
    return {
        f"{section.name}.{field.name}": field.metadata["bounds"]
        for section in dataclasses.fields(config)
        if getattr(config, section.name) is not None
        for field in dataclasses.fields(getattr(config, section.name))
        if "bounds" in field.metadata
    }


def refuse_impossible(config: "AnyConfig") -> None:
    """Raise UserError with the first reason why `config` cannot be run."""
    for problem in problems(config):
        raise UserError(problem)


def problems(config: "AnyConfig") -> Iterator[str]:
    """Everything that makes a configuration impossible, one line each."""
    from llm_forgetting.config.methods import method_problems
    from llm_forgetting.config.sections import EvaluateConfig, ExperimentConfig  # they are built by these rules

    for section_field in dataclasses.fields(config):
        values = getattr(config, section_field.name)
        if values is None:
            if NoneType not in get_args(section_field.type):
                yield f"{section_field.name} must have fields, was null; leave it out for the defaults"
            continue
        for field in dataclasses.fields(values):
            if getattr(values, field.name) is None and NoneType not in get_args(field.type):
                yield f"{section_field.name}.{field.name} must have a value, was null; leave it out for the default"
    for path, bounds in bounds_of(config).items():
        section, _, name = path.partition(".")
        if problem := bounds.problem(path, getattr(getattr(config, section), name)):
            yield problem
    if isinstance(config, ExperimentConfig):
        yield from _curvature_problems(config.curvature)
        yield from _training_problems(config.training)
        if config.lora is not None:
            yield from _lora_problems(config.lora)
            yield from _initialisation_problems(config.lora, config.training, config.interventions)
        if not config.low_rank:
            yield from _dense_problems(config)
        if config.model.dtype == "float16":
            yield "model.dtype=float16 cannot be trained: gradients underflow in it; use bfloat16 or float32"
        yield from _intervention_problems(config.interventions, config.training, config.data)
        yield from method_problems(config)
    yield from _data_problems(config.data)
    if not isinstance(config, EvaluateConfig):
        yield from _landscape_problems(config.data, config.landscape)
        native = config.landscape.arithmetic == "native" and config.model.dtype in ("bfloat16", "float16")
        if config.landscape.space == "weight" and native:
            yield (
                f"landscape.space=weight needs float32 arithmetic (in {config.model.dtype} a small step is rounded away), "
                f"landscape.arithmetic was native; set it to float32, or use landscape.space=adapter"
            )
    if config.model.name == "synthetic" and config.data.source != "synthetic":
        yield f"model.name=synthetic knows only the words of data.source=synthetic, which is {config.data.source}"
    if config.model.name == "synthetic" and config.data.definitions is not None:
        yield "model.name=synthetic knows only the words of data.source=synthetic, not those of data.definitions"
    in_harness = isinstance(config, EvaluateConfig) and config.data.probes
    if not isinstance(config, ExperimentConfig) and not config.data.tasks and not in_harness:
        yield "at least one task must be named (--task NAME), none was"
    if isinstance(config, ExperimentConfig) and len(config.data.tasks) < 2:
        yield f"data.tasks must name at least two tasks (forgetting needs a second one), was {list(config.data.tasks)}"


def _curvature_problems(curvature: "CurvatureConfig") -> Iterator[str]:
    if curvature.eigenvalues > curvature.lanczos_steps:
        yield "curvature.eigenvalues must be at most curvature.lanczos_steps, which finds as many"
    if curvature.weight_probes == 1:
        yield "curvature.weight_probes must be 0 (none) or at least 2 (a standard error needs two), was 1"


def _lora_problems(lora: "LoraConfig") -> Iterator[str]:
    if lora.dropout >= 1:
        yield f"lora.dropout must be below 1, was {lora.dropout!r}"
    if not lora.target_modules:
        yield "lora.target_modules must name at least one module, or be all-linear; was empty"
    wrong = [str(rank) for rank in lora.rank_pattern.values() if not 1 <= rank <= 65_536]
    wrong += [str(alpha) for alpha in lora.alpha_pattern.values() if not 0 < alpha <= MOST]
    if wrong:
        yield f"lora.rank_pattern and lora.alpha_pattern must hold ranks from 1 and alphas above 0, was {wrong[0]}"
    if any(layer < 0 for layer in lora.layers_to_transform):
        yield f"lora.layers_to_transform must be numbers of layers from 0, was {list(lora.layers_to_transform)}"


def _training_problems(training: "TrainingConfig") -> Iterator[str]:
    if training.warmup_ratio > 1:
        yield f"training.warmup_ratio must be at most 1, was {training.warmup_ratio!r}"


_INITIALISATIONS = r"gaussian|pissa|pissa_niter_\d{1,3}|olora"


def _initialisation_problems(
    lora: "LoraConfig", training: "TrainingConfig", interventions: "InterventionsConfig"
) -> Iterator[str]:
    if lora.init is not True and not (isinstance(lora.init, str) and re.fullmatch(_INITIALISATIONS, lora.init)):
        yield (
            f"lora.init must be true, gaussian, pissa, pissa_niter_N or olora, was {lora.init!r} (PEFT's others need "
            f"data or a quantised base, or do not begin at the base model)"
        )
    if not lora.rewrites:
        return
    others = {
        "lora.dropout=0": lora.dropout == 0,
        "lora.use_dora=false": not lora.use_dora,
        "training.weight_decay=0": training.weight_decay == 0,
        "interventions.rescale=1": interventions.rescale == 1,
    }
    for needed, given in others.items():
        if not given:
            yield f"lora.init={lora.init} needs {needed}: what it takes out of the weights must stay as it is"


def _dense_problems(config: "ExperimentConfig") -> Iterator[str]:
    """What needs delta W = s B A, where the trained update is more than that."""
    landscape, what = config.landscape, "a plain LoRA adapter (delta W = s B A), the trained update is more than that"
    if config.interventions.anchor:
        yield f"interventions.anchor needs {what}; set it to 0"
    if config.curvature.spectrum:
        yield f"curvature.spectrum needs {what}; set it to false"
    if landscape.trajectory:
        yield f"landscape.trajectory needs {what}; set it to false"
    if landscape.space == "raw":
        yield f"landscape.space=raw needs {what}; set it to weight"
    if landscape.arithmetic == "native" and config.model.dtype in ("bfloat16", "float16"):
        yield f"landscape.arithmetic=native needs {what}; set it to float32"
    if config.model.quantization is not None:
        yield f"model.quantization needs {what}; set it to null"
    if config.lora is None and config.interventions.rescale != 1:
        yield f"interventions.rescale needs {what}; set it to 1"
    if config.lora is None and config.model.dtype not in ("auto", "float32"):
        yield f"model.dtype must be float32 where all weights are trained (lora: null), was {config.model.dtype}"


def _intervention_problems(
    interventions: "InterventionsConfig", training: "TrainingConfig", data: "DataConfig"
) -> Iterator[str]:
    if interventions.sam_adaptive and not interventions.sam_rho:
        yield "interventions.sam_adaptive needs interventions.sam_rho greater than 0, it is 0: there is no SAM to adapt"
    inside = training.optimizer in ("lomo", "adalomo") or training.optimizer.endswith("layerwise")
    if interventions.sam_rho and inside:
        yield (
            f"interventions.sam_rho needs an optimiser that steps after the backward pass; training.optimizer="
            f"{training.optimizer} steps within it"
        )
    if data.train_items is not None and interventions.replay_items > data.train_items:
        yield (
            f"interventions.replay_items must be at most data.train_items={data.train_items}, "
            f"was {interventions.replay_items}"
        )


def _data_problems(data: "DataConfig") -> Iterator[str]:
    if not 0 < data.train_fraction < 1:
        yield f"data.train_fraction must lie between 0 and 1, was {data.train_fraction!r}"
    kind = KINDS.get(data.source)
    if kind is None:
        yield f"data.source must be one of {', '.join(KINDS)}, was {data.source!r}"
        return
    if kind.path == "required" and data.path is None:
        yield f"data.path must name {kind.path_names} when data.source is {data.source}, was null"
    if kind.path == "none" and data.path is not None:
        yield f"data.path has no meaning when data.source is {data.source}, was {data.path!r}; set data.source to local or hub"
    if not kind.hub and (data.columns or data.hub_config):
        yield f"data.columns and data.hub_config are for data.source=hub, which is {data.source}"
    unknown = sorted(set(data.columns) - {"question", "choices", "answer", "subject"})
    if unknown:
        yield f"data.columns may name question, choices, answer and subject, named {', '.join(unknown)}"
    yield from _probe_problems(data)
    if data.items_per_task is not None and (data.train_items or 1) + (data.test_items or 1) > data.items_per_task:
        yield (
            f"data.train_items + data.test_items must fit into data.items_per_task={data.items_per_task}, "
            f"were {data.train_items} + {data.test_items}"
        )


def _probe_problems(data: "DataConfig") -> Iterator[str]:
    nameless = [name for name in data.probes if not name.strip() or name.endswith(":")]
    if nameless:
        yield f"data.probes must be names of tasks, SOURCE:NAME or harness:TASK, was {nameless[0]!r}"
    twice = sorted({name for name in data.probes if data.probes.count(name) > 1})
    if twice:
        yield f"data.probes must name every probe once, named {twice[0]} twice"
    if data.harness_tasks is not None and not any(name.startswith("harness:") for name in data.probes):
        yield f"data.harness_tasks={data.harness_tasks} needs a probe harness:TASK in data.probes, which names none"
    if data.source == "synthetic" and (others := [name for name in data.probes if ":" in name]):
        yield f"data.source=synthetic has a model of its own words only, so data.probes may name its tasks, named {others[0]}"


def _landscape_problems(data: "DataConfig", landscape: "LandscapeConfig") -> Iterator[str]:
    if landscape.resolution is not None and landscape.resolution % 2 == 0:
        yield f"landscape.resolution must be odd (the checkpoint is the centre cell), was {landscape.resolution}"
    available = data.train_items if landscape.items == "train" else data.test_items
    if available is not None and landscape.num_items > available:
        yield (
            f"landscape.num_items must be at most data.{landscape.items}_items={available}, was {landscape.num_items}"
        )
    if landscape.trajectory and not landscape.checkpoint_plane:
        yield "landscape.trajectory needs landscape.checkpoint_plane=true, it is false: there is no plane to project onto"
