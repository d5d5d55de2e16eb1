"""Commands on what is there already: `landscape ADAPTER_DIR`, `evaluate [A [B]]` and `repair RUN`."""

import argparse
import logging
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.cli.parser import Parser, leading_words, parse_dotted, positive
from llm_forgetting.cli.report import draw_report
from llm_forgetting.cli.signals import stopped
from llm_forgetting.config.files import parse_config, parse_evaluate, parse_scan, written
from llm_forgetting.config.sections import EvaluateConfig, ExperimentConfig, ScanConfig
from llm_forgetting.errors import UserError, program
from llm_forgetting.experiment.artifacts.logs import log_file, quiet_libraries
from llm_forgetting.files import user_path
from llm_forgetting.progress import say

if TYPE_CHECKING:
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.results import ScanResults

log = logging.getLogger(__name__)
# Options of both commands, and the dotted paths they stand for.
SHORT_FLAGS = {"--model_name": ("model.name",), "--output_dir": ("output.folder",)}


def landscape(arguments: list[str]) -> int:
    """`llm-forgetting landscape`: surfaces around a saved adapter, and on the way to another."""
    options, config = parse_landscape(arguments)
    quiet_libraries()
    from llm_forgetting.experiment.adapter_landscape import refuse_other_scan, save_scan, scan_adapter
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.trained_items import require_whole_adapter
    from llm_forgetting.models.adapter.full_updates import require_checkpoint
    from llm_forgetting.report.terminal import Terminal

    terminal = Terminal()
    adapters = [user_path(options.adapter), *([user_path(options.to)] if options.to else [])]
    for adapter in adapters:  # looked at before anything is written
        require_whole_adapter(adapter)
        require_checkpoint(adapter)
    if options.resume:
        folder = RunFolder(Path(options.resume))
        if not folder.phases.is_dir():
            raise UserError(f"--resume needs the folder of an earlier scan, {options.resume} is not one")
        refuse_other_scan(config, adapters, folder)
    else:
        folder = RunFolder.create(Path(config.output.folder), prefix="landscape")
    with folder.locked(), log_file(folder.path / "run.log"):
        say(f"writing to {folder.path}")
        try:
            results = scan_adapter(config, adapters, folder, terminal)
        except KeyboardInterrupt as stop:
            resume = [] if options.resume else ["--resume", str(folder.path)]
            again = f"{program()} landscape {shlex.join([*arguments, *resume])}"
            return stopped(stop, f"nothing evaluated is lost. Go on with: {again}")
        except UserError:
            if not any(folder.phases.iterdir()):
                shutil.rmtree(folder.path, ignore_errors=True)  # a mistyped name leaves nothing behind
            raise
        results = save_scan(results, folder, dpi=config.output.dpi)
        page = draw_page(folder.path, "landscape.json", terminal)
    _show(terminal, results, folder.path, page)
    return 0


def draw_page(folder: Path, numbers: str, terminal: "Terminal") -> str:
    """report.html out of the file `numbers`, which is written by then; how it is named among what was written."""
    try:
        draw_report(folder)
    except Exception as error:
        log.exception("report.html could not be drawn")
        terminal.warn(f"report.html could not be drawn ({error!r}); all numbers are in {numbers}")
        return ""
    return "report.html, "


def _show(terminal: "Terminal", results: "ScanResults", folder: Path, page: str) -> None:
    from llm_forgetting.report.tables.landscape import between_table, flatness_table, landscape_table

    for make in (landscape_table, flatness_table, *([between_table] if results.paths else [])):
        terminal.show_table(make(results))
    for warning in results.warnings:
        terminal.warn(warning)
    say(f"Everything is in {folder}: {page}landscape.json and {len(results.figures)} figures, as PNG and PDF.")


def parse_landscape(arguments: list[str]) -> tuple[argparse.Namespace, ScanConfig]:
    """The options of `landscape` and the configuration they resolve to."""
    parser = Parser(
        "llm-forgetting landscape",
        add_help=False,
        usage="llm-forgetting landscape ADAPTER_DIR --task NAME [--task NAME ...] [--to ADAPTER_DIR] [--DOTTED.PATH VALUE ...]",
        description="The loss landscape around a saved PEFT adapter or a fine-tuned model, on any tasks: with --to also the "
        "path to another one of the same base model, and the plane through both and the base model.",
    )
    parser.add_argument(
        "adapter",
        nargs="?",
        metavar="ADAPTER_DIR",
        help="a folder with an adapter or a model",
    )
    main_options = parser.add_argument_group("main options")
    main_options.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    main_options.add_argument("--task", action="append", default=[], metavar="NAME", help="see `llm-forgetting tasks`")
    main_options.add_argument("--to", metavar="ADAPTER_DIR", help="a second adapter, or model, of the same base model")
    main_options.add_argument("--resume", metavar="DIR", help="go on with a scan that was stopped, options as before")
    main_options.add_argument("--model_name", metavar="NAME", help="model.name; default: what the adapter names itself")
    main_options.add_argument("--output_dir", metavar="DIR", help="output.folder")
    main_options.add_argument("--seed", metavar="N", help="data.seed and landscape.seed")
    seeds = ("data.seed", "landscape.seed")
    options, dotted = parse_dotted(parser, arguments, {**SHORT_FLAGS, "--seed": seeds}, ScanConfig)
    if options.adapter is None:
        raise UserError("the folder of a saved LoRA adapter must be given (see llm-forgetting landscape --help)")
    return options, parse_scan(dotted, options.task or no_tasks(dotted))


def evaluate(arguments: list[str]) -> int:
    """`llm-forgetting evaluate`: accuracy on whole test splits, of one checkpoint or of two on the same items."""
    options, config = parse_evaluation(arguments)
    quiet_libraries()
    if options.harness is not None:
        return _evaluate_in_harness(options, config)
    from llm_forgetting.experiment.adapter_evaluation import evaluate_adapter, evaluate_pair
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.pairs import checkpoint_named, require_pair
    from llm_forgetting.files import encode, encode_lines
    from llm_forgetting.report.tables.evaluation import evaluation_table
    from llm_forgetting.report.tables.pairs import change_table
    from llm_forgetting.report.terminal import Terminal

    terminal, checkpoints = Terminal(), [checkpoint_named(word) for word in options.checkpoints]
    if len(checkpoints) == 2:
        require_pair((checkpoints[0], checkpoints[1]), config.model)
    # Before anything is scored: what could not be written is not computed.
    folder = RunFolder.create(Path(config.output.folder), prefix="evaluation")
    folder.phases.rmdir()
    try:
        if len(checkpoints) == 2:
            results, records = evaluate_pair(config, (checkpoints[0], checkpoints[1]), options.limit, terminal)
        else:
            results, records = evaluate_adapter(config, next(iter(checkpoints), None), options.limit, terminal)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)  # a mistyped name leaves nothing behind
        raise
    for one in results.each:  # first, as it is in no file yet
        terminal.show_table(evaluation_table(one))
        for warning in one.warnings:
            terminal.warn(warning)
    if results.changes is not None:
        terminal.show_table(change_table(results))
    folder.write("items.jsonl", encode_lines(records))
    folder.write("evaluation.json", encode(results))
    page = draw_page(folder.path, "evaluation.json", terminal)
    say(f"Everything is in {folder.path}: {page}evaluation.json and items.jsonl.")
    return 0


def _evaluate_in_harness(options: argparse.Namespace, config: EvaluateConfig) -> int:
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.harness_evaluation import evaluate_in_harness, sample_records
    from llm_forgetting.experiment.pairs import checkpoint_named
    from llm_forgetting.files import encode_lines
    from llm_forgetting.forgetting.probes import probes
    from llm_forgetting.report.tables.harness import harness_tables, scores_table
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.results.harness import harness_changes

    terminal = Terminal()
    logs = evaluate_in_harness(
        config, [checkpoint_named(word) for word in options.checkpoints], options.limit, terminal
    )
    records = sample_records(logs)
    for name in dict.fromkeys(record.checkpoint for record in records):
        found = probes([record for record in records if record.checkpoint == name], [name], seed=0) or ()
        table = scores_table(found)
        terminal.show_table(table if len(logs) == 1 else replace(table, title=f"{name}: {table.title}"))
    for table in harness_tables(harness_changes(*logs), *logs) if len(logs) == 2 else ():
        if table.rows:
            terminal.show_table(table)
    folder = RunFolder.create(Path(config.output.folder), prefix="evaluation")
    folder.phases.rmdir()
    folder.write("items.jsonl", encode_lines(records))
    say(f"Every sample is in {folder.path / 'items.jsonl'}.")
    return 0


def parse_evaluation(arguments: list[str]) -> tuple[argparse.Namespace, EvaluateConfig]:
    """The options of `evaluate` and the configuration they resolve to."""
    parser = Parser(
        "llm-forgetting evaluate",
        add_help=False,
        usage="llm-forgetting evaluate [A [B]] --task NAME [--task NAME ...] [--few_shot K] [--DOTTED.PATH VALUE ...]",
        description="Accuracy and loss on every test row of any tasks, of the base model or of a saved PEFT LoRA adapter A, "
        "or of two, A and B, with their paired difference (`base` is the base model); with the prompts, few-shot examples, "
        "accuracies and standard errors of lm-evaluation-harness 0.4.13.",
    )
    named = leading_words(arguments)
    if len(named) > 2:
        raise UserError(f"evaluate takes at most two checkpoints, A and B, {len(named)} were given: {', '.join(named)}")
    main_options = parser.add_argument_group("main options")
    main_options.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    main_options.add_argument("--task", action="append", default=[], metavar="NAME", help="see `llm-forgetting tasks`")
    main_options.add_argument(
        "--harness", metavar="A,B,...", help="tasks that lm-evaluation-harness itself runs, instead of --task"
    )
    main_options.add_argument("--few_shot", metavar="K", help="data.few_shot: worked examples before each question")
    main_options.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each subject")
    main_options.add_argument("--model_name", metavar="NAME", help="model.name; default: what the adapter names itself")
    main_options.add_argument("--output_dir", metavar="DIR", help="output.folder")
    short_flags = {**SHORT_FLAGS, "--few_shot": ("data.few_shot",)}
    options, dotted = parse_dotted(parser, arguments[len(named) :], short_flags, EvaluateConfig)
    options.checkpoints = named
    if options.harness is not None:
        if options.task:
            raise UserError(
                "--harness and --task exclude each other: either the harness runs its tasks, or we run ours"
            )
        names = [f"harness:{name.strip()}" for name in options.harness.split(",")]
        return options, parse_evaluate([*dotted, f"--data.probes={written(names)}"], [])
    return options, parse_evaluate(dotted, options.task or no_tasks(dotted))


def no_tasks(dotted: list[str]) -> list[str] | None:
    """No task, unless --data.tasks names some: the configuration's own would be a surprise."""
    return None if any(word.partition("=")[0] == "--data.tasks" for word in dotted) else []


def repair(arguments: list[str]) -> int:
    """`llm-forgetting repair`: export and score the adapter at t* of a finished run."""
    parser = Parser(
        "llm-forgetting repair",
        description="Export the adapter on the straight path from one checkpoint to the next that has the lowest mean loss of "
        "both tasks, as the run's path phase found it, and score it on items that had no part in choosing it.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--rank", type=positive, help="cut the adapter to this rank; default: exact, both ranks together"
    )
    parser.add_argument("--t", type=_share, help="take this point of the path instead of t*, between 0 and 1")
    options = parser.parse_args(arguments)
    folder = Path(options.run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"repair needs the folder of a finished run (with config.yaml and results.json), {folder} is not one"
        )
    config = parse_config(str(folder / "config.yaml"), [], resumed=True)
    if not (folder / "results.json").is_file():
        raise UserError(
            f"{folder} must hold a finished run (results.json), go on with: {program()} run --resume {shlex.quote(str(folder))}"
        )
    return _repair_in(folder, config, options)


def _repair_in(folder: Path, config: ExperimentConfig, options: argparse.Namespace) -> int:
    quiet_libraries()
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.experiment import require_same_configuration
    from llm_forgetting.experiment.repair import path_of
    from llm_forgetting.experiment.repair import repair as repair_run
    from llm_forgetting.experiment.session import Session
    from llm_forgetting.files import encode
    from llm_forgetting.files.manifest import unchecked
    from llm_forgetting.report.tables.repair import repair_sentence, repair_tables
    from llm_forgetting.report.tables.words import measure_name
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.results import read_results

    terminal, run = Terminal(), RunFolder(folder)
    for line in unchecked(folder):
        say(line)
    results = read_results(folder)
    require_same_configuration(results.config_fingerprint, config, run)
    path, session = path_of(results), Session(config, folder, terminal, frozen_tasks=results.tasks)
    with run.locked(), log_file(folder / "run.log"):
        record = repair_run(session, path, rank=options.rank, t=options.t)
        run.write("repair.json", encode(record))
    for table in repair_tables(record, measure_name(results)):
        terminal.show_table(table)
    say(
        f"The {'adapter' if record.rank else 'model'} is in {folder / record.adapter} "
        f"({'PeftModel' if record.rank else 'AutoModelForCausalLM'}.from_pretrained loads it), the numbers in repair.json."
    )
    say(repair_sentence(record, measure_name(results)))
    return 0


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, was {text!r}")
    return value
