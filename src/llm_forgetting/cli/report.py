"""`llm-forgetting report DIR` and `llm-forgetting compare RUN RUN...`: from artifacts alone, without torch."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forgetting.cli.parser import Parser
from llm_forgetting.errors import UserError
from llm_forgetting.progress import say

if TYPE_CHECKING:
    from llm_forgetting.report.html.compare import Compared

Content = dict[str, Any]


def report(arguments: list[str]) -> int:
    """`llm-forgetting report`: report.html of a run or a study, drawn again."""
    parser = Parser(
        "llm-forgetting report",
        description="Write report.html of a finished run, study, landscape or evaluation again, from what is in its folder: no "
        "model, no network, seconds. All of them write one at their end.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of a run, study, landscape or evaluation")
    parser.add_argument(
        "--questions",
        action="store_true",
        help="also what every listed item of a run asks, out of the run's data on this machine; written as "
        "report_with_questions.html, which is not for publishing",
    )
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    if options.questions:
        say(f"{_with_questions(folder)}: open it in a browser. It holds benchmark questions: do not publish it.")
    else:
        say(f"{_rebuilt(folder)}: open it in a browser; it needs nothing else.")
    return 0


def _rebuilt(folder: Path) -> Path:
    if (folder / "results.json").is_file():
        return _drawn(folder, "results.json", _of_run)
    if (folder / "study.json").is_file():
        return _drawn(folder, "study.json", _of_study)
    if (folder / "landscape.json").is_file():
        return _drawn(folder, "landscape.json", _of_scan)
    if (folder / "evaluation.json").is_file():
        return _drawn(folder, "evaluation.json", _of_evaluation)
    if (folder / "records.json.gz").is_file():
        from llm_forgetting.study.records import read_records
        from llm_forgetting.study.report import write_report

        write_report(read_records(folder / "records.json.gz"), folder)
        return folder / "report.html"
    raise UserError(_not_a_folder(folder))


def _not_a_folder(folder: Path) -> str:
    wanted = (
        "a report needs the folder of a finished run (results.json), study (study.json), landscape (landscape.json) or "
        f"evaluation (evaluation.json), {folder}"
    )
    if not folder.is_dir():
        return f"{wanted} is no folder"
    if (folder / "phases").is_dir() and (folder / "config.yaml").is_file():
        return (
            f"{wanted} holds an unfinished run; finish it with: llm-forgetting run --resume {shlex.quote(str(folder))}"
        )
    if (folder / "phases").is_dir() and (folder / "scan.json").is_file():
        return f"{wanted} holds an unfinished landscape; finish it by the same command with --resume {shlex.quote(str(folder))}"
    if (folder / "cells").is_dir():
        return f"{wanted} holds an unfinished study; go on with it by the command it was started with"
    return f"{wanted} holds none of them"


def _with_questions(folder: Path) -> Path:
    if not (folder / "results.json").is_file():
        raise UserError(f"--questions needs the folder of a finished run (results.json), {folder} is not one")
    return _drawn(folder, "results.json", _of_run_with_questions)


def _of_run_with_questions(content: Content, folder: Path) -> Path:
    from llm_forgetting.experiment.questions import earlier_questions
    from llm_forgetting.report.html.blocks import Question
    from llm_forgetting.report.html.files import read_items, write_run_report

    records = read_items(folder)
    if not records or len(content["task_names"]) < 2:
        raise UserError(
            f"--questions needs items that a report lists, and {folder} has none: items.jsonl must be there, and two tasks"
        )
    found = {
        key: Question(item.question, item.choices, item.answer) for key, item in earlier_questions(content).items()
    }
    return write_run_report(content, records, folder, found)


def _of_run(content: Content, folder: Path) -> Path:
    from llm_forgetting.report.html.files import read_items, write_run_report

    return write_run_report(content, read_items(folder), folder)


def _of_study(content: Content, folder: Path) -> Path:
    from llm_forgetting.report.html.files import write_study_report

    return write_study_report(content, folder)


def _of_scan(content: Content, folder: Path) -> Path:
    from llm_forgetting.report.html.files import write_scan_report

    return write_scan_report(content, folder)


def _of_evaluation(content: Content, folder: Path) -> Path:
    from llm_forgetting.report.html.files import read_items, write_evaluation_report

    return write_evaluation_report(content, read_items(folder), folder)


def _drawn(folder: Path, name: str, draw: Callable[[Content, Path], Path]) -> Path:
    """What `draw` makes of a JSON file; UserError where it is cut, or lacks what this version reads."""
    content = _read(folder / name)
    try:
        return draw(content, folder)
    except OSError as error:
        raise UserError(f"report.html must be writable in {folder}, and is not ({error.strerror or error})") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(_unreadable(folder / name, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"{path} must be what this version of llm-forgetting writes, and is not ({missing}); run it again to get a report"


def _read(path: Path) -> Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be JSON that can be read, and is not ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object, and holds something else")
    return content


def compare(arguments: list[str]) -> int:
    """`llm-forgetting compare`: runs side by side."""
    parser = Parser(
        "llm-forgetting compare",
        description="Set finished runs side by side: forgetting, accuracies, landscape, curvature, forecasts, and where their "
        "configurations differ. On the terminal, and as a page.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs, two or more")
    parser.add_argument("--output", metavar="FILE", default="compare.html", help="the page; default compare.html")
    options = parser.parse_args(arguments)
    folders, output = [Path(run) for run in options.runs], Path(options.output)
    if len(folders) < 2:
        raise UserError("compare needs at least two runs, one was given")
    from llm_forgetting.files import write_text
    from llm_forgetting.report.html.compare import compare_page, compare_tables
    from llm_forgetting.report.html.page import render
    from llm_forgetting.report.terminal import Terminal

    runs = _compared(folders)
    try:
        tables = compare_tables(runs)
        page = render(compare_page(runs, f"llm-forgetting compare {shlex.join(options.runs)}"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"the runs must be of this version of llm-forgetting, and one is not ({error!r})") from error
    terminal = Terminal()
    for table in tables:
        if table.rows:
            terminal.show_table(table)
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"--output must be writable, {output} is not ({error.strerror or error})") from error
    say(f"The same as a page: {output}")
    return 0


def _compared(folders: list[Path]) -> "list[Compared]":
    from llm_forgetting.report.html.compare import Compared, distinct_names

    for folder in folders:
        if not (folder / "results.json").is_file():
            raise UserError(f"compare needs folders of finished runs (results.json), {folder} is not one")
    names = distinct_names([folder.resolve().parts for folder in folders])
    contents = [_read(folder / "results.json") for folder in folders]
    return [Compared(name, content, _measures(content)) for name, content in zip(names, contents, strict=True)]


def _measures(content: Content) -> dict[str, tuple[float | None, float | None]]:
    """What a study would keep of this run, by its title."""
    from llm_forgetting.study.measures import MEASURES, numbers_of, title

    found = numbers_of(content)
    return {
        title(name): (value, found["stderrs"].get(name))
        for name, value in found["measures"].items()
        if name in MEASURES
    }
