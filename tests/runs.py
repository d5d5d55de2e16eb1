"""The command line in processes of its own that start in no time: a fork server imports everything once, offline.

A call can be sabotaged: the process ends itself, by a real signal, at a named moment. Whole runs that tests only read are
made once for all of pytest-xdist's workers.
"""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
# One thread: the models are tiny, and sums over several threads need not come out alike.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "COLUMNS": "200",
    "PYTHONPATH": str(ROOT / "src"),
}
# All moments, limits and endings instead of a choice of them.
THOROUGH = os.environ.get("CI") == "true" or os.environ.get("THOROUGH") == "1"
PRELOADED = (
    "llm_forgetting.cli.main",
    "llm_forgetting.experiment.experiment",
    "llm_forgetting.experiment.cost",
    "datasets",
)

TINY: dict[str, Any] = {
    "model": {"name": "synthetic"},
    "lora": {"rank": 4},
    "data": {"source": "synthetic", "tasks": ["synthetic_1", "synthetic_2"], "train_items": 16, "test_items": 12},
    "training": {"batch_size": 8, "num_epochs": 3, "learning_rate": 0.01},
    "landscape": {"max_evaluations": 23, "resolution": 9, "directions": 3, "num_items": 8, "self_test_items": 4},
    "output": {"dpi": 50},
}


@dataclass(frozen=True)
class Moment:
    """When a process ends itself: `kind` is a method of `_Sabotage`, `what` and `count` say where exactly.

    `times`: the signal comes so often, 5 ms apart.
    """

    kind: str
    what: str = ""
    count: int = 1
    signal: int = signal.SIGKILL
    times: int = 1


@dataclass(frozen=True)
class Finished:
    """Exit status (negative: the signal that ended it) and what was printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line on stderr of a command that failed as it should."""
        assert self.status == 2, self.stdout + self.stderr
        assert self.stderr.startswith("error: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        return self.stderr.removeprefix("error: ").rstrip("\n")

    @property
    def folder(self) -> Path:
        """The run folder that was announced."""
        line = next(line for line in self.stdout.splitlines() if line.startswith("writing to "))
        return Path(line.removeprefix("writing to "))


class Shell:
    """`shell.run(...)` is `llm-forgetting run ...` in a folder of its own, with a cache folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.tiny = folder / "tiny.yaml"
        self.tiny.write_text(yaml.safe_dump(TINY))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (ENVIRONMENT | {"LLM_FORGETTING_CACHE": str(self.cache)}).items():
                patch.setenv(name, value)
            multiprocessing.forkserver.ensure_running()
        self._calls = 0

    def run(self, *arguments: object, **options: Any) -> Finished:
        """`llm-forgetting run ARGUMENTS`."""
        return self("run", *arguments, **options)

    def run_tiny(self, *arguments: object, **options: Any) -> Finished:
        """`llm-forgetting run` with the configuration TINY, into the folder `outputs`."""
        return self.run("--config", self.tiny, "--output_dir", self.folder / "outputs", *arguments, **options)

    def __call__(
        self,
        *arguments: object,
        moment: Moment | None = None,
        file_limit: int | None = None,
        seconds: float = 100,
    ) -> Finished:
        """`llm-forgetting ARGUMENTS`; `file_limit`: no file may grow beyond this many bytes (a full disk).

        Figures are made, but not rendered into files, which would take most of a tiny run's time (`smoke_run` does).
        """
        self._calls += 1
        out, err = self.folder / f"stdout_{self._calls}", self.folder / f"stderr_{self._calls}"
        words = [str(argument) for argument in arguments]
        call = _Call(words, (out, err), self.folder, moment, file_limit)
        process = self._context.Process(target=_child, args=(call,))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Finished(process.exitcode, out.read_text(), err.read_text())


@dataclass(frozen=True)
class _Call:
    """What a child process is to do, and under which conditions."""

    words: Sequence[str]
    streams: tuple[Path, Path]
    folder: Path
    moment: Moment | None
    file_limit: int | None


def _child(call: _Call) -> None:
    for descriptor, path in enumerate(call.streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(call.folder)
    if call.moment is not None:
        getattr(_Sabotage(call.moment), call.moment.kind)()
    if call.file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (call.file_limit, call.file_limit))
    from llm_forgetting.cli.main import main
    from llm_forgetting.report.figures import run as figures

    figures.save = lambda figure, stem, dpi: None
    sys.exit(main(call.words))


class _Sabotage:
    """Ends the process it lives in, at one moment."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.seen = 0

    def _strike(self, where: str) -> None:
        os.write(2, f"struck at {where}\n".encode())
        for n in range(1, self.moment.times):
            threading.Timer(0.005 * n, os.kill, (os.getpid(), self.moment.signal)).start()
        os.kill(os.getpid(), self.moment.signal)
        time.sleep(0.01)  # a SIGINT is raised here

    def _count(self, where: str) -> None:
        self.seen += 1
        if self.seen == self.moment.count:
            self._strike(where)

    def before_replace(self) -> None:
        """Just before a file or folder that ends in `what` gets its name: all of it is still under a temporary one."""
        self._around_replace(before=True)

    def after_replace(self) -> None:
        """Just after a file or folder that ends in `what` got its name."""
        self._around_replace(before=False)

    def _around_replace(self, *, before: bool) -> None:
        replace = os.replace

        def sabotaged(source: Any, target: Any) -> None:
            hit = str(target).endswith(self.moment.what)
            if hit and before:
                self._count(str(target))
            replace(source, target)
            if hit and not before:
                self._count(str(target))

        os.replace = sabotaged

    def file_operation(self) -> None:
        """Before operation `count` (0: never) on a file or folder below one whose path holds `what`; each is told on stderr."""
        changing = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")

        def heard(event: str, arguments: Any) -> None:
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            where = str(arguments[0]) if writes or event in changing else ""
            if self.moment.what in where and not where.endswith(".log"):
                os.write(2, f"operation: {event} {where}\n".encode())
                self._count(where)

        sys.addaudithook(heard)

    def training_step(self) -> None:
        """After `count` optimiser steps of this process."""
        from llm_forgetting.training.callbacks import Watch

        step = Watch.on_step_end

        def sabotaged(watch: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step(watch, args, state, control, **kwargs)
            self._count(f"training step {state.global_step}")

        Watch.on_step_end = sabotaged  # type: ignore[method-assign]

    def trainer_state(self) -> None:
        """While Trainer writes a resume folder, all of it there but its last file."""
        from transformers import TrainerState

        save = TrainerState.save_to_json

        def sabotaged(state: Any, path: str) -> None:
            self._count(path)
            save(state, path)

        TrainerState.save_to_json = sabotaged  # type: ignore[method-assign]

    def landscape_point(self) -> None:
        """At landscape point `count` of this process (0: never), the model moved away; every evaluation is told on stderr."""
        from llm_forgetting.models.language import objective as landscape_objective

        score = landscape_objective.score

        def sabotaged(model: Any, encoded: Any, *args: Any, **kwargs: Any) -> Any:
            self._count("a landscape point")
            found = score(model, encoded, *args, **kwargs)
            os.write(2, f"evaluated {len(encoded)} items\n".encode())
            return found

        landscape_objective.score = sabotaged

    def loading(self) -> None:
        """When a model or a data source is opened."""
        from llm_forgetting.experiment import session
        from llm_forgetting.models.language.language_model import LanguageModel

        for owner, name in ((LanguageModel, "load"), (session, "source_of")):
            setattr(owner, name, lambda *args, **kwargs: self._strike("loading"))


def same_results(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results agree in everything but the timings and the folder of the output."""

    def comparable(results: Mapping[str, Any]) -> dict[str, Any]:
        config = results["config"] and {**results["config"], "output": {**results["config"]["output"], "folder": None}}
        return {**results, "config": config, "timings": None}

    return comparable(one) == comparable(other)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class SmokeRun:
    """The folder of a finished run of the preset `smoke`, what it printed, its results, and its cache folder."""

    path: Path
    stdout: str
    results: dict[str, Any]
    cache: Path


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The command line, in a folder of this session."""
    return Shell(tmp_path_factory.mktemp("shell"))


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` once for all of pytest-xdist's workers, whose folders lie side by side."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """One `python main.py --config smoke`, shared by all tests that only read."""

    def make(folder: Path) -> None:
        environment = {**os.environ, **ENVIRONMENT, "LLM_FORGETTING_CACHE": str(folder / "cache")}
        command = [sys.executable, str(ROOT / "main.py"), "--config", "smoke", "--output_dir", str(folder / "outputs")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "stdout").write_text(done.stdout, encoding="utf-8")

    folder = made_once(tmp_path_factory, "smoke", make)
    (path,) = (folder / "outputs").iterdir()
    return SmokeRun(path, (folder / "stdout").read_text(encoding="utf-8"), read_results(path), folder / "cache")


@pytest.fixture(scope="session")
def tiny_run(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of TINY that nothing interrupted, shared by all tests that only read."""

    def make(folder: Path) -> None:
        done = shell.run("--config", shell.tiny, "--output_dir", folder / "outputs")
        assert done.status == 0, done.stdout + done.stderr

    (path,) = (made_once(tmp_path_factory, "tiny", make) / "outputs").iterdir()
    return path
