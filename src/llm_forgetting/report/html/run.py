"""The page of a run: the answer, then everything behind it."""

from collections.abc import Sequence

from llm_forgetting.forgetting.intervals import PairedProportionChange
from llm_forgetting.forgetting.measures import MeasureForgetting
from llm_forgetting.forgetting.records import Line
from llm_forgetting.report.html.accuracy_matrix import heat_maps
from llm_forgetting.report.html.blocks import Block, Code, Numbers, Page, Points, Prose, Section, Tile
from llm_forgetting.report.html.checkpoint_plane import plane_blocks
from llm_forgetting.report.html.forecasts import forecast_blocks
from llm_forgetting.report.html.frontier import frontier_blocks
from llm_forgetting.report.html.items import Questions, item_listing
from llm_forgetting.report.html.lines import lines_blocks
from llm_forgetting.report.html.paths import path_blocks
from llm_forgetting.report.html.reproduction import configuration, cost, versions, what_ran
from llm_forgetting.report.html.spectra import curvature_blocks
from llm_forgetting.report.html.surfaces import landscape_blocks
from llm_forgetting.report.html.training import training_blocks
from llm_forgetting.report.set_up import model_name, set_up
from llm_forgetting.report.tables.closing import landscape_sentence
from llm_forgetting.report.tables.landscape import comparison_table, verdict_text
from llm_forgetting.report.tables.markdown import describe_interventions
from llm_forgetting.report.tables.probes import probe_rows, probes_table
from llm_forgetting.report.tables.quantised import quantised_table
from llm_forgetting.report.tables.run import (
    SPLIT_WORDS,
    Table,
    accuracy_text,
    chance_text,
    counts,
    display_name,
    forgetting_table,
    number,
    summary_table,
    value_and_error,
)
from llm_forgetting.report.tables.spurious import spurious_table
from llm_forgetting.report.tables.transitions import transitions_table
from llm_forgetting.report.tables.words import WHEN_RIGHT, capital, completion_tasks, measure_name, named
from llm_forgetting.results import Results

PRIVATE = (
    "This page holds the questions of a benchmark. Do not publish it: questions on the web get into training data, and then "
    "measure nothing."
)


# More later tasks than this are counted in the title.
MOST_NAMED = 4


def run_page(results: Results, items: Sequence[Line], questions: Questions | None = None) -> Page:
    """The page; `items` are none where items.jsonl is gone, `questions` only where they were asked for."""
    model = results.model
    return Page(
        title=_title(results.task_names),
        kicker=f"llm-forgetting run · {model_name(model)} · {model.parameters:,} parameters",
        set_up=set_up(results),
        answers=[("", [results.answer, *filter(None, [landscape_sentence(results)])])],
        tiles=_tiles(results),
        warnings=[*([] if questions is None else [PRIVATE]), *results.warnings],
        sections=_sections(results, items, questions),
        footer=[f"llm-forgetting {results.versions['llm-forgetting']}; one run, one seed. {results.source}"],
    )


def _title(tasks: Sequence[str]) -> str:
    first, *others = map(display_name, tasks)
    if len(others) > MOST_NAMED:
        return f"Forgetting of {first} after fine-tuning on {len(others)} more tasks"
    return (
        f"Forgetting of {first} after fine-tuning on {', then '.join(others)}" if others else f"Fine-tuning on {first}"
    )


def _tiles(results: Results) -> list[Tile]:
    """What became of the first task, and of the landscape around it."""
    tiles = []
    for split in results.forgetting.splits:
        word = SPLIT_WORDS[split.split]
        lost = f"{capital(named(results.task_names[0] in completion_tasks(results)))} lost"
        tiles += [*_forgotten(split.accuracy, lost, word), *_forgotten(split.loss, "Loss gained", word)]
    changes = [change for change in results.landscape_comparison if change.task == results.task_names[0]]
    for change in changes[:1]:
        label = f"Change of the mean rise around {display_name(change.task)}'s loss"
        value = f"{value_and_error(change.mean_rise.change, change.mean_rise.stderr)} nats"
        tiles.append(Tile(label, value, f"{verdict_text(change)}; {change.mean_rise.directions} directions"))
    return tiles


def _forgotten(forgetting: MeasureForgetting, label: str, split: str) -> list[Tile]:
    """Forgetting of the first task with its interval; of few items only counts of right answers."""
    tiles = []
    for task in forgetting.tasks[:1]:
        estimate, interval, note = task.absolute, task.absolute.interval, f"{task.n} items"
        if estimate.value is None:
            continue
        if interval:
            note = f"95% interval {number(interval.low)} to {number(interval.high)}, {note}"
        else:
            few = counts(task.change) if isinstance(task.change, PairedProportionChange) else ""
            note = f"{few}; too few for an interval" if few else f"{note}, too few for an interval"
        value = f"{number(estimate.value)}{'' if forgetting.measure == 'accuracy' else ' nats'}"
        tiles.append(Tile(f"{label}, {display_name(task.name)}, {split}", value, note))
    return tiles


def _sections(results: Results, items: Sequence[Line], questions: Questions | None) -> list[Section]:
    listing = item_listing(items, results.task_names, results.forgetting.train.checkpoints, questions)
    item_by_item: Block = listing or Prose("No items: items.jsonl is missing, or only one task was learnt.", quiet=True)
    between, name = [*plane_blocks(results), *path_blocks(results)], measure_name(results)
    return [
        Section(
            "scores",
            f"{capital(name)} and loss",
            [
                heat_maps(
                    results.forgetting, "; ".join(filter(None, [chance_text(results), accuracy_text(results)])), name
                ),
                *_if_rows(
                    forgetting_table(results),
                    transitions_table(results),
                    quantised_table(results),
                    summary_table(results),
                ),
            ],
        ),
        *([Section("probes", "Never trained on", [Numbers(probes_table(results))])] if probe_rows(results) else []),
        *(_landscape(results) if results.landscapes else []),
        Section("between", "Between the checkpoints", between),
        Section("forecast", "Forecast and observed", forecast_blocks(results, items)),
        Section("curvature", "Curvature", curvature_blocks(results)),
        Section("kind", "What kind of forgetting", _kind(results)),
        Section("items", "Item by item", [item_by_item]),
        Section("training", "Training", [*training_blocks(results.training), *frontier_blocks(results)]),
        Section("method", "Method", _method(results)),
        Section("again", "How to reproduce", _again(results)),
    ]


def _landscape(results: Results) -> list[Section]:
    return [
        Section("landscape", "Loss landscape", [*landscape_blocks(results), *_if_rows(comparison_table(results))]),
        Section("directions", "Along random directions", lines_blocks(results)),
    ]


def _if_rows(*tables: Table) -> list[Block]:
    return [Numbers(table) for table in tables if table.rows]


def _kind(results: Results) -> list[Block]:
    if not results.spurious:
        return [Prose("No task came before another, so nothing was probed.", quiet=True)]
    table = spurious_table(results)
    return [Numbers(table) if table.rows else Prose(table.note or "Nothing was probed.", quiet=True)]


def _method(results: Results) -> list[Block]:
    split = {"train": "trained on", "test": "held out"}[results.config.landscape.items]
    name, completions = measure_name(results), completion_tasks(results)
    token = "token" if completions else "letter"
    surfaces = (
        f"Landscapes are of items that were {split}, the same at every point, along random directions in coordinates that do "
        "not depend on how LoRA happens to write its update.",
        f"Surfaces are fits to {token} logits at some well-placed points; their error is the largest at fresh random points, "
        "and not a bound.",
    )
    return [
        Points(
            (
                f"Forgetting of a task: its {name} after its own training minus that after the last task, and likewise in "
                f"loss, on the same items; loss is minus the log-probability of the right {token} among all tokens"
                f"{', the mean over the tokens that are learnt' if completions else ''}.",
                *_right(results),
                f"Intervals are paired, over items (over subjects, if a task has several): Bonett and Price's for {name}, "
                "bootstrap-t or Hall's for loss. They say nothing of other seeds.",
                *(surfaces if results.landscapes else ()),
                *(
                    ["A forecast is a Taylor series at the earlier checkpoint along the step to the next."]
                    if results.forecasts
                    else []
                ),
            )
        ),
        Points(
            (
                results.protocol.train_split,
                f"{results.protocol.adapter}; {results.protocol.optimizer}",
                *([f"landscapes: {results.protocol.landscape_items}"] if results.landscapes else []),
                *([results.protocol.weighting] if results.protocol.weighting else []),
                *(
                    f"training on {display_name(training.task)}: {text}"
                    for training in results.training
                    if (text := describe_interventions(training.interventions))
                ),
            ),
            "In this run",
        ),
    ]


def _right(results: Results) -> list[str]:
    """When a completion counts as right."""
    by = {task.score.by for task in results.tasks if task.score is not None}
    if not by and any(task.completions for task in results.tasks):  # of an older run
        by = {"teacher_forcing"}
    return [WHEN_RIGHT[kind] for kind in WHEN_RIGHT if kind in by]


def _again(results: Results) -> list[Block]:
    config = results.config
    facts = (
        ("seeds", f"training {config.training.seed}, data {config.data.seed}, landscape {config.landscape.seed}"),
        ("configuration, SHA-256", results.config_fingerprint),
        ("fresh adapter, SHA-256", results.initial_adapter_sha256),
        *(
            (f"adapter after {display_name(training.task)}, SHA-256", training.adapter_sha256)
            for training in results.training
        ),
    )
    return [
        Prose("With the config.yaml beside this file; every item's hash is in results.json."),
        Code("llm-forgetting run --config config.yaml"),
        what_ran(results, *facts),
        versions(results),
        cost(results.timings),
        configuration(results),
    ]
