"""`llm-forgetting report DIR` and `llm-forgetting compare RUN RUN...`: from artifacts alone, without torch."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.cli.parser import Parser
from llm_forgetting.errors import UserError, program
from llm_forgetting.progress import say

if TYPE_CHECKING:
    from llm_forgetting.report.html.blocks import Page
    from llm_forgetting.report.tables.compare import Compared, Quantity
    from llm_forgetting.report.tables.run import Table
    from llm_forgetting.results import Results


def report(arguments: list[str]) -> int:
    """`llm-forgetting report`: report.html of a run or a study, drawn again."""
    parser = Parser(
        "llm-forgetting report",
        description="Write report.html of a finished run, study, landscape, forecast or evaluation again, from what is in its "
        "folder: no model, no network, seconds. All of them write one at their end.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of a run, study, landscape, forecast or evaluation")
    parser.add_argument(
        "--questions",
        action="store_true",
        help="also what every listed item of a run asks, out of the run's data on this machine; written as "
        "report_with_questions.html, which is not for publishing",
    )
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    _say_unchecked([folder])
    try:
        if options.questions:
            say(f"{_with_questions(folder)}: open it in a browser. It holds benchmark questions: do not publish it.")
        else:
            say(f"{draw_report(folder)}: open it in a browser; it needs nothing else.")
    except OSError as error:
        raise UserError(f"report.html must be writable in {folder}, and is not ({error.strerror or error})") from error
    return 0


def _say_unchecked(folders: list[Path]) -> None:
    """A line per run that is older than checksums."""
    from llm_forgetting.files.manifest import unchecked

    for folder in folders:
        for line in unchecked(folder):
            say(line)


def draw_report(folder: Path) -> Path:
    """report.html of whatever `folder` holds, from its artifacts; UserError where it holds none that can be read."""
    from llm_forgetting.files import decode
    from llm_forgetting.files.manifest import checked
    from llm_forgetting.report.html import files
    from llm_forgetting.results import read_evaluation, read_forecast, read_items, read_results, read_scan

    if (folder / "results.json").is_file():
        return files.write_run_report(read_results(folder), read_items(folder), folder)
    if (folder / "study.json").is_file():
        content = decode(dict, checked(folder, "study.json"), file=str(folder / "study.json"))
        try:
            return files.write_study_report(content, folder)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # it is read without a type
            raise UserError(f"{folder / 'study.json'} must be what a study wrote, and is not: {error!r}") from error
    if (folder / "landscape.json").is_file():
        return files.write_scan_report(read_scan(folder), folder)
    if (folder / "evaluation.json").is_file():
        return files.write_evaluation_report(read_evaluation(folder), read_items(folder), folder)
    if (folder / "forecast.json").is_file():
        return files.write_forecast_report(read_forecast(folder), folder)
    if (folder / "records.json.gz").is_file():
        from llm_forgetting.study.records import read_records
        from llm_forgetting.study.report import write_report

        write_report(read_records(folder / "records.json.gz"), folder)
        return folder / "report.html"
    raise UserError(_not_a_folder(folder))


def _not_a_folder(folder: Path) -> str:
    wanted = (
        "a report needs the folder of a finished run (results.json), study (study.json), landscape (landscape.json), "
        f"forecast (forecast.json) or evaluation (evaluation.json), {folder}"
    )
    if not folder.is_dir():
        return f"{wanted} is no folder"
    if (folder / "phases").is_dir() and (folder / "config.yaml").is_file():
        return f"{wanted} holds an unfinished run; finish it with: {program()} run --resume {shlex.quote(str(folder))}"
    if (folder / "phases").is_dir() and (folder / "scan.json").is_file():
        again = f"finish it by the same command with --resume {shlex.quote(str(folder))}"
        return f"{wanted} holds an unfinished landscape or forecast; {again}"
    if (folder / "cells").is_dir():
        return f"{wanted} holds an unfinished study; go on with it by the command it was started with"
    return f"{wanted} holds none of them"


def _with_questions(folder: Path) -> Path:
    if not (folder / "results.json").is_file():
        raise UserError(f"--questions needs the folder of a finished run (results.json), {folder} is not one")
    from llm_forgetting.experiment.questions import earlier_questions
    from llm_forgetting.report.html.blocks import Question
    from llm_forgetting.report.html.files import write_run_report
    from llm_forgetting.results import read_items, read_results
    from llm_forgetting.tasks.task import Item

    results, items = read_results(folder), read_items(folder)
    if not items or len(results.task_names) < 2:
        raise UserError(
            f"--questions needs items that a report lists, and {folder} has none: items.jsonl must be there, and two tasks"
        )
    questions = {
        key: Question(item.question, item.choices, item.answer)
        if isinstance(item, Item)
        else Question(item.question, (item.answer,), 0)
        for key, item in earlier_questions(results).items()
    }
    return write_run_report(results, items, folder, questions)


def compare(arguments: list[str]) -> int:
    """`llm-forgetting compare`: runs side by side."""
    parser = Parser(
        "llm-forgetting compare",
        description="Set finished runs side by side: forgetting, accuracies, landscape, curvature, forecasts, and where their "
        "configurations differ; or what changed between two logs of lm-evaluation-harness, paired by document. On the "
        "terminal, and as a page.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of finished runs, two or more; or two that lm-evaluation-harness wrote with --log_samples",
    )
    parser.add_argument("--output", metavar="FILE", default="compare.html", help="the page; default compare.html")
    options = parser.parse_args(arguments)
    folders, output = [Path(run) for run in options.runs], Path(options.output)
    if len(folders) < 2:
        raise UserError("compare needs at least two runs, one was given")
    _say_unchecked(folders)
    from llm_forgetting.files import write_text
    from llm_forgetting.report.html.page import render
    from llm_forgetting.report.terminal import Terminal
    from llm_forgetting.results.harness import is_harness_log

    logs = any(is_harness_log(folder) and not (folder / "results.json").is_file() for folder in folders)
    command = f"llm-forgetting compare {shlex.join(options.runs)}"
    named, tables, content = (_compare_logs if logs else _compare_runs)(folders, command)
    page = render(content)
    for line in named:
        say(line)
    terminal = Terminal()
    for table in tables:
        if table.rows:
            terminal.show_table(table)
            terminal.console.print()
    replaced = output.exists()
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"--output must be writable, {output} is not ({error.strerror or error})") from error
    say(f"The same as a page: {output}{' (replaced the file that was there)' if replaced else ''}")
    return 0


def _compare_runs(folders: list[Path], command: str) -> "tuple[list[str], list[Table], Page]":
    from llm_forgetting.report.html.compare import compare_page
    from llm_forgetting.report.tables.compare import compare_tables

    runs = _compared(folders)
    return [f"{run.letter}: {run.folder}" for run in runs], compare_tables(runs), compare_page(runs, command)


def _compare_logs(folders: list[Path], command: str) -> "tuple[list[str], list[Table], Page]":
    from llm_forgetting.report.html.compare import harness_page
    from llm_forgetting.report.tables.harness import harness_tables
    from llm_forgetting.results.harness import harness_changes, read_harness_log

    if len(folders) != 2:
        raise UserError(f"compare takes two logs of lm-evaluation-harness, {len(folders)} folders were given")
    first, second = map(read_harness_log, folders)
    tables = harness_tables(harness_changes(first, second), first, second)
    named = [f"{letter}: {log.folder}, {log.date}" for letter, log in (("A", first), ("B", second))]
    return named, tables, harness_page(tables, named, command)


def _compared(folders: list[Path]) -> "list[Compared]":
    from llm_forgetting.report.tables.compare import Compared
    from llm_forgetting.results import read_results

    for folder in folders:
        if not (folder / "results.json").is_file():
            raise UserError(f"compare needs folders of finished runs (results.json), {folder} is not one")
    letters = (chr(ord("A") + n) if n < 26 else str(n + 1) for n in range(len(folders)))
    runs = [read_results(folder) for folder in folders]
    return [
        Compared(letter, str(folder), results, _measures(results))
        for letter, folder, results in zip(letters, folders, runs, strict=True)
    ]


def _measures(results: "Results") -> "dict[str, Quantity]":
    """What a study would keep of this run, by its title; the mean rise is over directions."""
    from llm_forgetting.report.tables.compare import Quantity
    from llm_forgetting.study.measures import numbers_of, title

    numbers, directions = numbers_of(results), {"mean_rise": results.config.landscape.directions}
    return {
        title(name): Quantity(value, numbers.stderrs.get(name), directions.get(name))
        for name, value in numbers.measures.items()
    }
