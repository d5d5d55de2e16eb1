"""README.md of every checkpoint: a model card for the Hugging Face hub, with scores, forgetting and flatness in its metadata.

It is written once the run is finished, because what a checkpoint's task lost is known then.
"""

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from llm_forgetting.files import write_text
from llm_forgetting.report.rows import SCORES, Row, curvature_rows, forgetting_rows, landscape_rows, score_rows
from llm_forgetting.report.tables.run import spoken, value_and_error

Results = Mapping[str, Any]
HUB_NAMES = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub names of built-in backbones that have one."""

MMLU = "cais/mmlu"
SPLITS = {"train": "training items", "test": "held-out items"}
COORDINATES = {
    "adapter": "in coordinates that do not depend on how the update is written as A and B",
    "weight": "in filter-normalised merged weights",
    "raw": "in A and B as they are written, which is not comparable between adapters",
}


def write_cards(results: Results, folder: Path) -> None:
    """A card into the folder of every checkpoint that is there."""
    for k, checkpoint in enumerate(results["forgetting"]["train"]["checkpoints"][1:], start=1):
        target = folder / f"checkpoint_{checkpoint}"
        if target.is_dir():
            write_text(target / "README.md", card(results, k))


def card(results: Results, k: int) -> str:
    """The card of the checkpoint after task number k."""
    from huggingface_hub import ModelCardData

    config = results["config"]
    base, source = _base(results), config["data"]["source"]
    data = ModelCardData(
        base_model=base if _on_the_hub(base) else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "catastrophic-forgetting", "loss-landscape", "llm-forgetting"],
        datasets=[config["data"]["path"] or MMLU] if source == "hub" else [MMLU] if source == "embedded" else None,
        model_name=_title(results, k),
        eval_results=list(_evaluations(results, k)),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(results, k)}"


def _base(results: Results) -> str:
    name = str(results["model"]["name"])
    return HUB_NAMES.get(name, name)


def _title(results: Results, k: int) -> str:
    return f"{_base(results).rpartition('/')[2]} after {', then '.join(map(spoken, results['task_names'][:k]))}"


def _on_the_hub(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def _evaluations(results: Results, k: int) -> Iterator[Any]:
    """The model-index: scores of every task, what was forgotten, and how flat the loss is here."""
    from huggingface_hub import EvalResult

    def result(row: Row, metric: str, name: str, value: Any) -> Any:
        return EvalResult(
            task_type="multiple-choice",
            dataset_type=_dataset(results),
            dataset_name=f"{spoken(row['task'])} ({SPLITS[row['split']]})",
            dataset_config=row["task"],
            dataset_split=row["split"],
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )

    landscape_split = results["config"]["landscape"]["items"]
    for row in score_rows(results):
        if row["checkpoint"] == f"after_task{k}":
            yield result(row, "accuracy", "accuracy", row["accuracy"])
            yield result(row, "loss", "loss of the answer (nats)", row["loss"])
    for row in _forgotten(results, k):
        name = f"{row['measure']} forgotten by the last checkpoint"
        yield result(row, f"forgetting_{row['measure']}", name, row["forgetting"])
    for row in landscape_rows(results):
        if row["checkpoint"] == f"after_task{k}":
            placed = {**row, "split": landscape_split}
            yield result(
                placed, "mean_rise", f"mean rise of the loss at distance {row['distance']:g} (nats)", row["mean_rise"]
            )
            yield result(placed, "curvature", "largest curvature on the plane", row["curvature"])
    for row in curvature_rows(results):
        if row["checkpoint"] == f"after_task{k}":
            placed = {"task": results["task_names"][k - 1], "split": landscape_split}
            yield result(placed, "largest_eigenvalue", "largest Hessian eigenvalue", row["largest_eigenvalue"])
            yield result(placed, "hessian_trace", "Hessian trace", row["trace"])


def _forgotten(results: Results, k: int) -> list[Row]:
    """Of the last checkpoint what every earlier task lost; of an earlier one what its own task was to lose."""
    names = results["task_names"]
    wanted = names[:-1] if k == len(names) else [names[k - 1]]
    return [row for row in forgetting_rows(results) if row["task"] in wanted and row["forgetting"] is not None]


def _dataset(results: Results) -> str:
    data = results["config"]["data"]
    if data["source"] == "hub" and data["path"]:
        return str(data["path"])
    return {"hub": MMLU, "embedded": MMLU}.get(data["source"], str(data["source"]))


def _text(results: Results, k: int) -> str:
    base, config, checkpoint = _base(results), results["config"], f"after_task{k}"
    landscape = results["landscapes"][checkpoint]
    template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return template.from_string(
        resources.files("llm_forgetting").joinpath("data/model_card.md").read_text("utf-8")
    ).render(
        title=_title(results, k),
        base=base,
        backbone=base if _on_the_hub(base) else "path/to/the/backbone",
        learnt=", then ".join(spoken(name) for name in results["task_names"][:k]),
        lora={**config["lora"], "alpha": f"{config['lora']['alpha']:g}"},
        modules=results["model"]["adapted_modules"],
        version=results["versions"]["llm-forgetting"],
        answer=results["answer"],
        scores=[
            (spoken(row["task"]), SPLITS[row["split"]], row["items"], *(_said(row, measure) for measure in SCORES))
            for row in score_rows(results)
            if row["checkpoint"] == checkpoint
        ],
        distance=f"{landscape['distance']:g}",
        coordinates=COORDINATES[landscape["space"]],
        flatness=[
            (spoken(row["task"]), _said(row, "mean_rise"), _said(row, "curvature", "error"))
            for row in landscape_rows(results)
            if row["checkpoint"] == checkpoint
        ],
        forgotten=[
            (spoken(row["task"]), SPLITS[row["split"]], row["measure"], _said(row, "forgetting"))
            for row in _forgotten(results, k)
        ],
    )


def _said(row: Row, column: str, error: str = "stderr") -> str:
    """A number of a row with its error."""
    return "-" if row[column] is None else value_and_error(row[column], row[f"{column}_{error}"])
