"""README.md of every checkpoint: a model card for the Hugging Face hub, with scores, forgetting and flatness in its metadata.

It is written once the run is finished, because what a checkpoint's task lost is known then.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from llm_forgetting.files import write_text
from llm_forgetting.report.rows import Row, curvature_rows, forgetting_rows, landscape_rows, score_rows
from llm_forgetting.report.set_up import model_name
from llm_forgetting.report.tables.run import display_name, value_and_error
from llm_forgetting.report.tables.words import completion_tasks, measure_name, named
from llm_forgetting.results import Results

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BUILT_IN = ("embedded", "synthetic")
"""Backbones that the package builds; the hub has no such weights."""

MMLU = "cais/mmlu"
# Arguments of transformers' BitsAndBytesConfig by `model.quantization`.
_LOADED = {"4bit": 'load_in_4bit=True, bnb_4bit_quant_type="nf4"', "8bit": "load_in_8bit=True"}
SPLITS = {"train": "training items", "test": "held-out items"}
COORDINATES = {
    "adapter": "in coordinates that do not depend on how the update is written as A and B",
    "weight": "in filter-normalised merged weights",
    "raw": "in A and B as they are written, which is not comparable between adapters",
}


def write_cards(results: Results, folder: Path) -> None:
    """A card into the folder of every checkpoint that is there."""
    for k, checkpoint in enumerate(results.forgetting.train.checkpoints[1:], start=1):
        target = folder / f"checkpoint_{checkpoint}"
        if target.is_dir():
            write_text(target / "README.md", card(results, k))


def card(results: Results, k: int) -> str:
    """The card of the checkpoint after task number k."""
    from huggingface_hub import ModelCardData

    base, data = _base(results), results.config.data
    datasets = {"hub": [data.path or MMLU], "embedded": [MMLU]}
    metadata = ModelCardData(
        base_model=base if _on_the_hub(base) else None,
        library_name="transformers" if results.config.lora is None else "peft",
        pipeline_tag="text-generation",
        tags=[
            *([] if results.config.lora is None else ["lora"]),
            "catastrophic-forgetting",
            "loss-landscape",
            "llm-forgetting",
        ],
        datasets=datasets.get(data.source),
        model_name=_title(results, k),
        eval_results=list(_evaluations(results, k)),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{_text(results, k)}"


def _base(results: Results) -> str:
    return model_name(results.model)


def _title(results: Results, k: int) -> str:
    return f"{_base(results).rpartition('/')[2]} after {_tasks_learnt(results, k)}"


def _tasks_learnt(results: Results, k: int) -> str:
    return ", then ".join(map(display_name, results.task_names[:k]))


def _on_the_hub(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def _evaluations(results: Results, k: int) -> Iterator["EvalResult"]:
    """The model-index: scores of every task, what was forgotten, and how flat the loss is here."""
    from huggingface_hub import EvalResult

    def result(row: Row, metric: str, name: str, column: str) -> EvalResult:
        task, split = str(row.get("task", results.task_names[k - 1])), str(row.get("split", scanned_split))
        return EvalResult(
            task_type="text-generation" if task in completions else "multiple-choice",
            dataset_type=_dataset(results),
            dataset_name=f"{display_name(task)} ({SPLITS[split]})",
            dataset_config=task,
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=row[column],
        )

    scanned_split, completions = results.config.landscape.items, completion_tasks(results)
    for row in _at(k, score_rows(results)):
        name = named(row["task"] in completions)
        yield result(row, name.replace(" ", "_"), name, "accuracy")
        yield result(row, "loss", "loss of the answer (nats)", "loss")
    for row in _forgotten(results, k):
        name = f"{_measure(row, results)} forgotten by the last checkpoint"
        yield result(row, f"forgetting_{row['measure']}", name, "forgetting")
    for row in _at(k, landscape_rows(results)):
        name = f"mean rise of the loss at distance {row['distance']:g} (nats)"
        yield result(row, "mean_rise", name, "mean_rise")
        yield result(row, "curvature", "largest curvature on the plane", "curvature")
    for row in _at(k, curvature_rows(results)):
        yield result(row, "largest_eigenvalue", "largest Hessian eigenvalue", "largest_eigenvalue")
        yield result(row, "hessian_trace", "Hessian trace", "trace")


def _at(k: int, rows: list[Row]) -> list[Row]:
    """The rows of the checkpoint after task number k."""
    return [row for row in rows if row["checkpoint"] == f"after_task{k}"]


def _forgotten(results: Results, k: int) -> list[Row]:
    """Of the last checkpoint what every earlier task lost; of an earlier one what its own task was to lose."""
    names = results.task_names
    wanted = names[:-1] if k == len(names) else names[k - 1 : k]
    return [row for row in forgetting_rows(results) if row["task"] in wanted and row["forgetting"] is not None]


def _dataset(results: Results) -> str:
    data = results.config.data
    if data.source == "hub" and data.path:
        return data.path
    return MMLU if data.source in {"hub", "embedded"} else data.source


def _text(results: Results, k: int) -> str:
    base, lora = _base(results), results.config.lora
    landscape = results.landscapes.get(f"after_task{k}")
    template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return template.from_string(
        resources.files("llm_forgetting").joinpath("data/model_card.md").read_text("utf-8")
    ).render(
        title=_title(results, k),
        base=base,
        built_in=results.model.name if results.model.name in BUILT_IN else "",
        backbone=base if _on_the_hub(base) else "path/to/the/backbone",
        quantization=_LOADED.get(results.config.model.quantization or "", ""),
        weights=results.model.quantization,
        arithmetic=results.model.arithmetic,
        learnt=_tasks_learnt(results, k),
        lora=None
        if lora is None
        else {**vars(lora), "alpha": f"{lora.alpha:g}", "kind": "DoRA" if lora.use_dora else "LoRA"},
        modules=results.model.adapted_modules,
        version=results.versions["llm-forgetting"],
        answer=results.answer,
        measure=measure_name(results),
        scores=[
            (*_place(row), row["items"], _number(row, "accuracy"), _number(row, "loss"))
            for row in _at(k, score_rows(results))
        ],
        distance="" if landscape is None else f"{landscape.distance:g}",
        coordinates="" if landscape is None else COORDINATES[landscape.space],
        flatness=[
            (display_name(str(row["task"])), _number(row, "mean_rise"), _number(row, "curvature", "error"))
            for row in _at(k, landscape_rows(results))
        ],
        forgotten=[
            (*_place(row), _measure(row, results), _number(row, "forgetting")) for row in _forgotten(results, k)
        ],
    )


def _measure(row: Row, results: Results) -> str:
    """What a row of forgetting is of: loss, accuracy, or of completions exact match."""
    return named(row["task"] in completion_tasks(results)) if row["measure"] == "accuracy" else str(row["measure"])


def _place(row: Row) -> tuple[str, str]:
    return display_name(str(row["task"])), SPLITS[str(row["split"])]


def _number(row: Row, column: str, error: str = "stderr") -> str:
    """A number of a row with its error."""
    value, uncertainty = row[column], row[f"{column}_{error}"]
    if not isinstance(value, float):
        return "-"
    return value_and_error(value, uncertainty if isinstance(uncertainty, float) else None)
