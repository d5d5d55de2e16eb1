"""Parser of a command, which complains in one line, and the examples that its help ends with."""

import argparse
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from llm_forgetting.config.files import config_help
from llm_forgetting.errors import UserError
from llm_forgetting.progress import say

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("llm-forgetting run --config smoke", "a toy, under a minute, no download: see what comes out"),
        ("llm-forgetting run", "a real small model on two MMLU subjects, ten minutes"),
        ("llm-forgetting run --task1 virology --task2 group:philosophy --seed 1", "other tasks, another seed"),
        ("llm-forgetting run --config full --lora.rank 16 --dry_run", "what it would cost"),
        ("llm-forgetting run --resume outputs/experiment_...", "go on with a run that was stopped"),
        ("llm-forgetting report outputs/experiment_...", "afterwards: report.html, to be opened in a browser"),
    ),
    "repair": (
        ("llm-forgetting repair outputs/experiment_...", "the adapter at t*, exact"),
        ("llm-forgetting repair outputs/experiment_... --rank 8", "the same, cut to rank 8, with the error that makes"),
    ),
    "landscape": (
        ("llm-forgetting landscape my_adapter --task anatomy --task virology", "any saved PEFT LoRA adapter"),
        ("llm-forgetting landscape before --to after --task anatomy", "also the path and the plane to another"),
    ),
    "evaluate": (
        ("llm-forgetting evaluate --task anatomy --few_shot 5", "the base model"),
        (
            "llm-forgetting evaluate my_adapter --task anatomy --limit 50",
            "an adapter, the first 50 rows of each subject",
        ),
        ("llm-forgetting evaluate base my_adapter --task anatomy", "both on the same items, and the paired difference"),
    ),
    "forecast": (
        (
            "llm-forgetting forecast before after --task anatomy",
            "could the landscape have told the loss at `after`?",
        ),
        ("llm-forgetting forecast base my_adapter --task anatomy", "from the bare backbone on"),
    ),
    "study": (
        ("llm-forgetting study studies/toy.yaml --dry_run", "cells, cost, what is missing"),
        ("llm-forgetting study studies/toy.yaml --workers 2", "a toy of 192 runs; again to go on where it was stopped"),
        ("llm-forgetting study --records docs/results/flatness/records.json.gz", "a published study, without a model"),
    ),
    "report": (("llm-forgetting report outputs/experiment_...", "then open its report.html in a browser"),),
    "compare": (
        ("llm-forgetting compare outputs/experiment_1 outputs/experiment_2", "prints tables, writes compare.html"),
    ),
    "check": (
        ("llm-forgetting check outputs/experiment_... --max-forgetting 0.1", "0 kept, 1 forgotten, 3 cannot be said"),
        ("llm-forgetting check outputs/evaluation_... --max-forgetting 0.05 --task anatomy", "of a pair A B"),
    ),
    "tasks": (
        ("llm-forgetting tasks", "of the embedded MMLU sample"),
        ("llm-forgetting tasks --source local --path mmlu", "of the original MMLU folder, with all its rows"),
    ),
}
"""What each command's `--help` ends with."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaint is one line, and whose help ends with examples."""

    def __init__(self, program: str, *, description: str, **kwargs: Any) -> None:
        shown = EXAMPLES.get(program.rpartition(" ")[2], ())
        epilog = "\n".join(["examples:", *(f"  {command}\n      {what}" for command, what in shown)])
        super().__init__(
            prog=program,
            allow_abbrev=False,
            description=textwrap.fill(description, 100),
            epilog=epilog if shown else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage text."""
        raise UserError(f"{message} (see {self.prog} --help)")


def parse_dotted(
    parser: Parser, arguments: Sequence[str], short_flags: Mapping[str, Sequence[str]], config: type
) -> tuple[argparse.Namespace, list[str]]:
    """The parser's own options, and those of `config` by their dotted paths; prints the help of both where it is asked for.

    `short_flags` are options of the parser that stand for dotted paths.
    """
    options, dotted = parser.parse_known_args(list(arguments))
    if options.help:
        fields = config_help(config)
        say(parser.format_help() + "\nevery field of the configuration, by its dotted path:\n\n" + fields)
        raise SystemExit(0)
    named = {word.partition("=")[0] for word in dotted}
    for flag in ("tasks", "task1", "task2", "task"):
        if getattr(options, flag, None) and "--data.tasks" in named:
            raise UserError(f"--{flag} and --data.tasks are one field; give one of them")
    short = []
    for flag, paths in short_flags.items():
        value = getattr(options, flag.removeprefix("--"))
        if value is not None and len(paths) == 1 and f"--{paths[0]}" in named:
            raise UserError(f"{flag} and --{paths[0]} are one field; give one of them")
        short += [f"--{path}={value}" for path in paths if value is not None]
    return options, [*short, *dotted]  # --seed stands for all seeds but those that are given by themselves


def positive(text: str, most: int = 1_000_000) -> int:
    """A whole number from 1 to `most`, for an option's `type`."""
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}, was {text!r}")
    return int(text)


def leading_words(arguments: list[str]) -> list[str]:
    """What is named before the first option. (A positional of the parser would take the value of a dotted option.)"""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
