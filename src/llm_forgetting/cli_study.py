"""`llm-forgetting study STUDY.yaml`: many runs that answer the question."""

import argparse
import gzip
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llm_forgetting.command_line import Parser, positive, quiet_libraries, say
from llm_forgetting.errors import UserError

if TYPE_CHECKING:
    from llm_forgetting.study.engines import Engine
    from llm_forgetting.study.plan import Plan
    from llm_forgetting.study.run import StudyFolder
    from llm_forgetting.terminal import Terminal

Found = dict[str, Any]


def study(arguments: list[str]) -> int:
    """`llm-forgetting study`."""
    options = _parsed(arguments)
    if options.records and not options.study:
        return _from_records(options)
    from llm_forgetting.study.plan import read_plan
    from llm_forgetting.study.run import StudyFolder
    from llm_forgetting.terminal import Terminal

    plan, terminal = read_plan(Path(options.study)), Terminal()
    folder = StudyFolder(Path(options.folder or f"outputs/study_{plan.name}"))
    if options.records:
        with folder.locked():
            folder.take_over(plan, read_records(Path(options.records))["records"])
    if options.dry_run:
        return _dry_run(plan, folder, options, terminal)
    quiet_libraries()
    from llm_forgetting.study.run import run_study

    workers, threads = _share(options.workers, plan)
    with folder.locked():
        missing = len(folder.missing(plan))
        say(f"{plan.name}: {len(plan.cells)} cells, {len(plan.cells) - missing} done; writing to {folder.path}")
        engine = _engine(options, workers, threads) if missing else None
        try:
            if engine is not None:
                say(
                    f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)} ({options.engine})"
                )
                run_study(plan, folder, engine, threads=threads, tell=say)
        except KeyboardInterrupt:
            say(f"\nstopped; nothing finished is lost. Go on with: llm-forgetting study {' '.join(arguments)}")
            return 130
        finally:
            if engine is not None:
                engine.close()
        content = _write(plan, folder)
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
    parser.add_argument("--workers", type=positive, metavar="N", help="cells at a time; default: one per two cores")
    parser.add_argument("--engine", default="local", choices=["local", "ray"], help="processes here, or a Ray cluster")
    parser.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster (auto: the one of this machine)")
    parser.add_argument(
        "--records",
        metavar="FILE",
        help="stored records (records.json.gz): the report is written of them, without a model; with a STUDY.yaml, they are "
        "taken over and only the cells that they lack are computed",
    )
    options = parser.parse_args(arguments)
    if options.study is None and options.records is None:
        raise UserError("a study's YAML file must be given, or --records FILE (see llm-forgetting study --help)")
    if options.address and options.engine != "ray":
        raise UserError(f"--address is for --engine ray, which is {options.engine}")
    return options


def _share(workers: int | None, plan: "Plan") -> tuple[int, int]:
    """Workers and threads of each: by default a worker per two cores, and no more than there is memory for."""
    cores = os.cpu_count() or 1
    if workers is None:
        workers = max(1, min(cores // 2, _fitting(plan), len(plan.cells)))
    return workers, max(1, cores // workers)


def _fitting(plan: "Plan") -> int:
    """How many workers the memory that is free now holds, by the estimate of the largest cell."""
    import psutil

    from llm_forgetting.estimate import memory_bytes

    largest = max((memory_bytes(cell.config) for cell in plan.cells), default=0.0)
    return max(1, int(0.8 * psutil.virtual_memory().available / largest)) if largest else os.cpu_count() or 1


def _engine(options: argparse.Namespace, workers: int, threads: int) -> "Engine":
    from llm_forgetting.study.engines import LocalEngine, RayEngine

    return RayEngine(workers, threads, options.address) if options.engine == "ray" else LocalEngine(workers, threads)


def _dry_run(plan: "Plan", folder: "StudyFolder", options: argparse.Namespace, terminal: "Terminal") -> int:
    from llm_forgetting.estimate import seconds_of
    from llm_forgetting.report.tables import Table
    from llm_forgetting.study.cell import read_failure, read_record
    from llm_forgetting.study.halves import Tasks, half_key

    tasks = Tasks()
    rows, halves, recorded = [], dict[str, int](), []
    for cell in plan.cells:
        record, failure = read_record(folder.cell(cell)), read_failure(folder.cell(cell))
        half = halves.setdefault(half_key(cell.config, tasks), len(halves) + 1)
        state = "done" if record else f"failed: {failure}" if failure else "missing"
        recorded += [record["wall_seconds"]] if record else []
        rows.append((cell.id, cell.label, str(half), state))
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
        f"{len(plan.cells)} cells, {len(missing)} to compute; {len(halves)} different trainings on a first task (column half), "
        f"each made once; {cost}."
    )
    terminal.show_table(Table(plan.name, ("cell", "what", "half", "state"), tuple(rows), note))
    return 0


def _write(plan: "Plan", folder: "StudyFolder") -> Found:
    """records.json.gz, study.json, study.md and the figures."""
    records = folder.records(plan)
    stored = {"name": plan.name, "study": plan.content, "planned": len(plan.cells), "arms": plan.arms,
              "analysis": asdict(plan.analysis), "failures": folder.failures(plan), "records": records}  # fmt: skip
    from llm_forgetting.artifacts import write_text

    write_text(folder.path / "study.yaml", yaml.safe_dump(dict(plan.content), sort_keys=False, allow_unicode=True))
    write_records(stored, folder.path / "records.json.gz")
    return write_report(read_records(folder.path / "records.json.gz"), folder.path)


def write_records(stored: Mapping[str, Any], path: Path) -> None:
    """All that the report needs, compressed; the same records give the same bytes."""
    from llm_forgetting.artifacts import encode_json

    partial = path.with_name(f".{path.name}")
    partial.write_bytes(gzip.compress(encode_json(dict(stored)).encode(), mtime=0))
    partial.replace(path)


def read_records(path: Path) -> Found:
    """What `write_records` wrote; UserError where it is something else."""
    try:
        stored: Found = json.loads(gzip.decompress(path.read_bytes()))
        if not isinstance(stored["records"], list):
            raise TypeError
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--records must be a records.json.gz that a study wrote, {path} is not ({error})") from error
    return stored


def write_report(stored: Mapping[str, Any], folder: Path) -> Found:
    """study.json, study.md and the figures, from records alone; report.html where it can be drawn."""
    from llm_forgetting.artifacts import encode_json, write_text
    from llm_forgetting.report.html.files import write_study_report
    from llm_forgetting.report.study import study_markdown
    from llm_forgetting.report.study_figures import draw_study
    from llm_forgetting.study.analysis import analyse
    from llm_forgetting.study.plan import Analysis, tuples

    records: Sequence[Found] = stored["records"]
    analysis = Analysis(**{key: tuples(value) for key, value in stored["analysis"].items()})
    content: Found = {
        "name": stored["name"],
        "planned": stored["planned"],
        "analysis": asdict(analysis),
        "failures": stored["failures"],
        "versions": records[0]["versions"] if records else {},
        **analyse(records, analysis, stored["arms"]),
    }
    content = json.loads(encode_json(content))
    content["figures"] = draw_study(content, folder, dpi=160) if records else []
    write_text(folder / "study.json", encode_json(content))
    write_text(folder / "study.md", study_markdown(content))
    try:
        write_study_report(content, folder)
    except Exception as error:  # numbers and tables are written; a page is no reason to end without them
        say(f"note: report.html could not be drawn ({error!r}); everything else is there")
    return content


def _from_records(options: argparse.Namespace) -> int:
    from llm_forgetting.terminal import Terminal

    stored, folder = (
        read_records(Path(options.records)),
        Path(options.folder or f"outputs/study_{Path(options.records).parent.name}"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    _show(write_report(stored, folder), folder, Terminal())
    return 0


def _show(content: Found, folder: Path, terminal: "Terminal") -> None:
    from llm_forgetting.report.study import answers_of, study_tables

    for table in study_tables(content):
        terminal.show_table(table)
    for question, said in answers_of(content):
        terminal.show_answer(question, "\n".join(said))
    for name, reason in content["failures"].items():
        terminal.warn(f"{name} failed: {reason}")
    say(
        f"Everything is in {folder}: report.html, study.md, study.json, records.json.gz and {len(content['figures'])} figures."
    )
