"""The page of a run: the answer, then everything behind it. From results.json and items.jsonl alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forgetting.files import from_plain
from llm_forgetting.report.html.blocks import Block, Code, Numbers, Page, Points, Prose, Section
from llm_forgetting.report.html.curves import lines_blocks, training_blocks
from llm_forgetting.report.html.forecasts import forecast_blocks
from llm_forgetting.report.html.paths import between_blocks
from llm_forgetting.report.html.reproduction import configuration, cost, versions, what_ran
from llm_forgetting.report.html.scores import Questions, heat_maps, item_listing, tiles
from llm_forgetting.report.html.spectra import curvature_blocks
from llm_forgetting.report.html.surfaces import landscape_blocks
from llm_forgetting.report.tables.markdown import describe_interventions
from llm_forgetting.report.tables.run import Table, comparison_table, forgetting_table, spoken, summary_table
from llm_forgetting.report.tables.spurious import spurious_table
from llm_forgetting.results import InterventionRecord

Results = Mapping[str, Any]
PRIVATE = (
    "This page holds the questions of a benchmark. Do not publish it: questions on the web get into training data, and then "
    "measure nothing."
)


def run_page(results: Results, records: Sequence[Mapping[str, Any]], questions: Questions | None = None) -> Page:
    """`records` are the lines of items.jsonl, none where they are gone; `questions` only where they were asked for."""
    model = results["model"]
    return Page(
        title=_title(results["task_names"]),
        kicker=f"llm-forgetting run · {model['name']} · {model['parameters']:,} parameters",
        answers=[("", [results["answer"]])],
        tiles=tiles(results),
        warnings=[*([] if questions is None else [PRIVATE]), *results["warnings"]],
        sections=_sections(results, records, questions),
        footer=[f"llm-forgetting {results['versions']['llm-forgetting']}; one run, one seed. {results['source']}"],
    )


def _title(tasks: Sequence[str]) -> str:
    first, *others = map(spoken, tasks)
    return f"What became of {first} after {', then '.join(others)}" if others else f"Fine-tuning on {first}"


def _sections(results: Results, records: Sequence[Mapping[str, Any]], questions: Questions | None) -> list[Section]:
    listing = item_listing(records, results, questions)
    items: Block = listing or Prose("No items: items.jsonl is missing, or only one task was learnt.", quiet=True)
    return [
        Section(
            "scores",
            "Accuracy and loss",
            [heat_maps(results), *_if_rows(forgetting_table(results), summary_table(results))],
        ),
        Section("landscape", "Loss landscape", [*landscape_blocks(results), *_if_rows(comparison_table(results))]),
        Section("directions", "Along random directions", lines_blocks(results)),
        Section("between", "Between the checkpoints", between_blocks(results)),
        Section("forecast", "Forecast and observed", forecast_blocks(results, records)),
        Section("curvature", "Curvature", curvature_blocks(results)),
        Section("kind", "What kind of forgetting", _kind(results)),
        Section("items", "Item by item", [items]),
        Section("training", "Training", training_blocks(results)),
        Section("method", "Method", _method(results)),
        Section("again", "How to reproduce", _again(results)),
    ]


def _if_rows(*tables: Table) -> list[Block]:
    return [Numbers(table) for table in tables if table.rows]


def _kind(results: Results) -> list[Block]:
    if not results["spurious"]:
        return [Prose("No task came before another, so nothing was probed.", quiet=True)]
    return [Numbers(spurious_table(results))]


def _method(results: Results) -> list[Block]:
    split = {"train": "trained on", "test": "held out"}[results["config"]["landscape"]["items"]]
    return [
        Points(
            (
                "Forgetting of a task: its accuracy after its own training minus that after the last task, and likewise in "
                "loss, on the same items; loss is minus the log-probability of the right letter among all tokens.",
                "Intervals are over items, paired: Bonett and Price's for accuracy, bootstrap-t for loss. They say nothing of "
                "other seeds.",
                "Landscapes are of items that were "
                f"{split}, the same at every point, along random directions in coordinates that do not depend on how LoRA "
                "happens to write its update.",
                "Surfaces are fits to letter logits at some well-placed points; their error is the largest at fresh random "
                "points, and not a bound.",
                "A forecast is a Taylor series at the earlier checkpoint along the way that the next task took.",
            )
        ),
        Points(
            (
                results["protocol"]["train_split"],
                f"{results['protocol']['adapter']}; {results['protocol']['optimizer']}",
                f"landscapes: {results['protocol']['landscape_items']}",
                *(
                    f"training on {spoken(phase['task'])}: {text}"
                    for phase in results["training"]
                    if (text := describe_interventions(from_plain(InterventionRecord, phase["interventions"])))
                ),
            ),
            "In this run",
        ),
    ]


def _again(results: Results) -> list[Block]:
    seeds = {part: results["config"][part]["seed"] for part in ("training", "data", "landscape")}
    facts = (
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items())),
        ("configuration, SHA-256", results["config_fingerprint"]),
        ("fresh adapter, SHA-256", results["initial_adapter_sha256"]),
        *((f"adapter after {spoken(p['task'])}, SHA-256", p["adapter_sha256"]) for p in results["training"]),
    )
    return [
        Prose("With the config.yaml beside this file; every item's hash is in results.json."),
        Code("llm-forgetting run --config config.yaml"),
        what_ran(results, *facts),
        versions(results),
        cost(results["timings"]),
        configuration(results),
    ]
