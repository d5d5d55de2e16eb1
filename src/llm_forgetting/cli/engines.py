"""Options that say who computes: this machine's processes, a Ray cluster, a Slurm cluster."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from llm_forgetting.cli.parser import Parser, positive
from llm_forgetting.engines.start import ENGINES, EngineChoice
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json, load_yaml, read_yaml, user_path

if TYPE_CHECKING:
    from llm_forgetting.experiment.jobs import Workers


def add_engine_options(parser: argparse._ActionsContainer, what: str) -> None:
    """Add --engine, --workers, --threads, --address and --slurm; `what` are computed side by side."""
    parser.add_argument(
        "--workers", type=_few, metavar="N", help=f"{what} at a time; default: one per GPU, or else per two cores"
    )
    parser.add_argument(
        "--threads", type=_few, metavar="N", help="CPU threads of each; default: its share of this machine's cores"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="processes here (local, the default), a Ray or a Slurm cluster"
    )
    parser.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster (auto: the one of this machine)")
    parser.add_argument(
        "--slurm",
        metavar="YAML",
        help="options for submitit, a YAML file or '{slurm_partition: gpu, gpus_per_node: 1, timeout_min: 480}'",
    )


def engine_of(options: argparse.Namespace) -> EngineChoice:
    """The engine that the options name; UserError for options of another engine."""
    told = {} if options.slurm is None else _told(options.slurm)
    return EngineChoice(options.engine or "local", options.address, told)


def workers_of(options: argparse.Namespace) -> "Workers | None":
    """Who computes the phases of a run, None where nobody but this process is asked to."""
    from llm_forgetting.experiment.jobs import Workers

    engine = engine_of(options)
    if options.workers is None and options.engine is None:
        if options.threads is not None:
            raise UserError("--threads are those of each worker; give --workers or --engine, too")
        return None
    return Workers(engine, options.workers, options.threads)


def without_engine_options(arguments: Sequence[str]) -> list[str]:
    """The arguments that are no options of `add_engine_options`."""
    parser = Parser("", description="", add_help=False)
    add_engine_options(parser, "phases")
    return parser.parse_known_args(list(arguments))[1]


def _told(text: str) -> dict[str, Json]:
    if text.endswith((".yaml", ".yml")):
        told = read_yaml(user_path(text), "--slurm")
    else:
        try:
            told = load_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(
                f"--slurm must be YAML, or a file of it called ....yaml: {' '.join(str(error).split())}"
            ) from error
    if not isinstance(told, dict) or not told:
        raise UserError(f"--slurm must map options of submitit to values, was {text}")
    return told


def _few(text: str) -> int:
    return positive(text, most=1024)
