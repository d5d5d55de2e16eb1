"""The command line: `llm-forgetting COMMAND`, with what `_USAGE` lists."""

import argparse
import codecs
import contextlib
import difflib
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llm_forgetting import __version__
from llm_forgetting.cli import adapters as cli_scan
from llm_forgetting.cli import check as cli_check
from llm_forgetting.cli import pairs as cli_pairs
from llm_forgetting.cli import report as cli_report
from llm_forgetting.cli import study as cli_study
from llm_forgetting.cli.engines import add_engine_options, without_engine_options, workers_of
from llm_forgetting.cli.parser import Parser, parse_dotted
from llm_forgetting.cli.signals import stoppable, stopped
from llm_forgetting.config.files import DEFAULT_PRESET, PRESETS, parse_config, written
from llm_forgetting.config.paths import SEEDS, to_dict
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError, is_out_of_memory, program, refusal, system_error
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.files import is_text, user_path
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

_LONGEST = 1200
"""Characters of a complaint; of a longer one the middle is left out."""

# What signs of ours are where the terminal has none but ASCII.
_PLAIN = {"±": "+/-", "−": "-", "–": "-", "×": "x", "≤": "<=", "≥": ">=", "…": "...", "Δ": "D", "·": ".", "→": "->"}

_USAGE = """\
usage: llm-forgetting COMMAND [options]

  run        fine-tune on each task in turn, measure forgetting and the loss landscape   (the main job)
  repair     interpolate between two checkpoints to the lowest mean loss of both tasks, and score that adapter
  landscape  the loss landscape of anyone's saved LoRA adapter, on any tasks
  forecast   what the landscape at one saved adapter forecasts of another, beside what is observed
  study      many runs that answer the question, with error bars over runs
  report     report.html of a finished run, study, landscape, forecast or evaluation, drawn again from its folder
  compare    finished runs side by side, or two logs of lm-evaluation-harness, on the terminal and as a page
  check      exit status 0, 1 or 3: forgetting is within a limit, above it, or neither can be said
  evaluate   accuracy of a model, a saved adapter or a pair on whole test splits, as lm-evaluation-harness measures it
  tasks      the subjects and groups that can be named as tasks, with their item counts

`llm-forgetting COMMAND --help` says more. Start with `llm-forgetting run` (ten minutes, nothing to set up)
or `llm-forgetting run --config smoke` (under a minute, a toy)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `llm-forgetting`; returns the exit status."""
    return guarded(_command, list(sys.argv[1:] if arguments is None else arguments))


def _command(given: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": run,
        "repair": cli_scan.repair,
        "landscape": cli_scan.landscape,
        "forecast": cli_pairs.forecast,
        "evaluate": cli_scan.evaluate,
        "study": cli_study.study,
        "report": cli_report.report,
        "compare": cli_report.compare,
        "check": cli_check.check,
        "tasks": tasks,
    }
    if not given or given[0] in ("-h", "--help"):
        say(_USAGE)
        return 0 if given else 2
    if given[0] in ("-V", "--version", "version"):
        say(f"llm-forgetting {__version__}")
        return 0
    if sys.flags.optimize > 1:
        raise UserError("python must keep docstrings, which transformers reads, and was started with -OO; leave it out")
    if strange := [word for word in given if not is_text(word)]:
        raise UserError(f"every argument must be text in UTF-8 without NUL, was {strange[0]!r}")
    command = commands.get(given[0])
    if command is None:
        near = difflib.get_close_matches(given[0], commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"a command is needed, one of {', '.join(commands)}; was {given[0]!r}{hint}")
    return command(given[1:])


def run_main() -> int:
    """Entry point of main.py: any command; options without one are those of `run`."""
    given = sys.argv[1:]
    named = bool(given) and (not given[0].startswith("-") or given[0] in ("-V", "--version"))
    return main(given if named else ["run", *given])


def guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; what the user can mend becomes one line on stderr and exit status 2."""
    _prepare_streams()
    try:
        with stoppable():
            try:
                return command(arguments)
            finally:
                sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        # The reader (head, less) has gone; give Python's own exit something to flush into.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if refused := system_error(error):
            return _fail(refusal(refused))
        if is_out_of_memory(error):
            return _fail(
                "memory ran out; lower evaluation.batch_size and landscape.batch_size, or take a smaller model"
            )
        raise


def _prepare_streams() -> None:
    """Let no stream that is closed, or knows no sign of ours, end a command."""
    codecs.register_error("in_words", _in_words)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="in_words")


def _in_words(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    given = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in given), error.end


def _fail(message: str) -> int:
    """One line on stderr, whatever stands in the input that it quotes; the exit status."""
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in message)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"error: {line}\n")
    return 2


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


def tasks(arguments: list[str]) -> int:
    """`llm-forgetting tasks`: what can be named as a task."""
    from llm_forgetting.tasks.sources import KINDS

    parser = Parser(
        "llm-forgetting tasks", description="The subjects and groups that can be named as tasks, with item counts."
    )
    parser.add_argument("--source", choices=list(KINDS), help="default: embedded")
    parser.add_argument("--path", default=None, help="the folder, file or data set of local and hub")
    parser.add_argument("--definitions", metavar="FILE", help="a YAML file of tasks of your own; lists those")
    parsed = parser.parse_args(arguments)
    from llm_forgetting.config.sections import DataConfig
    from llm_forgetting.experiment.tasks import source_of
    from llm_forgetting.report.tables.run import Table
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.tasks.mmlu import groups

    quiet_libraries()
    terminal = Terminal()
    if parsed.definitions is not None:
        _show_definitions(user_path(parsed.definitions), terminal)
        if parsed.source is None:
            return 0
    source = source_of(DataConfig(source=parsed.source or "embedded", path=parsed.path), terminal.note)
    counts = source.subjects()
    subjects = tuple((name, str(count)) for name, count in sorted(counts.items()))
    terminal.show_table(Table(f"{len(counts)} subjects", ("subject", "items"), subjects, source.description))
    grouped = groups(counts)
    rows = tuple((name, str(sum(counts[s] for s in members)), ", ".join(members)) for name, members in grouped.items())
    if rows:
        terminal.show_table(Table(f"{len(rows)} groups", ("group", "items", "subjects"), rows))
    return 0


def _show_definitions(file: Path, terminal: "Terminal") -> None:
    """The tasks that a YAML file defines, with what they hold."""
    from llm_forgetting.report.tables.run import Table
    from llm_forgetting.tasks.definitions import list_defined

    rows = tuple(
        (task.name, str(task.items), task.options, task.description) for task in list_defined(file, terminal.note)
    )
    header = ("task", "items", "options", "source")
    terminal.show_table(Table(f"{len(rows)} tasks defined in {file.name}", header, rows))


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
