"""The peers' side of the benchmark, seen from ours: their environment, and worker processes in it."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv-peers"
STACK = HERE.parent / "requirements.txt"
TOOLS = HERE / "requirements-peers.txt"


def environment(notify: Callable[[str], None]) -> Path:
    """The Python of the peers' environment, which is built where it is missing or its requirements have changed."""
    python = ENVIRONMENT / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = ENVIRONMENT / "requirements.sha256"
    wanted = hashlib.sha256(STACK.read_bytes() + TOOLS.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == wanted):
        notify(f"building the peers' environment in benchmarks/{ENVIRONMENT.name}, once")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        subprocess.run([*install, "-r", str(STACK)], check=True)
        subprocess.run([*install, "--no-deps", "-r", str(TOOLS)], check=True)
        stamp.write_text(wanted)
    return python


def given_directions(python: Path) -> dict[str, float]:
    """Largest difference of every peer from a plain loop along given directions (see given_directions.py)."""
    command = [str(python), str(HERE / "given_directions.py")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


class Worker:
    """A process that holds one contestant and its own model, and works only while it is asked (see `serving`)."""

    def __init__(self, python: Path, contestant: str, case: Path, script: str = "peer_worker.py") -> None:
        self._name = contestant
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), contestant, str(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions: dict[str, str] = self._receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, call: str, **arguments: Any) -> Any:
        """The answer of method `call` of the contestant."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self._name} ended with status {self._process.wait()}; see above")
        return json.loads(line)
