"""`llm-forgetting tasks`: what can be named as a task."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_forgetting.cli.parser import Parser
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.files import user_path

if TYPE_CHECKING:
    from llm_forgetting.report.terminal import Terminal


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
