"""What makes a configuration impossible, as far as that can be known without data and model."""

from collections.abc import Iterator, Mapping
from typing import Any

# Per dotted path: the smallest legal value, and whether it is legal itself.
LOWER_BOUNDS: dict[str, tuple[float, bool]] = {
    "lora.rank": (1, True),
    "lora.alpha": (0, False),
    "lora.dropout": (0, True),
    "training.batch_size": (1, True),
    "training.learning_rate": (0, False),
    "training.num_epochs": (1, True),
    "training.warmup_ratio": (0, True),
    "training.weight_decay": (0, True),
    "training.max_grad_norm": (0, True),
    "training.gradient_accumulation_steps": (1, True),
    "training.seed": (0, True),
    "interventions.sam_rho": (0, True),
    "interventions.replay_items": (0, True),
    "interventions.anchor": (0, True),
    "interventions.rescale": (0, False),
    "data.train_items": (1, True),
    "data.test_items": (1, True),
    "data.items_per_task": (2, True),
    "data.few_shot": (0, True),
    "data.max_tokens": (16, True),
    "data.seed": (0, True),
    "evaluation.batch_size": (1, True),
    "evaluation.recovery_items": (0, True),
    "evaluation.recovery_epochs": (1, True),
    "landscape.directions": (2, True),
    "landscape.distance": (0, False),
    "landscape.resolution": (3, True),
    "landscape.num_items": (1, True),
    "landscape.tolerance": (0, False),
    "landscape.plane_tolerance": (0, False),
    "landscape.max_evaluations": (23, True),
    "landscape.tau": (0, False),
    "landscape.batch_size": (1, True),
    "landscape.points_per_forward": (1, True),
    "landscape.self_test_items": (1, True),
    "landscape.seed": (0, True),
    "curvature.micro_batch": (1, True),
    "curvature.lanczos_steps": (2, True),
    "curvature.eigenvalues": (1, True),
    "curvature.density_runs": (0, True),
    "curvature.density_steps": (2, True),
    "curvature.trace_probes": (2, True),
    "curvature.weight_probes": (0, True),
    "curvature.power_steps": (1, True),
    "curvature.radius": (0, False),
    "curvature.ascent_steps": (0, True),
    "curvature.sharpness_directions": (2, True),
    "curvature.seed": (0, True),
    "output.dpi": (50, True),
}


def problems(sections: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """What makes a configuration impossible, one line each.

    `sections` are those that it has, by name; `values` its fields by their dotted paths.
    """
    for path, (bound, inclusive) in LOWER_BOUNDS.items():
        value = values.get(path)
        if value is not None and not (value >= bound if inclusive else value > bound):
            yield f"{path} must be {'at least' if inclusive else 'greater than'} {bound:g}, was {value!r}"
    if "curvature" in sections and sections["curvature"].eigenvalues > sections["curvature"].lanczos_steps:
        yield "curvature.eigenvalues must be at most curvature.lanczos_steps, which finds as many"
    if "curvature" in sections and sections["curvature"].weight_probes == 1:
        yield "curvature.weight_probes must be 0 (none) or at least 2 (a standard error needs two), was 1"
    if "training" in sections:
        yield from _training_problems(sections["lora"], sections["training"])
        yield from _intervention_problems(sections["interventions"], sections["training"], sections["data"])
    yield from _data_problems(sections["data"])
    if "landscape" in sections:
        yield from _landscape_problems(sections["data"], sections["landscape"])
    if sections["model"].name == "synthetic" and sections["data"].source != "synthetic":
        yield (
            f"model.name=synthetic knows only the words of data.source=synthetic, which is {sections['data'].source}"
        )
    if sections["model"].name == "synthetic" and sections["data"].definitions is not None:
        yield "model.name=synthetic knows only the words of data.source=synthetic, not those of data.definitions"


def _training_problems(lora: Any, training: Any) -> Iterator[str]:
    if lora.dropout >= 1:
        yield f"lora.dropout must be below 1, was {lora.dropout!r}"
    if not lora.target_modules:
        yield "lora.target_modules must name at least one module, or be all-linear; was empty"
    if training.warmup_ratio > 1:
        yield f"training.warmup_ratio must be at most 1, was {training.warmup_ratio!r}"


def _intervention_problems(interventions: Any, training: Any, data: Any) -> Iterator[str]:
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


def _data_problems(data: Any) -> Iterator[str]:
    if not 0 < data.train_fraction < 1:
        yield f"data.train_fraction must lie between 0 and 1, was {data.train_fraction!r}"
    if data.source == "local" and data.path is None:
        yield "data.path must name the MMLU folder or JSONL file when data.source is local, was null"
    if data.source in ("embedded", "synthetic") and data.path is not None:
        yield f"data.path has no meaning when data.source is {data.source}, was {data.path!r}; set data.source to local or hub"
    if data.source != "hub" and (data.columns or data.hub_config):
        yield f"data.columns and data.hub_config are for data.source=hub, which is {data.source}"
    unknown = sorted(set(data.columns) - {"question", "choices", "answer", "subject"})
    if unknown:
        yield f"data.columns may name question, choices, answer and subject, named {', '.join(unknown)}"
    if data.items_per_task is not None and (data.train_items or 1) + (data.test_items or 1) > data.items_per_task:
        yield (
            f"data.train_items + data.test_items must fit into data.items_per_task={data.items_per_task}, "
            f"were {data.train_items} + {data.test_items}"
        )


def _landscape_problems(data: Any, landscape: Any) -> Iterator[str]:
    if landscape.resolution is not None and landscape.resolution % 2 == 0:
        yield f"landscape.resolution must be odd (the checkpoint is the centre cell), was {landscape.resolution}"
    available = data.train_items if landscape.items == "train" else data.test_items
    if available is not None and landscape.num_items > available:
        yield (
            f"landscape.num_items must be at most data.{landscape.items}_items={available}, was {landscape.num_items}"
        )
    if landscape.self_test_items > landscape.num_items:
        yield (
            f"landscape.self_test_items must be at most landscape.num_items={landscape.num_items}, "
            f"was {landscape.self_test_items}"
        )
    if landscape.trajectory and not landscape.checkpoint_plane:
        yield "landscape.trajectory needs landscape.checkpoint_plane=true, it is false: there is no plane to project onto"
