"""`llm-forgetting study STUDY.yaml`: many runs that answer the question."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.cli.engines import add_engine_options, engine_of
from llm_forgetting.cli.parser import Parser
from llm_forgetting.cli.signals import stopped
from llm_forgetting.errors import UserError, program
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.files import Json
from llm_forgetting.progress import say

if TYPE_CHECKING:
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.study.plan import Plan
    from llm_forgetting.study.scheduler import StudyFolder

Content = Mapping[str, Json]


def study(arguments: list[str]) -> int:
    """`llm-forgetting study`."""
    options = _parsed(arguments)
    if options.records and not options.study:
        return _from_records(options)
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.study.plan import read_plan
    from llm_forgetting.study.scheduler import StudyFolder

    plan, terminal = read_plan(Path(options.study)), Terminal()
    folder = StudyFolder(Path(options.folder or f"outputs/study_{plan.name}"))
    if options.records:
        from llm_forgetting.study.records import read_records

        with folder.locked():
            folder.take_over(plan, read_records(Path(options.records)).records)
    if options.dry_run:
        return _dry_run(plan, folder, options, terminal)
    quiet_libraries()
    from llm_forgetting.study.study import complete_study

    command = f"{program()} study {shlex.join(arguments)}"
    try:
        shares = {"workers": options.workers, "threads": options.threads}
        content = complete_study(plan, folder, engine=engine_of(options), **shares, report=say)
    except KeyboardInterrupt as stop:
        return stopped(stop, f"nothing finished is lost. Go on with: {command}")
    _show(content, folder.path, terminal)
    return 1 if content["failures"] else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "llm-forgetting study",
        description="Run many experiments and say, with error bars, whether flatness goes with less forgetting. The same "
        "command again goes on with a study that was stopped, and computes only what a grown study lacks.",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY.yaml", help="what is varied; see docs/studies.md")
    parser.add_argument("--folder", metavar="DIR", help="where cells and report go; default outputs/study_NAME")
    parser.add_argument("--dry_run", action="store_true", help="print cells, cost and what is missing; stop")
    add_engine_options(parser, "cells")
    parser.add_argument(
        "--records",
        metavar="FILE",
        help="stored records (records.json.gz): the report is written of them, without a model; with a STUDY.yaml, they are "
        "taken over and only the cells that they lack are computed",
    )
    options = parser.parse_args(arguments)
    if options.study is None and options.records is None:
        raise UserError("a study's YAML file must be given, or --records FILE (see llm-forgetting study --help)")
    engine_of(options)
    return options


def _dry_run(plan: "Plan", folder: "StudyFolder", options: argparse.Namespace, terminal: "Terminal") -> int:
    from llm_forgetting.experiment.cost.tables import seconds_of
    from llm_forgetting.report.tables.run import Table
    from llm_forgetting.study.records import read_failure, read_record
    from llm_forgetting.study.shared_first_task import Tasks, first_task_key
    from llm_forgetting.study.study import too_few_first_tasks

    tasks = Tasks()
    rows, first_tasks, recorded = [], dict[str, int](), []
    for cell in plan.cells:
        record, failure = read_record(folder.cell(cell)), read_failure(folder.cell(cell))
        first_task = first_tasks.setdefault(first_task_key(cell.config, tasks), len(first_tasks) + 1)
        state = "done" if record else f"failed: {failure.reason}" if failure else "missing"
        recorded += [record.wall_seconds or 0.0] if record else []
        rows.append((cell.id, cell.label, str(first_task), state))
    missing = folder.missing(plan)
    each = (
        sum(recorded) / len(recorded)
        if recorded
        else seconds_of(plan.cells[0].config, terminal.note)
        if plan.cells
        else None
    )
    how = "mean of those done" if recorded else "estimated, sharing not counted"
    cost = (
        "unknown"
        if each is None
        else f"{len(missing) * each / 3600:.1f} hours of one worker ({each:.0f} s a cell, {how})"
    )
    note = (
        f"{len(plan.cells)} cells, {len(missing)} to compute; {len(first_tasks)} different trainings on a first task (column "
        f"half), each made once; {cost}."
    )
    note = " ".join([note, *too_few_first_tasks(plan)])
    terminal.show_table(Table(plan.name, ("cell", "what", "half", "state"), tuple(rows), note))
    return 0


def _from_records(options: argparse.Namespace) -> int:
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.study.records import RECORDS, read_records, write_records
    from llm_forgetting.study.report import write_report

    records = Path(options.records)
    folder = Path(options.folder or f"outputs/study_{records.resolve().parent.name}")
    stored = read_records(records)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORDS).exists():
        write_records(stored, folder / RECORDS)
    _show(write_report(stored, folder, say), folder, Terminal())
    return 0


MOST_SAID = 6
"""Sentences of an answer that the terminal has room for."""


def _show(content: Content, folder: Path, terminal: "Terminal") -> None:
    from llm_forgetting.report.tables.study import closing_tables, conclusions

    for table in closing_tables(content):
        terminal.show_table(table)
        terminal.console.print()
    for question, sentences in conclusions(content):
        many = len(sentences) > MOST_SAID
        terminal.show_answer(question, f"{len(sentences)} comparisons: see study.md." if many else "\n".join(sentences))
    for name, reason in content["failures"].items():
        terminal.warn(f"{name} failed: {reason}")
    say(
        f"Everything is in {folder}: report.html, study.md, study.json, records.json.gz and {len(content['figures'])} figures."
    )
