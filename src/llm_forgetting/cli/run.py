"""`llm-forgetting run`: the main job, its options and what may interrupt it."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llm_forgetting.cli.engines import add_engine_options, without_engine_options, workers_of
from llm_forgetting.cli.parser import Parser, parse_dotted
from llm_forgetting.cli.signals import stopped
from llm_forgetting.config.files import DEFAULT_PRESET, PRESETS, parse_config, written
from llm_forgetting.config.paths import SEEDS, to_dict
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError, is_out_of_memory, program, refusal, system_error
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.progress import say

if TYPE_CHECKING:
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.jobs import Workers
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.results import Results

# The short flags of the original specification, and the dotted paths they stand for.
SHORT_FLAGS: dict[str, tuple[str, ...]] = {
    "--batch_size": ("training.batch_size",),
    "--num_epochs": ("training.num_epochs",),
    "--learning_rate": ("training.learning_rate",),
    "--lora_r": ("lora.rank",),
    "--lora_alpha": ("lora.alpha",),
    "--model_name": ("model.name",),
    "--output_dir": ("output.folder",),
    "--seed": SEEDS,
}


def run(arguments: list[str]) -> int:
    """`llm-forgetting run`: the main job."""
    options, config = parse_run(arguments)
    if options.print_config:
        say(_as_yaml(config))
        return 0
    quiet_libraries()
    from llm_forgetting.report.terminal import Terminal

    terminal = Terminal()
    if options.dry_run:
        return _dry_run(config, options, terminal)
    if options.gpu is not None:
        raise UserError("--gpu asks what a GPU would need and goes with --dry_run; a run takes model.device")
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder

    if options.resume:
        return _run_in(RunFolder.open(Path(options.resume)), config, terminal, workers_of(options))
    workers = workers_of(options)
    folder = RunFolder.create(Path(config.output.folder))
    try:
        return _run_in(folder, config, terminal, workers)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            folder.remove_if_unused()
        raise


def _run_in(
    folder: "RunFolder", config: ExperimentConfig, terminal: "Terminal", workers: "Workers | None" = None
) -> int:
    again = f"{program()} run --resume {shlex.quote(str(folder.path))}"
    try:
        say(f"writing to {folder.path}")
        results = _experiment_in(folder, config, terminal, workers)
    except KeyboardInterrupt as stop:
        return stopped(stop, f"nothing finished is lost. Go on with: {again}")
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        if (refused := system_error(error)) is None:
            raise
        then = again if (folder.path / "config.yaml").exists() else "start again"
        raise UserError(f"{refusal(refused, folder.path)}, then {then}") from refused
    terminal.show_results(results, folder.path)
    return 0


def _experiment_in(
    folder: "RunFolder", config: ExperimentConfig, terminal: "Terminal", workers: "Workers | None"
) -> "Results":
    """The experiment, with what the user can mend told apart from what only we can."""
    from llm_forgetting.experiment.experiment import run_in

    try:
        return run_in(folder, config, terminal, workers)
    except UserError as error:
        kept = f" (what was finished is kept in {folder.path})" if any(folder.phases.glob("*.json")) else ""
        raise UserError(f"{error}{kept}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "memory ran out; lower training.batch_size (and raise training.gradient_accumulation_steps by as much), "
            "evaluation.batch_size and landscape.batch_size, or turn on training.gradient_checkpointing; "
            f"{folder.path} keeps what was finished"
        ) from error


def _as_yaml(config: ExperimentConfig) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True).rstrip()


def _dry_run(config: ExperimentConfig, options: argparse.Namespace, terminal: "Terminal") -> int:
    from llm_forgetting.experiment.cost.tables import estimate
    from llm_forgetting.experiment.guards import check_modules, check_names

    check_names(config)
    check_modules(config)
    workers = workers_of(options)
    tables = estimate(config, terminal.note, options.gpu)
    say(_as_yaml(config))
    for table in tables:
        terminal.show_table(table)
    if workers is not None:
        from llm_forgetting.experiment.jobs import steps_of

        say(
            f"{len(steps_of(config))} jobs, of which trainings follow one another and all others wait for one or two of them."
        )
    return 0


def parse_run(arguments: Sequence[str]) -> tuple[argparse.Namespace, ExperimentConfig]:
    """The options of `run` and the configuration they resolve to; UserError for anything that does not fit."""
    parser = Parser(
        "llm-forgetting run",
        add_help=False,
        usage="llm-forgetting run [--config PRESET_OR_FILE] [--task1 NAME --task2 NAME] [options] [--DOTTED.PATH VALUE ...]",
        description="Fine-tune a language model with LoRA on one task after the other; measure what it forgets and its loss "
        "landscape.",
    )
    main_options = parser.add_argument_group("options")
    main_options.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    main_options.add_argument(
        "--config", metavar="NAME", default=DEFAULT_PRESET,
        help=f"a preset ({', '.join(PRESETS)}) or your own YAML file; default {DEFAULT_PRESET}",
    )  # fmt: skip
    main_options.add_argument(
        "--resume", metavar="DIR", help="go on with the run in DIR; takes no other option but those of workers"
    )
    main_options.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    main_options.add_argument(
        "--dry_run", action="store_true", help="print configuration, sizes, time and memory; stop"
    )
    main_options.add_argument(
        "--gpu", metavar="NAME", help="with --dry_run: times on another GPU than this machine's (H100, A100-40, ...)"
    )
    main_options.add_argument("--tasks", metavar="A,B,...", help="data.tasks, separated by commas")
    main_options.add_argument("--task1", metavar="NAME", help="the first of data.tasks")
    main_options.add_argument("--task2", metavar="NAME", help="the second of data.tasks")
    main_options.add_argument("--probes", metavar="A,B,...", help="data.probes, separated by commas")
    for flag, paths in SHORT_FLAGS.items():
        main_options.add_argument(flag, metavar="VALUE", help=" and ".join(paths))
    add_engine_options(parser.add_argument_group("phases side by side (default: one after the other, here)"), "phases")
    options, dotted = parse_dotted(parser, arguments, SHORT_FLAGS, ExperimentConfig)
    if options.resume is not None:
        others = without_engine_options(arguments)
        if len(others) != (1 if others[0].startswith("--resume=") else 2):
            raise UserError("--resume takes no other option: a run goes on with the configuration it was started with")
        return options, parse_config(str(Path(options.resume) / "config.yaml"), [], resumed=True)
    if options.tasks is not None and (options.task1, options.task2) != (None, None):
        raise UserError("--tasks names all tasks; give either it or --task1 and --task2")
    named, probes = (
        None if names is None else [name.strip() for name in names.split(",")]
        for names in (options.tasks, options.probes)
    )
    dotted += [] if probes is None else [f"--data.probes={written(probes)}"]
    return options, parse_config(options.config, dotted, tasks=named, task_at={0: options.task1, 1: options.task2})
