"""What every built-in method costs beside plain training: CPU seconds per step, before and after the task, and memory.

    python benchmarks/methods.py                 skills, the arms of studies/methods.yaml, one thread, two rounds
    python benchmarks/methods.py --arms kl sam --rounds 1

The first task is learnt once. Each arm then learns the second one in a process of its own, rounds interleaved. The table holds
the minima, and the most memory of the process while it trains less that of plain training.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment import phases
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.experiment.session import Session
from llm_forgetting.progress import Silent, say
from llm_forgetting.study.plan import read_plan
from llm_forgetting.training.method import Methods

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "studies/methods.yaml"
RESULTS = ROOT / "benchmarks/results/methods.json"


def config_of(arm: str) -> ExperimentConfig:
    """The first cell of an arm in the study."""
    cell = next(cell for cell in read_plan(STUDY).cells if cell.arm == arm)
    return dataclasses.replace(cell.config, evaluation=dataclasses.replace(cell.config.evaluation, during=0))


def trained(folder: Path, arm: str, k: int) -> dict[str, float]:
    """Train task k in `folder`: CPU seconds of a step, of what methods do before and after, and the most memory (bytes)."""
    quiet_libraries()
    session, apart = Session(config_of(arm), folder, Silent()), {"begin": 0.0, "end": 0.0}
    session.at(k - 1)
    _ = session.encoded, session.passages
    for name in apart:
        setattr(Methods, name, _timed(getattr(Methods, name), name, apart))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    began = time.process_time()
    record = phases.train(session, k)
    seconds = time.process_time() - began - sum(apart.values())
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    own = {"before": apart["begin"], "after": apart["end"], "memory": 1024.0 * int(peak.split()[1])}
    return {"step": seconds / record.optimizer_steps, **own}


def _timed(hook: Callable[..., None], name: str, seconds: dict[str, float]) -> Callable[..., None]:
    def timed(methods: Methods, argument: object) -> None:
        began = time.process_time()
        hook(methods, argument)
        seconds[name] = time.process_time() - began

    return timed


def measured(first: Path, arm: str) -> dict[str, float]:
    """`trained` in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        shutil.copytree(first, folder)
        command = [sys.executable, __file__, "--worker", str(folder), "--arms", arm]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return {name: float(value) for name, value in json.loads(out.splitlines()[-1]).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(read_plan(STUDY).arms))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(trained(options.worker, options.arms[0], 2)))
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ["plain", *options.arms]}
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "first"
        (first / "phases").mkdir(parents=True)
        trained(first, "plain", 1)
        for _ in range(options.rounds):
            for arm, rounds in found.items():
                rounds.append(measured(first, arm))
                say(f"{arm}: {rounds[-1]}")
    least = {arm: {name: min(one[name] for one in rounds) for name in rounds[0]} for arm, rounds in found.items()}
    RESULTS.write_text(json.dumps({"rounds": options.rounds, "arms": least}, indent=1) + "\n")
    plain = least["plain"]
    say(
        "\n| method | a step, of a plain one | before the task (s) | after it (s) | memory more (MB) |\n|---|---|---|---|---|"
    )
    for arm, own in least.items():
        more = (own["memory"] - plain["memory"]) / 1e6
        say(f"| `{arm}` | {own['step'] / plain['step']:.2f} | {own['before']:.1f} | {own['after']:.1f} | {more:+.0f} |")


if __name__ == "__main__":
    main()
